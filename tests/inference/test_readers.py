"""Readers that die or hang: the run goes on, a sample is blamed only where it ends one reader after the other."""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from clip_retrieval import clip_inference
from clip_retrieval.blobs import BlobRef
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import WorkerError
from clip_retrieval.inference.readers.link import ReaderLink
from clip_retrieval.inference.readers.loader import CHUNK_SIZE, Loader
from clip_retrieval.inference.readers.prepare import Wanted
from clip_retrieval.inference.readers.shared_pixels import SharedPixels
from clip_retrieval.inference.types import Row
from clip_retrieval.sources.types import Failure, Origin, Sample

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="samples that kill their reader need a shell and poll")

WANTED = Wanted(
    image=True, text=True, metadata=False, all_parts=False, preprocess=Preprocess(8, (0.5,) * 3, (0.5,) * 3)
)
COUNT = 2 * CHUNK_SIZE + 3
BAD = CHUNK_SIZE + 5
KILLS = BlobRef("pipe:kill -9 $PPID; sleep 9")  # the shell's parent is the reader

MakeSamples = Callable[..., list[Sample]]


@pytest.fixture
def make_samples(make_jpeg: Callable[[int], bytes]) -> MakeSamples:
    """Give a function that makes samples; `changes` are made to the one at BAD."""
    pictures = [make_jpeg(seed) for seed in range(5)]

    def make(**changes: object) -> list[Sample]:
        samples = [
            Sample(str(i), str(i), pictures[i % 5], f"text {i}".encode(), None, Origin("a.tar", i, 1))
            for i in range(COUNT)
        ]
        samples[BAD] = dataclasses.replace(samples[BAD], **changes)  # type: ignore[arg-type]
        return samples

    return make


def test_a_reader_keeps_memory_that_it_uses_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "123456")
    pixels = SharedPixels.create((1, CHUNK_SIZE, 8, 8, 3))
    link = ReaderLink(pixels.note(0), 60.0)
    try:
        environment = Path(f"/proc/{link.process.pid}/environ").read_bytes().split(b"\0")
    finally:
        link.give_up()
        link.close()
        pixels.close()
    assert b"MALLOC_TRIM_THRESHOLD_=8388608" in environment
    assert b"MALLOC_MMAP_THRESHOLD_=123456" in environment  # the user's own


def load(
    items: Iterator[Sample] | list[Sample], readers: int = 1, wanted: Wanted = WANTED, seconds: float = 0.0
) -> tuple[list[Row], list[bytes], list[Failure]]:
    """Return all rows, the pixels of each picture, and all failures."""
    loader = Loader(wanted, 7, readers, seconds)
    rows: list[Row] = []
    pixels: list[bytes] = []
    failures: list[Failure] = []
    try:
        for batch in loader.batches(items):
            assert batch.pixels is not None
            rows += batch.rows
            pixels += [picture.tobytes() for picture in batch.pixels]
            failures += batch.failures
    finally:
        loader.close()
    return rows, pixels, failures


def once(flag: Path, command: str, picture: Path) -> BlobRef:
    """Return a picture whose first reader meets `command`."""
    place, file = shlex.quote(str(flag)), shlex.quote(str(picture))
    return BlobRef(f"pipe:test -e {place} || {{ touch {place}; {command}; }}; cat {file}")


@pytest.mark.parametrize("readers", [1, 2])
def test_a_picture_that_kills_its_readers_is_blamed_and_the_rest_goes_on(
    make_samples: MakeSamples, readers: int
) -> None:
    rows, pixels, failures = load(make_samples(image=KILLS), readers)

    good_rows, good_pixels, _ = load(make_samples(), 0)
    assert [row.key for row in rows] == [row.key for row in good_rows]
    assert [row.caption for row in rows] == [row.caption for row in good_rows]
    assert [row.key for row in rows if not row.has_image] == [str(BAD)]
    assert pixels == good_pixels[:BAD] + good_pixels[BAD + 1 :]
    detail = "each reader process that prepared it was killed by signal 9"
    assert failures == [Failure(str(BAD), "a.tar", "image", "killed_reader", detail, row_kept=True)]


def test_without_a_caption_the_blamed_sample_has_no_row(make_samples: MakeSamples) -> None:
    rows, _, failures = load(make_samples(image=KILLS, text=None))

    assert [row.key for row in rows] == [str(i) for i in range(COUNT) if i != BAD]
    assert [(failure.part, failure.reason, failure.row_kept) for failure in failures] == [
        ("image", "killed_reader", False)
    ]


