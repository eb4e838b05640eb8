"""Figures of a partition: what their names say, whoever feeds them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clip_retrieval import clip_inference
from clip_retrieval.inference.telemetry.live import Live, News
from clip_retrieval.inference.telemetry.stats import Stats, add_up
from clip_retrieval.inference.types import Batch, Row
from clip_retrieval.layout import EmbeddingsFolder
from clip_retrieval.sources.types import Failure

UPSTREAM = {
    "start_time", "end_time", "read_duration", "inference_duration", "write_duration", "total_duration", "sample_count",
}  # fmt: skip


def row(key: str, caption: str | None = None) -> Row:
    return Row(key=key, image_path=key, caption=caption, metadata=None, origin=None, has_image=True)


def test_a_partition_has_upstreams_figures_in_seconds_since_1970(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path]
) -> None:
    before = time.time()
    write_pictures(tmp_path / "in", 40)
    clip_inference(
        str(tmp_path / "in"), str(tmp_path / "out"), clip_model="hash:8?size=32", batch_size=8, num_prepro_workers=1
    )
    after = time.time()

    figures = EmbeddingsFolder(str(tmp_path / "out")).read_json("stats/0.json")

    assert set(figures) >= UPSTREAM
    assert before <= figures["start_time"] <= figures["end_time"] <= after
    assert figures["total_duration"] == pytest.approx(figures["end_time"] - figures["start_time"], abs=0.05)
    assert figures["sample_count"] == figures["image_count"] == figures["text_count"] == 40
    assert figures["rate"] == pytest.approx(40 / figures["total_duration"])
    assert figures["reader_read_duration"] > 0
    assert figures["reader_decode_duration"] > 0


def test_threads_do_not_lose_each_others_counts() -> None:
    stats = Stats()
    batch = Batch(
        rows=[row("a", "text"), row("b")],
        pixels=None,
        failures=[Failure("c", "", "image", "decode", "")],
        dropped_count=1,
        read_seconds=0.25,
        decode_seconds=0.5,
    )

    def feed() -> None:
        for _ in range(500):
            stats.count_batch(batch)
            with stats.timing("write_duration"):
                pass

    threads = [threading.Thread(target=feed) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (stats.sample_count, stats.skipped_count, stats.text_count) == (4000, 2000, 2000)
    assert stats.reasons == {"image:decode": 2000}
    assert (stats.reader_read_duration, stats.reader_decode_duration) == (500.0, 1000.0)


def test_sourcing_counts_the_time_of_what_is_waited_for_and_passes_everything_on() -> None:
    stats = Stats()

    def slow() -> Iterator[str | None]:
        time.sleep(0.02)
        yield from ("a", None, "b")

    got = []
    for item in stats.sourcing(slow()):
        got.append(item)
        time.sleep(0.02)

    assert got == ["a", None, "b"]
    assert 0.02 <= stats.source_duration < 0.04
    assert stats.read_duration == 0


def test_sums_take_parts_that_an_older_release_wrote() -> None:
    old = {
        "sample_count": 3, "skipped_count": 0, "image_count": 3, "text_count": 0, "truncated_captions": 0,
        "reasons": {}, "start_time": 5.0, "end_time": 7.0, "read_duration": 1.0,
        "inference_duration": 1.0, "write_duration": 0.0, "total_duration": 2.0,
    }  # fmt: skip

    total = add_up([old, {**old, "start_time": 4.0}])

    assert (total.sample_count, total.start_time, total.end_time, total.total_duration) == (6, 4.0, 7.0, 4.0)
    assert total.rate == 1.5


def test_readers_have_the_seconds_of_all_of_them() -> None:
    stats = Stats(reader_count=3)
    stats.finish()

    assert stats.reader_duration == pytest.approx(3 * stats.total_duration)


def test_a_run_says_how_busy_its_stages_were_and_what_the_limit_is(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path]
) -> None:
    write_pictures(tmp_path / "in", 60)
    summary = clip_inference(
        str(tmp_path / "in"), str(tmp_path / "out"), clip_model="hash:8?size=32", batch_size=8, num_prepro_workers=2
    )
    told = summary.to_json()

    assert set(told["shares"]) == {"wait", "encode", "write", "source", "read", "decode"}
    assert 0 < told["shares"]["encode"] <= 1
    assert 0 < told["shares"]["decode"] <= 1
    assert summary.stats.reader_count == 2
    assert summary.stats.reader_duration == pytest.approx(2 * summary.stats.total_duration)
    assert (told["limit"], told["diagnosis"]) == (summary.diagnosis.limit, summary.diagnosis.sentence)
    assert told["rate"] == pytest.approx(60 / summary.wall_seconds, rel=0.01)


def test_what_a_killed_run_left_of_its_figures_is_gone_after_the_next(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path]
) -> None:
    write_pictures(tmp_path / "in", 4)
    folder = EmbeddingsFolder(str(tmp_path / "out"))
    folder.write_json("stats/wip_1.json", {"sample_count": 1})
    clip_inference(
        str(tmp_path / "in"), folder.url, clip_model="hash:8?size=32", output_partition_count=2, num_prepro_workers=0
    )

    assert folder.names("stats", ".json") == ["0.json", "1.json"]


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_workers_tell_what_they_do_batch_by_batch(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path], monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    write_pictures(tmp_path / "in", 40)
    seen: list[tuple[int, bool]] = []
    hear = Live.hear

    def hear_and_look(live: Live, worker: int, news: News) -> None:
        hear(live, worker, news)
        seen.append((live.look().done, news.part is not None))

    monkeypatch.setattr(Live, "hear", hear_and_look)
    clip_inference(
        str(tmp_path / "in"), str(tmp_path / "out"), clip_model="hash:8?size=32", device=device, batch_size=10,
        output_partition_count=2, num_prepro_workers=0,
    )  # fmt: skip

    assert seen[-1] == (40, True)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({done for done, _ in seen}) >= 4
