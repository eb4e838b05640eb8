"""Reader processes: input order, and what happens when one dies."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from clip_retrieval import clip_inference
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import SourceError
from clip_retrieval.inference.readers.loader import CHUNK_SIZE, Loader
from clip_retrieval.inference.readers.prepare import Wanted
from clip_retrieval.inference.types import Batch
from clip_retrieval.sources.types import Failure, Sample

WANTED = Wanted(
    image=True, text=True, metadata=False, all_parts=False, preprocess=Preprocess(8, (0.5,) * 3, (0.5,) * 3)
)


@pytest.fixture
def make_samples(make_jpeg: Callable[[int], bytes]) -> Callable[[int], list[Sample]]:
    pictures = [make_jpeg(seed) for seed in range(5)]

    def make(count: int) -> list[Sample]:
        return [Sample(str(i), str(i), pictures[i % 5], f"text {i}".encode(), None) for i in range(count)]

    return make


MakeSamples = Callable[[int], list[Sample]]


def copied(batches: Iterator[Batch]) -> list[tuple[list[str], bytes]]:
    """Keep what a batch holds; its pixels are overwritten by the next."""
    return [
        ([row.key for row in batch.rows], b"" if batch.pixels is None else batch.pixels.tobytes()) for batch in batches
    ]


@pytest.mark.parametrize("count", [0, 1, CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 5 * CHUNK_SIZE + 3])
def test_batches_are_the_same_with_and_without_readers(make_samples: MakeSamples, count: int) -> None:
    alone, helped = Loader(WANTED, 10, 0), Loader(WANTED, 10, 2)

    expected = copied(alone.batches(make_samples(count)))
    got = copied(helped.batches(make_samples(count)))

    alone.close()
    helped.close()
    assert got == expected
    assert [len(keys) for keys, _ in got] == [10] * (count // 10) + [count % 10] * (count % 10 > 0)


def test_a_loader_serves_one_partition_after_the_other(make_samples: MakeSamples) -> None:
    loader = Loader(WANTED, 7, 2)

    first, second = copied(loader.batches(make_samples(40))), copied(loader.batches(make_samples(3)))

    loader.close()
    assert [key for keys, _ in first for key in keys] == [str(i) for i in range(40)]
    assert [key for keys, _ in second for key in keys] == ["0", "1", "2"]


def test_failures_of_the_source_alone_make_a_batch_without_rows() -> None:
    loader = Loader(WANTED, 7, 0)
    failures = [Failure.of_shard(f"{i}.tar", "empty", "has no bytes") for i in range(100)]

    batches = list(loader.batches(failures))

    loader.close()
    assert [failure for batch in batches for failure in batch.failures] == failures
    assert sum(len(batch.rows) for batch in batches) == 0


@pytest.mark.parametrize("readers", [0, 2])
def test_an_error_of_the_source_arrives(make_samples: MakeSamples, readers: int) -> None:
    def broken() -> Iterator[Sample]:
        yield from make_samples(40)
        raise SourceError("the store is gone")

    loader = Loader(WANTED, 7, readers)
    with pytest.raises(SourceError, match="the store is gone"):
        list(loader.batches(broken()))
    loader.close()


@pytest.mark.parametrize("readers", [0, 2])
def test_a_loader_can_be_closed_in_the_middle(make_samples: MakeSamples, readers: int) -> None:
    loader = Loader(WANTED, 7, readers)
    batches = loader.batches(make_samples(999))
    next(batches)

    loader.close()

    assert loader.feeder is not None
    assert not loader.feeder.is_alive()
    assert [reader.link.process.poll() for reader in loader.readers.all] == [-signal.SIGKILL] * readers


def test_a_source_that_stalls_does_not_hold_up_the_end(make_samples: MakeSamples) -> None:
    stalled, go_on = threading.Event(), threading.Event()

    def samples() -> Iterator[Sample]:
        yield from make_samples(CHUNK_SIZE)
        stalled.set()
        go_on.wait(60)

    loader = Loader(WANTED, CHUNK_SIZE, 0)
    next(loader.batches(samples()))
    stalled.wait(60)
    closing = threading.Thread(target=loader.close)
    closing.start()
    closing.join(10)
    is_stuck = closing.is_alive()
    go_on.set()
    closing.join()

    assert not is_stuck


def test_pixels_are_those_of_the_preprocessing(make_samples: MakeSamples) -> None:
    loader = Loader(WANTED, 100, 1)

    batch = next(loader.batches(make_samples(5)))

    assert batch.pixels is not None
    assert batch.pixels.shape == (5, 8, 8, 3)
    assert batch.pixels.dtype == np.uint8
    loader.close()


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_python_files_in_the_working_folder_are_not_imported(
    tmp_path: Path,
    write_pictures: Callable[[Path, int], Path],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
) -> None:
    folder = write_pictures(tmp_path / "pictures", 4)
    (tmp_path / "PIL.py").write_text("raise SystemExit('the wrong PIL')")
    monkeypatch.chdir(tmp_path)

    summary = clip_inference(
        folder, "output", clip_model="hash:16", num_prepro_workers=1, device=device, output_partition_count=2
    )

    assert summary.stats.image_count == 4
