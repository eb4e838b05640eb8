"""CLIP as a Python object, with the names that OpenAI's `clip`, NumPyCLIP and clip_cpp gave its parts.

from clip_retrieval import clip

model, preprocess = clip.load("ViT-B/32")
image_rows = model.encode_image(["cat.jpg", "dog.jpg"])  # float32 [2, d], rows of unit length
per_image, per_text = model("cat.jpg", ["a cat", "a dog"])  # logits
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.encoder.base import Embeddings, Encoder, EncoderInfo, Tokens, check_texts
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.facts import context_length, takes_clip_tokens
from clip_retrieval.encoder.images import decode_as_stored, to_8_bit_mode, without_transparent_color
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.encoder.tokenizer import VOCABULARY_SIZE, BpeTokenizer
from clip_retrieval.encoder.uri import OPENAI_NAMES
from clip_retrieval.errors import ConfigError, EncoderError, ImageError
from clip_retrieval.tools.scores import Floats, cosines, logits, softmax

BATCH_SIZE = 32


def available_models() -> list[str]:
    """Return the names that go without a prefix; `clip-retrieval models list` has all."""
    return [*OPENAI_NAMES, "demo"]


def load(
    name: str, device: str = "auto", *, jit: bool = False, download_root: str | None = None
) -> tuple[Clip, ImagePreprocess]:
    """Open a model, an OpenAI name or anything that --clip_model takes, and what makes its pictures ready.

    Raises EncoderError where there is no such model, or its weights are not here and cannot be fetched.
    """
    if jit:
        raise ConfigError("jit is not supported: models are always plain modules; leave it out")
    encoder = load_encoder(EncoderConfig(clip_model=name, device=str(device), clip_cache_path=download_root))
    model = Clip(encoder)
    return model, model.preprocess


def tokenize(texts: str | Sequence[str], context_length: int = 77, truncate: bool = False) -> Tokens:  # noqa: FBT001, FBT002 -- OpenAI's signature
    """Return the token ids int32 [n, context_length] of CLIP's byte-pair vocabulary, zeros behind the end of text.

    A text that is too long is an EncoderError, or is cut where `truncate` is set.
    """
    if context_length < 3:
        raise EncoderError(f"context_length must be at least 3, not {context_length}: start, a token, end")
    given = [texts] if isinstance(texts, str) else texts
    check_texts(given)
    tokenizer = bpe_tokenizer(context_length)
    rows, truncated = tokenizer.tokenize(given)
    if truncated and not truncate:
        counts = [len(tokenizer.encode(text)) + 2 for text in given]
        place = next(i for i, count in enumerate(counts) if count > context_length)
        raise EncoderError(
            f"{given[place][:60]!r} takes {counts[place]} tokens, and there is room for {context_length}; "
            "shorten it, or give truncate=True"
        )
    return rows


@lru_cache(4)
def bpe_tokenizer(context_length: int) -> BpeTokenizer:
    return BpeTokenizer(context_length)


class ImagePreprocess:
    """Pictures to uint8 pixels [s, s, 3], which encode_image takes; scaling by mean and std is inside the encoder."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, image: Any) -> NDArray[np.uint8]:
        """Return the pixels of a path, a PIL picture, or uint8 pixels [h, w, 3] of any size."""
        return self.preprocess(open_image(image))


class Clip:
    """A CLIP model. One picture or text gives a vector [d], a list gives [n, d]; all have unit length."""

    def __init__(self, encoder: Encoder, batch_size: int = BATCH_SIZE) -> None:
        self.encoder = encoder
        self.batch_size = batch_size
        self.preprocess = ImagePreprocess(encoder.info.preprocess)

    @property
    def info(self) -> EncoderInfo:
        """What is known of the model."""
        return self.encoder.info

    def encode_image(self, images: Any) -> Embeddings:
        """Embed a path, a PIL picture or uint8 pixels [h, w, 3]; or a list of them, or pixels [n, h, w, 3]."""
        if not is_many(images):
            return self.only_row(self.encode_image([images]))
        batches = [
            self.encoder.encode_images(
                np.stack([self.preprocess(image) for image in images[at : at + self.batch_size]])
            )
            for at in range(0, len(images), self.batch_size)
        ]
        return self.joined(batches)

    def encode_text(self, texts: str | Sequence[str] | NDArray[np.integer[Any]]) -> Embeddings:
        """Embed a text, a list of texts, or token ids as `tokenize` gives them, [t] or [n, t]."""
        if isinstance(texts, str):
            return self.only_row(self.encode_text([texts]))
        if isinstance(texts, list | tuple):
            return self.joined([self.encoder.encode_texts(part) for part in self.parts(texts)])
        tokens = np.asarray(texts)
        if tokens.ndim == 1:
            return self.only_row(self.encode_text(tokens[None]))
        return self.joined([self.encoder.encode_tokens(part) for part in self.parts(self.fit_tokens(tokens))])

    def __call__(self, image: Any, text: Any) -> tuple[Floats, Floats]:
        """Return the logits per picture [n, m] and per text [m, n]: scale * cosine, and the bias of models with one."""
        per_image = logits(self.similarity(image, text), self.info)
        return per_image, per_image.T

    def similarity(self, image: Any, text: Any) -> Floats:
        """Return the cosines [n, m] of pictures and texts."""
        return cosines(np.atleast_2d(self.encode_image(image)), np.atleast_2d(self.encode_text(text)))

    def compare_text_and_image(self, text: str, image: Any) -> float:
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
        """Return the ids at the model's context length; padding may go or come, tokens may not."""
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
        """Whether what `tokenize` gives means the same to this model."""
        return takes_clip_tokens(self.encoder)

    def parts(self, rows: Any) -> list[Any]:
        return [rows[at : at + self.batch_size] for at in range(0, len(rows), self.batch_size)]

    def only_row(self, rows: Embeddings) -> Embeddings:
        row: Embeddings = rows[0]
        return row

    def joined(self, batches: list[Embeddings]) -> Embeddings:
        rows: Embeddings = np.concatenate([np.zeros((0, self.info.dimension), np.float32), *batches])
        return rows


def is_many(images: Any) -> bool:
    """Tell a list of pictures, or pixels [n, h, w, 3], from one picture."""
    if isinstance(images, list | tuple):
        return True
    return not isinstance(images, str | PathLike | Image.Image) and np.ndim(images) == 4


def open_image(image: Any) -> Image.Image:
    """Return a path, a PIL picture or uint8 pixels [h, w, 3] as a picture of 8 bits a sample, in its own mode."""
    if isinstance(image, str | PathLike):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return without_transparent_color(to_8_bit_mode(image))
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise EncoderError(
            f"a picture is a path, a PIL picture or uint8 pixels [h, w, 3], not {pixels.dtype} {list(pixels.shape)}; "
            "scaling is inside the encoder"
        )
    return Image.fromarray(pixels)


def read_image(path: Path) -> Image.Image:
    try:
        return decode_as_stored(path.read_bytes())
    except ImageError as error:
        raise ImageError(error.reason, f"{path} cannot be used as a picture: {error}") from error
    except OSError as error:
        raise ImageError("read", f"{path} cannot be read: {error.strerror or error}") from error
