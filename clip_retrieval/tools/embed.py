"""Pictures and texts to unit rows, batch by batch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip_retrieval.encoder.base import Embeddings, Encoder, TextEmbeddings, Workload
from clip_retrieval.encoder.config import PictureConfig
from clip_retrieval.encoder.picture_warnings import counting_warnings, in_one_line
from clip_retrieval.encoder.vocabulary import describe_unknown_words
from clip_retrieval.errors import SourceError
from clip_retrieval.progress import show_progress
from clip_retrieval.tools.inputs import Failure, in_batches, read_picture, shown
from clip_retrieval.tools.scores import average_prompts, fill_templates
from clip_retrieval.words import counted

logger = logging.getLogger(__name__)

FEW_ITEMS = 8  # pictures and texts
READER_THREADS = 4  # Pillow releases the GIL while it decodes and resizes


@dataclass(frozen=True)
class Pictures:
    """Rows of the readable pictures, and why the others could not be read."""

    positions: tuple[int, ...]  # each row's index in the list of pictures
    names: tuple[str, ...]
    rows: Embeddings
    failures: tuple[Failure, ...]


def stream_pictures(
    encoder: Encoder, paths: Sequence[Path], batch_size: int, pictures: PictureConfig
) -> Iterator[Pictures]:
    """Yield the pictures' rows in order; an unreadable picture is among the failures of its batch."""
    preprocess, warnings = encoder.info.preprocess, Counter[str]()
    with ThreadPoolExecutor(READER_THREADS) as readers, show_progress("pictures", len(paths)) as advance:
        for batch in in_batches(range(len(paths)), batch_size):
            with counting_warnings() as found:
                read = list(readers.map(lambda at: read_picture(paths[at], preprocess, pictures), batch))
            warnings.update(found)
            pixels = [picture for picture in read if not isinstance(picture, Failure)]
            kept = tuple(at for at, picture in zip(batch, read, strict=True) if not isinstance(picture, Failure))
            yield Pictures(
                positions=kept,
                names=tuple(shown(paths[at]) for at in kept),
                rows=encoder.encode_images(np.stack(pixels)) if pixels else no_rows(encoder),
                failures=tuple(picture for picture in read if isinstance(picture, Failure)),
            )
            advance(len(batch))
    if warnings:
        logger.warning("warnings of the picture decoders: %s", in_one_line(warnings))


def embed_pictures(encoder: Encoder, paths: Sequence[Path], batch_size: int, pictures: PictureConfig) -> Pictures:
    """Return all pictures' rows; raises SourceError if none could be read."""
    batches = list(stream_pictures(encoder, paths, batch_size, pictures))
    failures = tuple(failure for batch in batches for failure in batch.failures)
    if paths and len(failures) == len(paths):
        raise nothing_readable(failures)
    return Pictures(
        positions=tuple(at for batch in batches for at in batch.positions),
        names=tuple(name for batch in batches for name in batch.names),
        rows=np.concatenate([no_rows(encoder), *(batch.rows for batch in batches)]),
        failures=failures,
    )


def stream_texts(encoder: Encoder, texts: Sequence[str], batch_size: int) -> Iterator[TextEmbeddings]:
    with show_progress("texts", len(texts)) as advance:
        for batch in in_batches(texts, batch_size):
            yield encoder.embed_texts(batch)
            advance(len(batch))


def embed_texts(encoder: Encoder, texts: Sequence[str], batch_size: int) -> TextEmbeddings:
    batches = list(stream_texts(encoder, texts, batch_size))
    rows = np.concatenate([no_rows(encoder), *(batch.rows for batch in batches)])
    return TextEmbeddings(rows, sum(batch.truncated_count for batch in batches))


def embed_prompts(encoder: Encoder, names: Sequence[str], templates: Sequence[str], batch_size: int) -> TextEmbeddings:
    """Return a unit row for each name: the mean of its prompts, one for each template."""
    prompts = [prompt for name in names for prompt in fill_templates(name, templates)]
    found = embed_texts(encoder, prompts, batch_size)
    return TextEmbeddings(average_prompts(found.rows, len(names)), found.truncated_count)


def choose_workload(item_count: int) -> Workload:
    """Return `once` for so few pictures and texts that opening a model takes longer than embedding them."""
    return "once" if item_count <= FEW_ITEMS else "query"


def no_rows(encoder: Encoder) -> Embeddings:
    return np.zeros((0, encoder.info.dimension), dtype=np.float32)


def nothing_readable(failures: Sequence[Failure]) -> SourceError:
    first = f"{failures[0].image}: {failures[0].detail}"
    if len(failures) == 1:
        return SourceError(f"the picture cannot be used: {first}")
    return SourceError(f"none of the {len(failures):,} pictures can be used; the first is {first}")


def truncation_notes(count: int) -> list[str]:
    """Return a note if texts were cut."""
    return [f"cut to the model's context length: {counted(count, 'text')}"] if count else []


def text_notes(encoder: Encoder, texts: Sequence[str], truncated_count: int) -> list[str]:
    """Return a note if texts were cut, and one if a small model does not know their words."""
    unknown = describe_unknown_words(texts, encoder.info)
    return [*truncation_notes(truncated_count), *([unknown] if unknown else [])]
