"""The whole of `similarity`: each picture with each text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.process.resources import use_cores
from clip_retrieval.tools.config import SimilarityConfig
from clip_retrieval.tools.embed import choose_workload, embed_pictures, embed_texts, text_notes
from clip_retrieval.tools.inputs import Failure, list_pictures
from clip_retrieval.tools.scores import Floats, cosines
from clip_retrieval.tools.timing import Stopwatch


@dataclass(frozen=True)
class Similarities:
    """Cosines of pictures (rows) and texts (columns)."""

    model: str
    images: tuple[str, ...]
    texts: tuple[str, ...]
    cosines: Floats
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "images": list(self.images),
            "texts": list(self.texts),
            "cosines": self.cosines.tolist(),
            "failures": [asdict(failure) for failure in self.failures],
            "notes": list(self.notes),
        }


def run_similarity(config: SimilarityConfig) -> Similarities:
    """Embed the pictures and texts, and compare them; raises ClipRetrievalError."""
    with use_cores(config.embed.threads):
        return compare(config)


def compare(config: SimilarityConfig) -> Similarities:
    watch = Stopwatch()
    paths = list_pictures(config.image)
    encoder = load_encoder(config.embed.encoder, workload=choose_workload(len(paths) + len(config.text)))
    watch.end("opening the model")
    texts = embed_texts(encoder, config.text, config.embed.batch_size)
    watch.end("texts")
    pictures = embed_pictures(encoder, paths, config.embed.batch_size, config.embed.pictures)
    watch.end("pictures")
    return Similarities(
        model=encoder.info.uri,
        images=pictures.names,
        texts=config.text,
        cosines=cosines(pictures.rows, texts.rows),
        failures=pictures.failures,
        notes=(*text_notes(encoder, config.text, texts.truncated_count), *watch.notes(config.told.verbose)),
    )
