"""The arithmetic of benchmarks/scale_simulation.py in cases with a known answer: one worker, no failures, one limit."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks/scale_simulation.py"


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale_simulation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def plain(scale: ModuleType, **options: Any) -> Any:
    """Return a job without slow workers, failures, spread and overhead; a partition takes 10 s at 100 samples/s."""
    usual: dict[str, Any] = {
        "samples": 20_000, "samples_per_partition": 1_000, "workers": 1, "spread": 0.0, "slow_share": 0.0,
        "lifetime_hours": math.inf, "overhead_seconds": 0.0,
    }  # fmt: skip
    return scale.Job(**usual | options)


def rates(scale: ModuleType, **options: Any) -> Any:
    return scale.Rates(**{"samples_per_second": 100.0, "start_seconds": 0.0, **options})


def test_one_worker_without_failures_takes_the_sum_of_its_partitions(scale: ModuleType) -> None:
    course = scale.simulate(plain(scale), rates(scale))
    assert course.seconds == pytest.approx(200)
    assert (course.efficiency, course.lost_seconds, course.deaths) == (pytest.approx(1), 0, 0)
    late = scale.simulate(plain(scale, overhead_seconds=2.0), rates(scale, start_seconds=7.0))
    assert late.seconds == pytest.approx(7 + 20 * 12)


@pytest.mark.parametrize(("workers", "seconds"), [(2, 100), (4, 50), (3, 70), (20, 10), (50, 10)])
def test_equal_workers_share_the_partitions(scale: ModuleType, workers: int, seconds: int) -> None:
    assert scale.simulate(plain(scale, workers=workers), rates(scale)).seconds == pytest.approx(seconds)


def test_a_slow_worker_costs_no_more_than_its_last_partition(scale: ModuleType) -> None:
    course = scale.simulate(plain(scale, workers=2, slow_share=0.5, slow_factor=3.0), rates(scale))
    assert course.seconds == pytest.approx(150)  # fifteen of one while the other makes five
    assert course.busy_seconds == pytest.approx(15 * 10 + 5 * 30)


def test_every_partition_is_made_once_however_many_workers_die(scale: ModuleType) -> None:
    job = plain(scale, samples=10**6, workers=8, lifetime_hours=0.02)
    course = scale.simulate(job, rates(scale))
    assert course.deaths > 50
    assert course.busy_seconds - course.lost_seconds == pytest.approx(10**6 / 100)
    assert course.seconds > course.ideal_seconds


def test_lost_work_is_what_the_exponential_distribution_says(scale: ModuleType) -> None:
    job = plain(scale, samples=2 * 10**7, lifetime_hours=20 / 3600, notice_seconds=0.0, return_seconds=0.0)
    course = scale.simulate(job, rates(scale))
    assert course.busy_seconds / job.partitions == pytest.approx(scale.expected_seconds(10.0, 20.0), rel=0.05)
    assert scale.expected_seconds(10.0, math.inf) == 10.0
    assert scale.expected_seconds(1.0, 1e6) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("workers", [40, 80])
def test_a_store_that_is_the_limit_decides_whatever_the_workers_are(scale: ModuleType, workers: int) -> None:
    by_gets = plain(scale, samples=800_000, workers=workers, samples_per_shard=1, gets_per_second=1_000.0)
    assert scale.simulate(by_gets, rates(scale)).seconds == pytest.approx(800)
    more = plain(scale, samples=800_000, workers=workers, samples_per_shard=1, gets_per_second=1_000.0, prefixes=2)
    assert scale.simulate(more, rates(scale)).seconds == pytest.approx(400)
    by_bytes = plain(scale, samples=800_000, workers=workers, store_bytes_per_second=1e6)
    assert scale.simulate(by_bytes, rates(scale, bytes_per_sample=1_000.0)).seconds == pytest.approx(800)


def test_requests_are_counted_by_partition(scale: ModuleType) -> None:
    job = plain(scale, samples=10_000, samples_per_partition=5_000, samples_per_shard=1_000)
    assert (job.partitions, job.gets_per_partition, job.puts_per_partition(rates(scale))) == (2, 5, 5 + 3)


def test_money_is_hours_times_prices(scale: ModuleType) -> None:
    job, prices = plain(scale, samples=360_000, workers=2), scale.Prices(gpu_hour=3.0)
    course = scale.simulate(job, rates(scale))
    assert scale.money(job, course, rates(scale), prices)["GPU"] == pytest.approx(3.0)


def test_serving_costs_a_month_of_machines_and_of_one_in_front_of_several(scale: ModuleType) -> None:
    prices = scale.Prices(cpu_hour=1.0)
    assert scale.serving_month(1e7, scale.Rates(), prices, is_full=False) == 730
    assert scale.serving_month(1e8, scale.Rates(), prices, is_full=True) == 3 * 730


def test_more_parts_wait_more_often_for_a_slow_one(scale: ModuleType) -> None:
    assert scale.slowest_of(1, 0.01) == pytest.approx(0.01)
    assert scale.slowest_of(2, 0.5) == pytest.approx(0.75)


def test_an_index_that_fits_needs_one_machine_and_no_server_in_front(scale: ModuleType) -> None:
    small = scale.plan_serving(1e7, scale.Rates(), is_full=False)
    assert (small.machines, small.files, small.front_ms) == (1, 1, 0.0)
    large = scale.plan_serving(1e9, scale.Rates(), is_full=True)
    assert large.machines == math.ceil(1_576e9 / 100e9)  # 768 numbers of 2 bytes, and 40
    assert large.front_ms > 0


def test_one_file_of_whole_rows_is_built_with_its_lists_in_memory(scale: ModuleType) -> None:
    small, large = (scale.plan_building(rows, 512, 1_170, scale.Rates()) for rows in (10**7, 10**9))
    assert small.key == "OPQ64_512,IVF4096,PQ64x4fs,Refine(SQfp16)"
    assert large.peak_bytes < large.index_bytes / 20
    assert 80 < large.index_bytes / small.index_bytes < 120
    assert large.disk_bytes == pytest.approx(large.index_bytes + 40e9, rel=0.01)  # parts: codes of 32 bytes and ids
    assert 0 < large.merge_hours < 1 < large.hours
