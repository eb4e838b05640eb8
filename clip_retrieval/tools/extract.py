"""The whole of `extract`: embeddings as plain npy files, with a json line for each row that names its input.

summary.json is removed first and written last: if it exists, the files next to it belong together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clip_retrieval.embeddings.npy_writer import NpyWriter
from clip_retrieval.encoder.base import Embeddings, Encoder
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.errors import SourceError, StorageError
from clip_retrieval.layout import check_not_inside
from clip_retrieval.process.resources import use_cores
from clip_retrieval.storage import Folder, check_writable
from clip_retrieval.tools.config import EmbedConfig, ExtractConfig
from clip_retrieval.tools.embed import nothing_readable, stream_pictures, stream_texts, truncation_notes
from clip_retrieval.tools.inputs import Failure, in_batches, list_pictures, read_lines

SUMMARY, FAILURES = "summary.json", "failures.json"
IMAGE_ROWS, IMAGE_NAMES = "image_embeddings.npy", "images.jsonl"
TEXT_ROWS, TEXT_NAMES = "text_embeddings.npy", "texts.jsonl"
OWN_FILES = (SUMMARY, FAILURES, IMAGE_ROWS, IMAGE_NAMES, TEXT_ROWS, TEXT_NAMES)

Append = Callable[[Embeddings, Iterable[dict[str, str]]], None]


@dataclass(frozen=True)
class Extracted:
    """What was written."""

    output_folder: str
    model: str
    fingerprint: str
    dimension: int
    image_count: int
    text_count: int
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "notes": list(self.notes), "failures": [asdict(failure) for failure in self.failures]}


def run_extract(config: ExtractConfig) -> Extracted:
    """Embed the pictures and texts into the folder; raises ClipRetrievalError, also if there is no row."""
    with use_cores(config.embed.threads):
        return extract(config)


def extract(config: ExtractConfig) -> Extracted:
    paths, texts = list_pictures(config.image), read_texts(config)
    if not paths and not texts:
        raise SourceError(f"there is no text in {' and '.join(config.text_file)}; write one per line")
    folder = Folder(config.output_folder)
    check_not_inside(folder, StorageError)
    check_writable(folder)
    encoder = load_encoder(config.embed.encoder, workload="bulk")
    with folder.staging() as staging:
        truncated_count = write_texts(staging, encoder, texts, config.embed.batch_size)
        image_count, failures = write_pictures(staging, encoder, paths, config.embed)
        if not image_count and not texts:
            raise nothing_readable(failures)
        result = Extracted(
            output_folder=folder.url,
            model=encoder.info.uri,
            fingerprint=encoder.info.fingerprint,
            dimension=encoder.info.dimension,
            image_count=image_count,
            text_count=len(texts),
            failures=tuple(failures),
            notes=tuple(truncation_notes(truncated_count)),
        )
        publish(folder, staging, result)
    folder.remove_leftovers()
    return result


def read_texts(config: ExtractConfig) -> list[str]:
    return [*config.text, *(line for file in config.text_file for line in read_lines(file))]


def write_texts(staging: Path, encoder: Encoder, texts: Sequence[str], batch_size: int) -> int:
    """Write the rows of the texts, and return how many were cut; no file if there is no text."""
    if not texts:
        return 0
    truncated_count = 0
    with appending(staging / TEXT_ROWS, staging / TEXT_NAMES, encoder.info.dimension) as append:
        batches = in_batches(texts, batch_size)
        for found, batch in zip(stream_texts(encoder, texts, batch_size), batches, strict=True):
            append(found.rows, ({"text": text} for text in batch))
            truncated_count += found.truncated_count
    return truncated_count


def write_pictures(
    staging: Path, encoder: Encoder, paths: Sequence[Path], config: EmbedConfig
) -> tuple[int, list[Failure]]:
    """Write the rows of the pictures, and return their number, and what could not be used."""
    count, failures = 0, list[Failure]()
    if not paths:
        return count, failures
    with appending(staging / IMAGE_ROWS, staging / IMAGE_NAMES, encoder.info.dimension) as append:
        for batch in stream_pictures(encoder, paths, config.batch_size, config.pictures):
            append(batch.rows, ({"image": name} for name in batch.names))
            count += len(batch.rows)
            failures += batch.failures
    return count, failures


@contextmanager
def appending(rows_path: Path, names_path: Path, dimension: int) -> Iterator[Append]:
    """Yield a function that appends rows, and a json line for each; memory stays flat."""
    with NpyWriter(rows_path, dimension, np.dtype("<f4")) as writer, names_path.open("wb") as names_file:

        def append(rows: Embeddings, names: Iterable[dict[str, str]]) -> None:
            writer.append(rows)
            names_file.writelines(json_line(name) for name in names)

        yield append


def json_line(value: dict[str, str]) -> bytes:
    """Return a line of json, readable in any language; invalid Unicode becomes json's own escape."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def publish(folder: Folder, staging: Path, result: Extracted) -> None:
    """Replace the files of an earlier run in the folder."""
    for name in OWN_FILES:
        folder.remove(name)
    for path in sorted(staging.iterdir()):
        folder.publish(path, path.name)
    if result.failures:
        folder.write_json(FAILURES, [asdict(failure) for failure in result.failures])
    folder.write_json(SUMMARY, result.to_json())