def test_a_sample_that_kills_by_its_caption_is_left_out(make_samples: MakeSamples) -> None:
    rows, pixels, failures = load(make_samples(text=KILLS))

    assert [row.key for row in rows] == [str(i) for i in range(COUNT) if i != BAD]
    assert len(pixels) == COUNT - 1
    assert [(failure.key, failure.part, failure.reason, failure.row_kept) for failure in failures] == [
        (str(BAD), "other", "killed_reader", False)
    ]


def test_a_sample_that_kills_once_is_not_blamed(
    make_samples: MakeSamples, make_jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(make_jpeg(BAD % 5))

    found = load(make_samples(image=once(tmp_path / "flag", "kill -9 $PPID; sleep 9", tmp_path / "a.jpg")))

    assert (tmp_path / "flag").exists()
    assert found == load(make_samples(), 0)


def test_a_picture_that_hangs_is_blamed(make_samples: MakeSamples) -> None:
    rows, pixels, failures = load(make_samples(image=BlobRef("pipe:sleep 30")), seconds=1)

    assert (len(rows), len(pixels)) == (COUNT, COUNT - 1)
    detail = "each reader process that prepared it spent more than 1 s on one sample"
    assert failures == [Failure(str(BAD), "a.tar", "image", "timeout", detail, row_kept=True)]


def test_a_sample_that_hangs_once_is_not_blamed(
    make_samples: MakeSamples, make_jpeg: Callable[[int], bytes], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(make_jpeg(BAD % 5))

    found = load(make_samples(image=once(tmp_path / "flag", "exec sleep 60", tmp_path / "a.jpg")), seconds=1)

    assert found == load(make_samples(), 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_an_idle_reader_that_is_lost_is_replaced(make_samples: MakeSamples, number: int) -> None:
    samples = make_samples()
    loader = Loader(WANTED, COUNT, 1, 1.0)
    list(loader.batches(samples[:1]))

    os.kill(loader.readers.all[0].link.process.pid, number)
    [batch] = loader.batches(samples)

    assert [row.key for row in batch.rows] == [sample.key for sample in samples]
    assert batch.failures == []
    loader.close()


def test_a_stopped_reader_does_not_block_whoever_sends_to_it(make_samples: MakeSamples) -> None:
    samples = make_samples(image=b"\0" * (1 << 21))  # more than a pipe holds
    loader = Loader(WANTED, COUNT, 1, 1.0)
    list(loader.batches(samples[:1]))

    os.kill(loader.readers.all[0].link.process.pid, signal.SIGSTOP)
    [batch] = loader.batches(samples)

    assert [failure.reason for failure in batch.failures] == ["decode"]
    loader.close()


def test_readers_that_cannot_start_end_the_run_with_a_sentence(
    make_samples: MakeSamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "PIL.py").write_text("raise SystemExit(7)")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(WorkerError, match=r"^a reader process ended with code 7 while it started; finished "):
        load(make_samples())


def test_readers_that_are_killed_between_samples_again_and_again_end_the_run(
    make_samples: MakeSamples, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, struct, sys\n"
        "if 'readers.process' in ' '.join(sys.orig_argv):\n"
        "    import clip_retrieval.inference.readers.shared_pixels as place\n"
        "    place.Note.begin = lambda note, number: os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(WorkerError, match=r"^reader processes end again and again: the last one was killed by sig"):
        load(make_samples())


def test_closing_does_not_wait_for_a_reader_that_hangs(make_samples: MakeSamples, hanging: tuple[bytes, Path]) -> None:
    loader = Loader(WANTED, 5, 2)
    next(loader.batches(make_samples(image=hanging[0])))
    while not hanging[1].exists():
        time.sleep(0.01)

    loader.close()

    assert [reader.link.process.poll() for reader in loader.readers.all] == [-signal.SIGKILL] * 2
    assert not any(reader.thread.is_alive() for reader in loader.readers.all)


def test_a_run_with_a_bad_picture_says_so_in_its_failures(
    tmp_path: Path,
    write_pictures: Callable[[Path, int], Path],
    read_table: Callable[[Path, str], pd.DataFrame],
    hanging: tuple[bytes, Path],
) -> None:
    folder = write_pictures(tmp_path / "pictures", 6)
    (folder / "00001.jpg").unlink()
    os.mkfifo(tmp_path / "fifo")
    (folder / "00001.jpg").symlink_to(tmp_path / "fifo")
    (folder / "00003.jpg").write_bytes(hanging[0])

    clip_inference(folder, tmp_path / "output", clip_model="hash:16?size=32", num_prepro_workers=1, reader_timeout=1.0)

    table = read_table(tmp_path / "output", "failures")
    assert table[["key", "part", "reason"]].to_numpy().tolist() == [
        ["00001.jpg", "image", "not_a_file"],
        ["00003.jpg", "image", "timeout"],
    ]
