"""The whole of `zsl`: which of the labels fits each picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.errors import SourceError
from clip_retrieval.process.resources import use_cores
from clip_retrieval.tools.config import ZslConfig
from clip_retrieval.tools.embed import choose_workload, embed_pictures, embed_prompts, text_notes
from clip_retrieval.tools.inputs import Failure, list_pictures, read_lines
from clip_retrieval.tools.scores import (
    Floats,
    choose_scores,
    cosines,
    logit_notes,
    logits,
    sigmoid,
    softmax,
)
from clip_retrieval.tools.timing import Stopwatch
from clip_retrieval.words import counted


@dataclass(frozen=True)
class Labeled:
    """A probability for each picture (row) and label (column)."""

    model: str
    scores: str  # softmax or sigmoid
    images: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: Floats
    cosines: Floats
    top_k: int
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]

    def best(self, row: int) -> list[int]:
        """Return at most `top_k` labels of a picture, the likeliest first; equal ones in the given order."""
        order = np.argsort(-self.cosines[row], kind="stable")  # probabilities may become equal by rounding
        return [int(column) for column in order[: self.top_k]]

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "scores": self.scores,
            "labels": list(self.labels),
            "images": [self.image_json(row) for row in range(len(self.images))],
            "failures": [asdict(failure) for failure in self.failures],
            "notes": list(self.notes),
        }

    def image_json(self, row: int) -> dict[str, Any]:
        found = [
            {
                "label": self.labels[column],
                "probability": float(self.probabilities[row, column]),
                "cosine": float(self.cosines[row, column]),
            }
            for column in self.best(row)
        ]
        return {"image": self.images[row], "labels": found}


def run_zsl(config: ZslConfig) -> Labeled:
    """Label the pictures; raises ClipRetrievalError."""
    with use_cores(config.embed.threads):
        return label(config)


def label(config: ZslConfig) -> Labeled:
    watch = Stopwatch()
    paths = list_pictures(config.image)
    labels, notes = read_labels(config)
    workload = choose_workload(len(paths) + len(labels) * max(1, len(config.template)))
    encoder = load_encoder(config.embed.encoder, workload=workload)
    watch.end("opening the model")
    columns = embed_prompts(encoder, labels, config.template, config.embed.batch_size)
    watch.end("labels")
    pictures = embed_pictures(encoder, paths, config.embed.batch_size, config.embed.pictures)
    watch.end("pictures")
    told = watch.notes(config.told.verbose)
    kind = choose_scores(config.scores, encoder.info)
    cosine = cosines(pictures.rows, columns.rows)
    squash = softmax if kind == "softmax" else sigmoid
    if kind == "softmax" and len(labels) == 1:
        notes = [*notes, "with one label, softmax is always 1; give more labels"]
    return Labeled(
        model=encoder.info.uri,
        scores=kind,
        images=pictures.names,
        labels=tuple(labels),
        probabilities=squash(logits(cosine, encoder.info)),
        cosines=cosine,
        top_k=config.top_k,
        failures=pictures.failures,
        notes=(*notes, *logit_notes(kind, encoder.info), *text_notes(encoder, labels, columns.truncated_count), *told),
    )


def read_labels(config: ZslConfig) -> tuple[list[str], list[str]]:
    """Return the distinct labels in the order given, and a note on duplicates."""
    given = [*config.label, *(read_lines(config.labels_file) if config.labels_file is not None else ())]
    if not given:
        raise SourceError(f"{config.labels_file} holds no label; write one per line")
    labels = list(dict.fromkeys(given))
    again = len(given) - len(labels)
    return labels, [f"left out: {counted(again, 'repeated label')}"] if again else []
