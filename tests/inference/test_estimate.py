"""What a run will need, out of what a sample took: arithmetic with round figures."""

from __future__ import annotations

import dataclasses

import pytest

from clip_retrieval.inference.dry_run.estimate import Estimate, Measured, Task

GIGABYTE = 10**9
MEASURED = Measured(
    samples=50, rows=40, reasons={"image:decode": 10}, load_seconds=5.0, source_seconds=0.0001, read_seconds=0.01,
    decode_seconds=0.04, encode_seconds=0.002, write_seconds=0.0001, embedding_bytes=1000.0, other_bytes=200.0,
    partition_bytes=5000.0, base_bytes=GIGABYTE, encoder_bytes=2 * GIGABYTE, batch_bytes=GIGABYTE,
    reader_bytes=GIGABYTE // 10,
)  # fmt: skip
TASK = Task(
    samples=100_000, certainty="exact", partition_count=4, missing_share=0.5, missing_count=2, devices=["cuda:0"],
    readers=10, cores=10, memory_limit=100 * GIGABYTE, disk_free=GIGABYTE, output_folder="out",
)  # fmt: skip


def estimate(**changes: object) -> Estimate:
    names = {field.name for field in dataclasses.fields(Task)}
    task = {name: value for name, value in changes.items() if name in names}
    measured = {name: value for name, value in changes.items() if name not in names}
    return Estimate(
        task=dataclasses.replace(TASK, **task),  # type: ignore[arg-type]  # of the fields' types
        measured=dataclasses.replace(MEASURED, **measured),  # type: ignore[arg-type]
    )


def test_only_what_is_not_done_yet_counts() -> None:
    assert (estimate().samples, estimate().rows) == (50_000, 40_000)


def test_the_slowest_part_decides() -> None:
    assert estimate().samples_per_second == pytest.approx(200)
    assert estimate().seconds == pytest.approx(5 + 50_000 / 200)
    assert estimate().rates.limit == "decode"
    assert estimate(encode_seconds=1.0).samples_per_second == pytest.approx(1)
    assert estimate(encode_seconds=1.0).rates.limit == "encode"
    assert estimate(read_seconds=1.0).rates.limit == "read"
    assert estimate(source_seconds=0.1).samples_per_second == pytest.approx(10)
    assert estimate(source_seconds=0.1).rates.limit == "source"


def test_more_readers_than_cores_do_not_decode_faster() -> None:
    assert estimate(readers=20).rates.decode == estimate().rates.decode
    assert estimate(readers=20).rates.read == 2 * estimate().rates.read


def test_on_a_cpu_decoding_and_encoding_share_the_cores() -> None:
    shared = estimate(devices=["cpu"], decode_seconds=0.04, encode_seconds=0.004, read_seconds=0.0)

    assert shared.samples_per_second == pytest.approx(1 / (0.004 + 0.004))


def test_memory_and_disk_are_sums_of_their_parts() -> None:
    assert estimate(devices=["cuda:0", "cuda:1"]).memory == {
        "python": 2 * GIGABYTE, "encoder": 4 * GIGABYTE, "batches": 2 * GIGABYTE, "readers": 2 * GIGABYTE,
    }  # fmt: skip
    assert estimate().disk == {"embeddings": 40_000_000, "metadata": 8_010_000}


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({}, None),
        ({"disk_free": 1_000_000}, "does not fit: it writes 48.0 MB, 1.0 MB are free for out"),
        ({"memory_limit": 5 * GIGABYTE},
         "memory is short: 5.0 GB of 5.0 GB; a smaller --batch_size or fewer --num_prepro_workers need less"),
        ({"memory_limit": None, "disk_free": None}, None),
        ({"certainty": "assumed"},
         "the samples of the tars could not be counted: their number is what the options assume"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(changes: dict[str, object], warning: str | None) -> None:
    assert estimate(**changes).warnings == ([] if warning is None else [warning])


def test_a_system_that_tells_no_memory_has_none_in_its_estimate() -> None:
    assert estimate(base_bytes=None).memory is None
    assert estimate(base_bytes=None).to_json()["memory_bytes"] is None
