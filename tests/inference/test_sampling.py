"""A small part of an input, and how many samples the whole has: exact, estimated or assumed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from clip_retrieval.inference.dry_run.sampling import MOST_SAMPLES, Sampling, spread, take_sample
from clip_retrieval.sources import open_source
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.types import Failure, Sample

WriteShards = Callable[[Path, int, int], Path]


def look(place: object, kind: str = "webdataset", assumed: int = 10_000) -> Sampling:
    config = SourceConfig(input_dataset=str(place), input_format=kind)  # type: ignore[arg-type]  # a word of a test
    return take_sample(open_source(config, "none"), assumed)


@pytest.mark.parametrize(
    ("count", "most", "places"), [(0, 4, []), (1, 4, [0]), (3, 4, [0, 1, 2]), (100, 4, [12, 37, 62, 87])]
)
def test_places_are_spread_over_all(count: int, most: int, places: list[int]) -> None:
    assert spread(count, most) == places


def test_of_a_folder_samples_from_all_over_are_taken_and_all_are_counted(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path]
) -> None:
    taken = look(write_pictures(tmp_path, 200), "files")

    assert (taken.total, taken.certainty, len(taken.source.items)) == (200, "exact", MOST_SAMPLES)
    assert (taken.source.items[0].key, taken.source.items[-1].key) == ("00001.jpg", "00198.jpg")
    assert list(taken.source.read(3, 5)) == taken.source.items[3:5]


def test_a_few_small_tars_are_counted_to_their_end(tmp_path: Path, write_shards: WriteShards) -> None:
    taken = look(write_shards(tmp_path, 3, 20))

    assert (taken.total, taken.certainty, len(taken.source.items)) == (60, "exact", 48)


def test_of_many_tars_a_few_are_counted(tmp_path: Path, write_shards: WriteShards) -> None:
    taken = look(write_shards(tmp_path, 9, 7))

    assert (taken.total, taken.certainty, len(taken.source.items)) == (63, "estimated", 28)


def test_of_a_long_tar_the_beginning_is_counted_and_the_rest_is_estimated_by_its_bytes(
    tmp_path: Path, write_shards: WriteShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_retrieval.inference.dry_run.sampling.SECONDS_TO_COUNT", 0)
    taken = look(write_shards(tmp_path, 5, 200))

    assert taken.certainty == "estimated"
    assert taken.total == pytest.approx(1000, rel=0.1)


def test_what_cannot_be_counted_is_what_the_options_assume(
    tmp_path: Path, write_shards: WriteShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_retrieval.inference.dry_run.sampling.SECONDS_TO_COUNT", 0)
    write_shards(tmp_path, 2, 40)
    taken = look(f"pipe:cat {tmp_path}/00{{0..1}}.tar", assumed=70)

    assert (taken.total, taken.certainty) == (140, "assumed")


def test_damage_is_among_what_is_taken(
    tmp_path: Path,
    write_tar: Callable[[Path, Iterable[tuple[str, bytes]]], Path],
    make_sample: Callable[[int], list[tuple[str, bytes]]],
) -> None:
    whole = write_tar(tmp_path / "0.tar", [member for number in range(4) for member in make_sample(number)])
    (tmp_path / "0.tar").write_bytes(whole.read_bytes()[:-9000])
    taken = look(tmp_path / "0.tar")

    kinds = [type(item) for item in taken.source.items]
    assert kinds.count(Failure) == 1
    assert (taken.total, taken.certainty) == (kinds.count(Sample), "exact")


def test_a_source_that_is_slow_is_measured(tmp_path: Path, write_shards: WriteShards) -> None:
    write_shards(tmp_path, 1, 20)

    slow = look(f"pipe:sleep 0.4; cat {tmp_path}/000.tar")

    assert slow.seconds >= 0.4 / 20
    assert look(tmp_path / "000.tar").seconds < slow.seconds
