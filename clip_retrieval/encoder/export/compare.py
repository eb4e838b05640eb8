"""Two encoders on the same pictures and texts: how far apart are their embeddings?"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from clip_retrieval.blobs import read_file
from clip_retrieval.encoder.base import Embeddings, Encoder, Pixels
from clip_retrieval.encoder.images import decode_image
from clip_retrieval.encoder.picture_suffixes import pictures_below
from clip_retrieval.encoder.picture_warnings import counting_warnings
from clip_retrieval.errors import EncoderError, ImageError

logger = logging.getLogger(__name__)

BATCHES = (1, 2, 5)  # one, the one in tracing, and one that no graph was made with
TEXTS = (
    "a photo of a dog",
    "",
    "two red apples on a wooden table, seen from above, in the morning light of a kitchen window",
    "Café Überraschung 東京 \U0001f680",
    " ".join(["very"] * 90) + " long",
    "a diagram",
    "the quick brown fox jumps over the lazy dog 123 times!",
    "cat",
)
MOST_PICTURES = 256


@dataclass(frozen=True)
class Agreement:
    """How alike two encoders are, over all rows of one tower."""

    least_cosine: float
    mean_cosine: float
    largest_error: float  # largest difference in a unit embedding, relative to its largest value
    count: int


def compare_towers(
    reference: Encoder, other: Encoder, pictures: Path | None = None, sizes: Sequence[int] = BATCHES
) -> dict[str, Agreement]:
    """Return the agreement of each tower that both have, in several batch sizes, so that none is special."""
    found: dict[str, Agreement] = {}
    both = set(reference.info.towers) & set(other.info.towers)
    if "image" in both:
        batches = list(
            make_batches(reference.info.preprocess.size, sizes)
            if pictures is None
            else read_batches(reference, pictures)
        )
        found["image"] = agree([(reference.encode_images(batch), other.encode_images(batch)) for batch in batches])
    if "text" in both:
        starts = np.cumsum((0, *sizes[:-1]))
        groups = [TEXTS[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        found["text"] = agree([(reference.encode_texts(group), other.encode_texts(group)) for group in groups])
    return found


def agree(pairs: list[tuple[Embeddings, Embeddings]]) -> Agreement:
    wanted, found = (np.concatenate(rows) for rows in zip(*pairs, strict=True))
    cosines = (wanted * found).sum(axis=1)
    error = np.abs(wanted - found).max() / max(float(np.abs(wanted).max()), 1e-12)
    if not np.isfinite(found).all():
        return Agreement(-1.0, -1.0, float("inf"), len(found))
    return Agreement(float(cosines.min()), float(cosines.mean()), float(error), len(found))


def make_batches(size: int, counts: Sequence[int]) -> Iterator[Pixels]:
    """Yield generated pictures: noise, coarse noise that is smooth, plain colors."""
    rng = np.random.default_rng(0)
    for count in counts:
        batch = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        for i in range(count):
            if i % 3 != 1:
                coarse = Image.fromarray(rng.integers(0, 256, (1 + 5 * (i % 2), 4, 3), dtype=np.uint8))
                batch[i] = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
        yield batch


def read_batches(encoder: Encoder, folder: Path) -> Iterator[Pixels]:
    """Yield a folder's pictures, at most 256 of them spread over it, as pixels for the encoder."""
    if not folder.is_dir():
        raise EncoderError(f"there is no folder {folder}")
    paths = pictures_below(folder)
    if not paths:
        raise EncoderError(f"{folder} holds no picture: no file with a suffix such as .jpg or .png that is not hidden")
    prepared, unusable = [], 0
    for path in paths[:: max(1, len(paths) // MOST_PICTURES)][:MOST_PICTURES]:
        try:
            with counting_warnings():
                prepared.append(encoder.info.preprocess(decode_image(read_file(path))))
        except (ImageError, OSError):
            unusable += 1
    if unusable:
        logger.warning("%s of the pictures in %s cannot be decoded, and are left out", unusable, folder)
    if not prepared:
        raise EncoderError(f"none of the pictures in {folder} can be decoded")
    for start in range(0, len(prepared), 32):
        yield np.stack(prepared[start : start + 32])
