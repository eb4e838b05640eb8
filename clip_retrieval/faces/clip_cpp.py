"""The class `Clip` of clip.cpp's Python binding: lists of floats, one picture or text at a time.

from clip_retrieval.faces.clip_cpp import Clip

model = Clip("ggml-model-f16.gguf")
text = model.encode_text(model.tokenize("a cat on a turtle"))
image = model.load_preprocess_encode_image("cat.jpg")
score = model.calculate_similarity(text, image)

Token ids are those of CLIP's byte-pair vocabulary, and pictures are resized as CLIP does; clip.cpp approximates both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.hub import read_named
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.uri import HUB_NAME, parse_uri
from clip_retrieval.errors import ConfigError, EncoderError
from clip_retrieval.faces import model as face
from clip_retrieval.faces.texts import make_tokens
from clip_retrieval.process.resources import count_cores, use_cores

FIRST_LAYERS = {"text": "transformer.resblocks.0.", "vision": "visual.transformer.resblocks.0."}
USUAL_EPSILON = 1e-5


class Clip:
    """A GGUF file of clip.cpp's, or any other model that --clip_model takes."""

    def __init__(
        self,
        model_path_or_repo_id: str,
        model_file: str | None = None,
        verbosity: int = 0,
        revision: str | None = None,
    ) -> None:
        """Open a file, a folder with GGUF files, or one of a repository on the hub; the smallest if none is named."""
        self.uri = find_model(model_path_or_repo_id, model_file, revision)
        self.verbosity = verbosity  # clip.cpp prints the tensors of a file; nothing is printed here
        self.models: dict[int, face.Clip] = {}
        self.vec_dim = self.on_cores(count_cores()).info.dimension

    def on_cores(self, count: int) -> face.Clip:
        """Return the model on so many cores; the last opened one is kept."""
        if count not in self.models:
            config = EncoderConfig(clip_model=self.uri, device="cpu")
            self.models = {count: face.Clip(load_encoder(config))}
        return self.models[count]

    def embed(self, method: str, given: Any, n_threads: int | None, *, normalize: bool) -> list[float]:
        with use_cores(n_threads or count_cores()):  # its session is opened by the first call
            rows = getattr(self.on_cores(count_cores()), method)(given, normalize=normalize)
        found: list[float] = rows.tolist()
        return found

    @cached_property
    def checkpoint(self) -> Checkpoint:
        name = parse_uri(self.uri)
        if name.kind != "checkpoint":
            raise EncoderError(f"{self.uri} does not describe its layers; only weight files have these configurations")
        return read_named(name.architecture, None)

    @property
    def vision_config(self) -> dict[str, Any]:
        """The image tower, under clip.cpp's names."""
        sizes = describe_tower(self.checkpoint, "vision")
        config = self.checkpoint.model_config["vision_cfg"]
        return {"image_size": self.checkpoint.preprocess.size, "patch_size": config["patch_size"], **sizes}

    @property
    def text_config(self) -> dict[str, Any]:
        """The text tower, under clip.cpp's names."""
        sizes = describe_tower(self.checkpoint, "text")
        config = self.checkpoint.model_config["text_cfg"]
        return {"n_vocab": config["vocab_size"], "num_positions": self.checkpoint.context_length, **sizes}

    def tokenize(self, text: str) -> list[int]:
        """Return the ids, start and end of text included; a text that is too long is a RuntimeError."""
        ids = make_tokens(text, self.on_cores(count_cores()).context_length)[0]
        found: list[int] = ids[: int(ids.argmax()) + 1].tolist()
        return found

    def encode_text(
        self,
        tokens: Sequence[int] | str,
        n_threads: int | None = None,
        normalize: bool = True,  # noqa: FBT001, FBT002 -- clip.cpp's signature
    ) -> list[float]:
        """Embed the ids that `tokenize` gives; a text is a ConfigError."""
        if isinstance(tokens, str):
            raise ConfigError("encode_text takes token ids: model.encode_text(model.tokenize(text))")
        return self.embed("encode_text", np.asarray(tokens, dtype=np.int64), n_threads, normalize=normalize)

    def load_preprocess_encode_image(
        self,
        image_path: str,
        n_threads: int | None = None,
        normalize: bool = True,  # noqa: FBT001, FBT002 -- clip.cpp's signature
    ) -> list[float]:
        """Embed the picture of a path; a PIL picture is taken too."""
        return self.embed("encode_image", image_path, n_threads, normalize=normalize)

    def calculate_similarity(self, text_embedding: Sequence[float], image_embedding: Sequence[float]) -> float:
        """Return the inner product, the cosine of normalized embeddings. Raises ConfigError for unlike lengths."""
        if len(text_embedding) != len(image_embedding):
            raise ConfigError(
                f"embeddings of {len(text_embedding)} and {len(image_embedding)} numbers are of different models"
            )
        return float(np.dot(text_embedding, image_embedding))

    def compare_text_and_image(self, text: str, image_path: str, n_threads: int | None = None) -> float:
        """Return the cosine of a text and the picture of a path."""
        text_row = self.encode_text(self.tokenize(text), n_threads)
        return self.calculate_similarity(text_row, self.load_preprocess_encode_image(image_path, n_threads))

    def zero_shot_label_image(
        self, image_path: str, labels: Sequence[str], n_threads: int | None = None
    ) -> tuple[list[float], list[int]]:
        """Return the labels' probabilities, the highest first, and the places of those labels in `labels`."""
        if isinstance(labels, str) or len(labels) < 2:
            raise ConfigError("zero_shot_label_image chooses among labels: give two or more in a list")
        with use_cores(n_threads or count_cores()):
            scores, places = self.on_cores(count_cores()).zero_shot_label_image(image_path, labels)
        return scores.tolist(), places.tolist()


def find_model(place: str, file: str | None, revision: str | None) -> str:
    """Return the name of the model for --clip_model."""
    path = Path(place).expanduser()
    if path.is_dir() and (file is not None or any(path.glob("*.gguf"))):
        return str(path / file if file is not None else min(path.glob("*.gguf"), key=lambda one: one.stat().st_size))
    if file is not None and not HUB_NAME.fullmatch(place):
        raise ConfigError(f"model_file is a file of a folder or of a repository on the hub, and {place} is neither")
    if not path.exists() and HUB_NAME.fullmatch(place):
        return f"gguf:{place}{'' if file is None else f'/{file}'}{'' if revision is None else f'@{revision}'}"
    return place


def describe_tower(checkpoint: Checkpoint, tower: str) -> dict[str, Any]:
    """Return the sizes that both towers have."""
    config = checkpoint.model_config.get("vision_cfg" if tower == "vision" else "text_cfg")
    if config is None:
        raise EncoderError(f"{checkpoint.source} has no {tower} encoder: it was saved without one")
    width = config["width"]
    return {
        "hidden_size": width,
        "n_intermediate": checkpoint.tensors[f"{FIRST_LAYERS[tower]}mlp.c_fc.weight"].shape[0],
        "projection_dim": checkpoint.model_config["embed_dim"],
        "n_head": config.get("heads") or width // config.get("head_width", 64),
        "n_layer": config["layers"],
        "eps": (config.get("norm_kwargs") or {}).get("eps", USUAL_EPSILON),
    }
