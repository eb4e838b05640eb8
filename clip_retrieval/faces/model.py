"""A CLIP model as a Python object: what all faces are made of."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.base import USUAL_LOGIT_SCALE, Encoder, EncoderInfo, Tokens, raw_copy
from clip_retrieval.encoder.base import normalize as unit_rows
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.open import open_engine
from clip_retrieval.encoder.facts import context_length, takes_clip_tokens
from clip_retrieval.encoder.tensors import is_tensor, is_torch_loaded, to_array, to_tensor
from clip_retrieval.encoder.tokenizer import VOCABULARY_SIZE
from clip_retrieval.encoder.uri import parse_uri
from clip_retrieval.errors import EncoderError
from clip_retrieval.faces.arrays import Array, wrap
from clip_retrieval.faces.pictures import ImagePreprocess, as_scaled, is_many, is_scaled, to_pixels
from clip_retrieval.tools.scores import Floats, cosines, logits, softmax

BATCH_SIZE = 32


@dataclass(frozen=True)
class Visual:
    """What programs ask of `model.visual`."""

    input_resolution: int
    output_dim: int


class Clip:
    """A CLIP model. One picture or text gives a vector [d], a list gives [n, d]; tensors give tensors.

    Vectors have the length that the model gives them, as OpenAI's do; `normalize=True` makes that 1.
    """

    def __init__(self, encoder: Encoder, batch_size: int = BATCH_SIZE) -> None:
        self.encoder = raw_copy(encoder)
        self.batch_size = batch_size
        self.preprocess = ImagePreprocess(encoder.info.preprocess)

    @property
    def info(self) -> EncoderInfo:
        """What is known about the model."""
        return self.encoder.info

    @property
    def visual(self) -> Visual:
        return Visual(self.info.preprocess.size, self.info.dimension)

    @property
    def context_length(self) -> int:
        return context_length(self.encoder) or 77

    @property
    def vocab_size(self) -> int:
        return VOCABULARY_SIZE

    @property
    def logit_scale(self) -> Array:
        """The logarithm of the factor from cosine to logit, as OpenAI's model holds it."""
        return wrap(np.log(np.float32(self.info.logit_scale or USUAL_LOGIT_SCALE)))

    def eval(self) -> Clip:
        return self

    def to(self, device: Any) -> Clip:
        """Return the model itself: it stays on the device that it was loaded on."""
        if not self.info.device.startswith(str(device)) and str(device) != f"{self.info.device}:0":
            raise EncoderError(f"the model is on {self.info.device}; load it with device={str(device)!r} instead")
        return self

    def encode_image(self, images: Any, *, normalize: bool = False) -> Any:
        """Embed a path, a PIL picture, uint8 pixels [h, w, 3] or what preprocess gives; or many of them.

        Many are a list, pixels [n, h, w, 3], or scaled pictures [n, 3, s, s].
        """
        if not is_many(images):
            return self.encode_image([images], normalize=normalize)[0]
        like = next((image for image in (images, *images[:1]) if is_tensor(image)), None)
        batches = [
            self.embed_pictures(images[at : at + self.batch_size]) for at in range(0, len(images), self.batch_size)
        ]
        return self.joined(batches, normalize, like)

    def embed_pictures(self, images: Sequence[Any]) -> Floats:
        """Return the rows of one batch, all of it pictures, or all of it scaled."""
        ready = [is_scaled(image) for image in images]
        if not any(ready):
            return self.encoder.encode_images(np.stack([self.preprocess.pixels(image) for image in images]))
        scaled = as_scaled(
            [image if done else self.preprocess(image) for image, done in zip(images, ready, strict=True)],
            self.info.preprocess.size,
        )
        is_16_bit = any(getattr(getattr(image, "dtype", None), "itemsize", 4) == 2 for image in images)
        pixels = to_pixels(scaled, self.info.preprocess, is_16_bit=is_16_bit)
        return self.encode_scaled(scaled) if pixels is None else self.encoder.encode_images(pixels)

    def encode_scaled(self, scaled: NDArray[np.float32]) -> Floats:
        """Embed values that no 8-bit picture gives: torch takes any, the light runtime only 8-bit pictures."""
        rows: Floats = self.float_encoder.encode_scaled(scaled)
        return rows

    @cached_property
    def float_encoder(self) -> Any:
        if hasattr(self.encoder, "encode_scaled"):
            return self.encoder
        name = parse_uri(self.info.uri)
        if name.kind in ("onnx", "hash"):
            raise EncoderError(
                f"{self.info.uri} takes only 8-bit pictures, and these values are not: give it paths, PIL pictures or "
                "what preprocess gives, or load the model that it was converted from"
            )
        config = EncoderConfig(clip_model=name.uri, device="cpu", precision="fp32")
        return raw_copy(open_engine(name, config))

    def encode_text(self, texts: Any, *, normalize: bool = False) -> Any:
        """Embed a text, a list of texts, or token ids as `tokenize` gives them, [t] or [n, t]."""
        if isinstance(texts, str):
            return self.encode_text([texts], normalize=normalize)[0]
        if isinstance(texts, list | tuple):
            return self.joined([self.encoder.encode_texts(part) for part in self.parts(texts)], normalize, None)
        like = texts if is_tensor(texts) else None
        tokens = np.asarray(to_array(texts) if is_tensor(texts) else texts)
        if tokens.ndim == 1:
            return self.encode_text(texts[None], normalize=normalize)[0]
        parts = self.parts(self.fit_tokens(tokens))
        return self.joined([self.encoder.encode_tokens(part) for part in parts], normalize, like)

    def __call__(self, image: Any, text: Any) -> tuple[Any, Any]:
        """Return the logits per picture [n, m] and per text [m, n]: scale * cosine, and the bias of models with one."""
        per_image = logits(self.similarity(image, text), self.info)
        like = next((value for value in (image, text) if is_tensor(value)), None)
        return self.shaped(per_image, like), self.shaped(per_image.T, like)

    def similarity(self, image: Any, text: Any) -> Floats:
        """Return the cosines [n, m] of pictures and texts."""
        rows = (self.encode_image(image, normalize=True), self.encode_text(text, normalize=True))
        images, texts = (np.atleast_2d(to_array(row) if is_tensor(row) else row.numpy()) for row in rows)
        return cosines(images, texts)

    def compare_text_and_image(self, text: str, image: Any) -> builtins.float:
        """Return the cosine of one text and one picture."""
        return float(self.similarity(image, text)[0, 0])

    def zero_shot_label_image(self, image: Any, labels: Sequence[str]) -> tuple[Floats, NDArray[np.int64]]:
        """Return the labels' probabilities (softmax), the highest first, and the places of those labels in `labels`."""
        if isinstance(labels, str) or not labels:
            raise EncoderError('zero_shot_label_image takes a list of labels, such as ["a cat", "a dog"]')
        cosine = self.similarity(image, list(labels))
        if len(cosine) != 1:
            raise EncoderError(f"zero_shot_label_image takes one picture, not {len(cosine)}")
        order = np.argsort(-cosine[0], kind="stable")
        return softmax(logits(cosine, self.info))[0][order], order

    def fit_tokens(self, tokens: NDArray[Any]) -> Tokens:
        """Return the ids at the model's context length; padding may be added or removed, tokens may not."""
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise EncoderError(f"token ids are whole numbers [n, t], not {tokens.dtype} {list(tokens.shape)}")
        if not self.takes_clip_tokens:
            raise EncoderError(f"{self.info.uri} has a tokenizer of its own; give encode_text the texts themselves")
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < VOCABULARY_SIZE):
            raise EncoderError(f"token ids are from 0 to {VOCABULARY_SIZE - 1}, as tokenize gives them")
        context = context_length(self.encoder) or tokens.shape[1]
        if tokens[:, context:].any():
            raise EncoderError(
                f"the token ids are longer than the {context} that {self.info.uri} takes; make them with "
                f"tokenize(texts, context_length={context})"
            )
        fitted = np.zeros((len(tokens), context), dtype=np.int32)
        fitted[:, : tokens.shape[1]] = tokens[:, :context]
        return fitted

    @cached_property
    def takes_clip_tokens(self) -> bool:
        """Whether this model has the vocabulary of `tokenize`."""
        return takes_clip_tokens(self.encoder)

    def parts(self, rows: Any) -> list[Any]:
        return [rows[at : at + self.batch_size] for at in range(0, len(rows), self.batch_size)]

    def joined(self, batches: list[Floats], normalize: bool, like: Any) -> Any:  # noqa: FBT001 -- passed on from its callers
        rows = np.concatenate([np.zeros((0, self.info.dimension), np.float32), *batches])
        return self.shaped(unit_rows(rows) if normalize else rows, like)

    def shaped(self, rows: Floats, like: Any) -> Any:
        """Return rows as a tensor on the device of `like`, or as an Array if that is None."""
        return wrap(rows) if like is None else to_tensor(rows).to(like.device)

    def float(self) -> Clip:
        return self

    def half(self) -> Clip:
        """Return the model itself, in the number format that it was loaded in."""
        return self

    @property
    def dtype(self) -> Any:
        """The type of what `encode_image` takes: torch.float32 if torch is loaded, else NumPy's."""
        return sys.modules["torch"].float32 if is_torch_loaded() else np.dtype(np.float32)
