"""What is shown of a run while it goes: counts of all workers, rate and shares of a window, a settled limit."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from clip_retrieval.inference.telemetry.bar import Figures, Lines, show_bar
from clip_retrieval.inference.telemetry.live import SECONDS_TO_SETTLE, Live, News, Teller, repeating
from clip_retrieval.inference.telemetry.stats import Stats
from clip_retrieval.inference.telemetry.wip import followed, remove_wip
from clip_retrieval.layout import EmbeddingsFolder, Partition
from clip_retrieval.words import in_words


class Clock:
    """A clock that only tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def part(seconds: float, **durations: float) -> dict[str, object]:
    """Return the figures of a partition that a worker with two readers has made for so long."""
    figures = {"total_duration": seconds, "reader_duration": 2 * seconds, "reader_count": 2, **durations}
    return {**Stats().to_json(), **figures}


def run_for(live: Live, clock: Clock, seconds: int, rows: int, **shares: float) -> None:
    """Let one worker tell its news each second; shares are of a second."""
    for second in range(seconds + 1):
        durations = {name: share * second for name, share in shares.items()}
        live.hear(0, News(rows=rows if second else 0, dropped=0, part=part(second, **durations), total=10_000))
        clock.now += 1
    clock.now -= 1


def test_counts_of_several_workers_are_added() -> None:
    live = Live(4)

    live.hear(7, News(rows=10, dropped=1, part=part(1.0), total=100))
    live.hear(8, News(rows=20, dropped=0, part=part(1.0), total=50))
    live.hear(7, News(part=part(2.0), total=100, is_end=True))
    live.hear(7, News(rows=5, dropped=0, part=part(0.5), total=100))
    view = live.look()

    assert (view.rows, view.dropped, view.total) == (35, 1, 150)
    assert (view.partitions_done, view.partition_count) == (1, 4)
    assert view.stats.total_duration == 3.5
    assert live.machine().readers == 4


def test_the_rate_is_that_of_the_window_not_of_the_whole_run() -> None:
    clock = Clock()
    live = Live(1, clock)
    run_for(live, clock, 100, rows=1)
    for second in range(101, 141):
        clock.now += 1
        live.hear(0, News(rows=50, dropped=0, part=part(second), total=10_000))

    view = live.look()

    assert view.rate == pytest.approx(50)
    assert view.seconds_left == pytest.approx((10_000 - view.done) / 50)


def test_the_rate_falls_while_nothing_is_heard() -> None:
    clock = Clock()
    live = Live(1, clock)
    run_for(live, clock, 30, rows=10)
    clock.now += 30

    assert live.look().rate == pytest.approx(5)


def test_the_limit_is_named_when_it_has_stayed_for_a_while() -> None:
    clock = Clock()
    live = Live(1, clock)
    run_for(live, clock, 10, rows=10, inference_duration=0.95)
    early = live.look()
    clock.now += SECONDS_TO_SETTLE

    assert early.settled is None
    settled = live.look().settled
    assert settled is not None
    assert settled.limit == "encoder"
    assert str(live.look().shares) == "read 0 % decode 0 % encode 95 % write 0 %"


def test_a_run_without_news_is_shown_as_nothing() -> None:
    view = Live(1).look()

    assert (view.done, view.total, view.rate, view.seconds_left, view.settled) == (0, None, 0.0, None, None)


def test_lines_say_how_far_it_is_and_once_what_the_limit_is(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    live = Live(1, clock)
    lines = Lines(live)
    with caplog.at_level(logging.INFO):
        lines()
        run_for(live, clock, 40, rows=100, inference_duration=0.9, write_duration=0.02, reader_decode_duration=0.6)
        lines()
        lines()

    words = "4,000 of about 10,000 samples, 100.0/s, 60 s left; read 0 % decode 30 % encode 90 % write 2 %"
    limit = "the encoder is the limit (90 % of the time): that is how it should be"
    assert caplog.messages == [words, limit, words]


def test_the_bar_ends_at_the_last_count(tmp_path: Path) -> None:
    live = Live(1)
    with (tmp_path / "terminal").open("w") as file, show_bar(live, Console(file=file, force_terminal=True, width=120)):
        live.hear(0, News(rows=1234, dropped=0, part=part(1.0), total=1234))

    assert "1,234 of about 1,234" in (tmp_path / "terminal").read_text()


@pytest.mark.parametrize(("seconds", "words"), [(45, "45 s"), (750, "12 min"), (12_000, "3 h 20 min")])
def test_durations_have_the_unit_that_suits_them(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_a_teller_sends_the_figures_of_its_partition() -> None:
    heard: list[News] = []
    teller, stats = Teller(heard.append), Stats(reader_count=3)
    teller.estimate_total = lambda: 42

    teller.begin(stats)
    stats.sample_count = 5
    teller.advance(5, 1)
    teller.end()

    assert [(news.rows, news.dropped, news.total, news.is_end) for news in heard] == [
        (0, 0, 42, False), (5, 1, 42, False), (0, 0, 42, True),
    ]  # fmt: skip
    assert heard[1].part is not None
    assert (heard[1].part["sample_count"], heard[1].part["reader_count"]) == (5, 3)


def test_repeating_ends_with_its_block() -> None:
    calls: list[int] = []
    with repeating(0.001, lambda: calls.append(1)):
        while not calls:
            pass

    count = len(calls)
    time.sleep(0.01)
    assert count == len(calls)


def test_a_partition_has_a_wip_file_only_while_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip_retrieval.inference.telemetry.wip.SECONDS_BETWEEN_WRITES", 0.001)
    folder, partition, live, stats = EmbeddingsFolder(str(tmp_path)), Partition(3, 20, 0, 1), Live(1), Stats()
    stats.sample_count = 7
    wip = tmp_path / "stats" / "wip_3.json"

    with followed(stats, partition, folder, live.teller()):
        while not wip.exists():
            pass
        assert folder.read_json("stats/wip_3.json")["sample_count"] == 7

    assert not wip.exists()
    assert live.look().partitions_done == 1


def test_a_partition_that_fails_is_not_done_and_leaves_no_wip_file(tmp_path: Path) -> None:
    folder, live = EmbeddingsFolder(str(tmp_path)), Live(1)
    folder.write_json("stats/wip_0.json", {})

    with pytest.raises(KeyError), followed(Stats(), Partition(0, 1, 0, 1), folder, live.teller()):
        raise KeyError

    assert not (tmp_path / "stats/wip_0.json").exists()
    assert live.look().partitions_done == 0


def test_what_a_killed_run_left_is_removed_but_not_that_of_others(tmp_path: Path) -> None:
    folder = EmbeddingsFolder(str(tmp_path))
    for name in ("wip_0", "wip_1", "0"):
        folder.write_json(f"stats/{name}.json", {})

    remove_wip(folder, [Partition(0, 2, 0, 1)])

    assert folder.names("stats", ".json") == ["0.json", "wip_1.json"]


@pytest.mark.parametrize(("width", "lines"), [(80, 2), (140, 1)])
def test_a_narrow_terminal_gets_the_shares_in_a_second_line(width: int, lines: int) -> None:
    clock, progress = Clock(), Progress()
    live = Live(1, clock)
    run_for(live, clock, 10, rows=10, inference_duration=0.9)
    progress.add_task("embedding")

    assert len(str(Figures(live, width).render(progress.tasks[0])).splitlines()) == lines
