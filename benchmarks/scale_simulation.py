"""How long, how much and how dear: embedding, indexing and serving of many samples, by simulation and arithmetic.

    python benchmarks/scale_simulation.py                        # the tables of docs/scale.md
    python benchmarks/scale_simulation.py --samples 1e9 --workers 64 --lifetime_hours 6 --gpu_hour 3.2

Workers take partitions as they get free. A worker may be slow, and may die; then its partition begins anew on another,
and a new worker comes after a while. A store answers so many requests and bytes a second. What is measured, and where,
stands beside each rate; prices are examples of 2026-11-30 to be replaced by one's own, not facts.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import math
import random
from dataclasses import dataclass, fields
from typing import Any

HOURS_OF_A_MONTH = 730


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a machine does; the source of each figure is benchmarks/RESULTS.md."""

    samples_per_second: float = 2_500.0  # ViT-L/14 on an H200 with 16 vCPUs, pictures of 256 px (GPU, 2026-11-29)
    bytes_per_sample: float = 19_000.0  # its JPEGs of 256 px
    dimension: int = 768
    metadata_bytes: float = (
        60.0  # parquet, compressed: caption, url and sizes; of one's own data it may be ten times that
    )
    start_seconds: float = 18.0  # from the command to the first batch, and from the last to the end (same run)
    measured_dimension: int = 512  # of what follows; CPU is taken to grow with the dimension
    index_cpu_seconds_per_million: float = 31.0  # 10 M rows under 500 MB and under 12 GB: 310 and 294 CPU s
    small_bytes_per_row: float = 48.3  # OPQ40,PQ40 of 10 M rows: recall@10 0.82
    more_bytes_per_row: float = 40.0  # beside the fp16 rows themselves (1,064 bytes of 512 dimensions), recall 0.99
    small_search_ms: float = 6.3  # CPU of one query in 10 M rows of the small kind
    full_search_ms: float = 0.97  # CPU of one query in 1 M rows of the full kind, recall 0.997
    front_ms: float = 0.5  # CPU of a query in the server before parts (Parts, 2026-11-30)
    front_ms_per_part: float = 0.3  # and for each part
    part_rows: float = 10e6  # rows of an index file, as far as builds were measured
    merge_us_per_list: float = 45.0  # CPU of merging a part into lists of fast scan, for each list (2026-11-30, Zen 3)
    merge_us_per_row: float = 0.7  # and for each row
    copy_bytes_per_second: float = 0.5e9  # of stores, from the embeddings into the index: 1.06 GB took 0.5 to 2.6 s

    @property
    def full_bytes_per_row(self) -> float:
        return 2 * self.dimension + self.more_bytes_per_row

    @property
    def wider(self) -> float:
        """How much more a row is to compute than one of those that were measured."""
        return self.dimension / self.measured_dimension

    @property
    def index_hours_per_million(self) -> float:
        return self.index_cpu_seconds_per_million * self.wider / 3600


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Example prices in dollars of 2026-11-30. Nothing depends on them but the sums."""

    gpu_hour: float = 4.0  # a machine with one GPU and 16 vCPUs
    cpu_hour: float = 0.8  # a machine of 16 cores and 128 GB
    tb_month: float = 23.0  # storage
    million_puts: float = 5.0
    million_gets: float = 0.4


@dataclass(frozen=True, kw_only=True)
class Job:
    """An embedding job on many workers."""

    samples: float = 1e8
    samples_per_partition: int = 100_000  # --write_batch_size
    samples_per_shard: int = 10_000  # of the input: one GET each
    workers: int = 16
    spread: float = 0.1  # standard deviation of a partition's time, of its mean
    slow_share: float = 0.03  # workers that are slow
    slow_factor: float = 2.0
    lifetime_hours: float = 24.0  # mean time until a worker is lost; infinite: never
    notice_seconds: float = 180.0  # until others take its partition: six heartbeats of 30 s
    return_seconds: float = 180.0  # until another one is there
    overhead_seconds: float = 0.25  # of each partition, beside its samples: a task of Slurm (Spark 0.06, Ray 0.0015)
    files_per_partition: float = 5.0  # embeddings, metadata, ledger, stats, attempt
    beat_seconds: float = 30.0  # attempt and stats are written again while a partition is being made
    gets_per_second: float = 5_500.0  # of a prefix, as the largest stores say of themselves
    puts_per_second: float = 3_500.0
    prefixes: int = 1
    store_bytes_per_second: float = math.inf

    @property
    def partitions(self) -> int:
        return math.ceil(self.samples / self.samples_per_partition)

    @property
    def gets_per_partition(self) -> float:
        return math.ceil(self.samples_per_partition / self.samples_per_shard)

    def puts_per_partition(self, rates: Rates) -> float:
        return self.files_per_partition + 2 * self.samples_per_partition / rates.samples_per_second // self.beat_seconds


@dataclass(frozen=True)
class Course:
    """How a job went."""

    seconds: float
    ideal_seconds: float  # without overhead, failures, slow workers and store limits
    busy_seconds: float  # of all workers together
    lost_seconds: float  # of that, work that died with its worker
    deaths: int
    tail_seconds: float  # from the first worker that found nothing to do to the end

    @property
    def efficiency(self) -> float:
        return self.ideal_seconds / self.seconds


def store_seconds(job: Job, rates: Rates) -> float:
    """Return the least seconds a partition takes when all workers ask the store at once and share what it gives."""
    of_requests = max(
        job.gets_per_partition / (job.gets_per_second * job.prefixes),
        job.puts_per_partition(rates) / (job.puts_per_second * job.prefixes),
    )
    of_bytes = job.samples_per_partition * rates.bytes_per_sample / job.store_bytes_per_second
    return job.workers * max(of_requests, of_bytes)


class Fleet:
    """Workers by the time at which they are free, and when each of them will be lost."""

    def __init__(self, job: Job, rates: Rates, draw: random.Random) -> None:
        self.job, self.rates, self.draw = job, rates, draw
        self.free = [(rates.start_seconds, number) for number in range(job.workers)]  # a heap already
        self.lost_at = [self.draw_lifetime() for _ in range(job.workers)]
        self.deaths = 0

    def draw_lifetime(self) -> float:
        hours = self.job.lifetime_hours
        return math.inf if math.isinf(hours) else self.draw.expovariate(1 / (3600 * hours))

    def lose(self, worker: int) -> float:
        """Lose a worker, and send another one in its place; return when it was lost."""
        died = self.lost_at[worker]
        back = died + self.job.return_seconds + self.rates.start_seconds
        self.lost_at[worker] = back + self.draw_lifetime()
        self.deaths += 1
        heapq.heappush(self.free, (back, worker))
        return died


def simulate(job: Job, rates: Rates, seed: int = 0) -> Course:
    """Run a job: each free worker takes the next partition; that of a lost one goes last, once it is missed."""
    draw = random.Random(seed)
    fleet = Fleet(job, rates, draw)
    mean, floor = job.samples_per_partition / rates.samples_per_second, store_seconds(job, rates)
    slow = round(job.slow_share * job.workers)
    retries: list[float] = []  # when each partition of a lost worker is missed
    left, busy, lost, end = job.partitions, 0.0, 0.0, 0.0
    first_idle = math.inf
    while left or retries:
        now, worker = heapq.heappop(fleet.free)
        if left:
            left -= 1
        else:
            first_idle = min(first_idle, now)
            if fleet.lost_at[worker] <= retries[0]:
                fleet.lose(worker)  # while it waits
                continue
            now = max(now, heapq.heappop(retries))
        factor = (job.slow_factor if worker < slow else 1.0) * max(0.1, draw.gauss(1.0, job.spread))
        done = now + job.overhead_seconds + max(floor, mean * factor)
        if done > fleet.lost_at[worker]:
            died = fleet.lose(worker)
            busy, lost = busy + died - now, lost + died - now
            heapq.heappush(retries, died + job.notice_seconds)
            continue
        busy, end = busy + done - now, max(end, done)
        heapq.heappush(fleet.free, (done, worker))
    ideal = job.samples / rates.samples_per_second / job.workers
    tail = max(0.0, end - min(first_idle, min(fleet.free)[0]))
    return Course(end, ideal, busy, lost, fleet.deaths, tail)


def expected_seconds(work: float, lifetime: float) -> float:
    """Return the mean time until `work` seconds were done without a death, each try from the start."""
    return work if math.isinf(lifetime) else lifetime * math.expm1(work / lifetime)


def slowest_of(parts: int, share: float) -> float:
    """Return the share of queries to several parts that meet the slowest `share` of answers of one of them."""
    return 1 - (1 - share) ** parts


@dataclass(frozen=True)
class Serving:
    """An index in memory or on disk, and what answers."""

    bytes: float
    files: int
    machines: int
    cpu_ms: float  # of a query, all machines together; files are taken to cost as much as the measured ones
    front_ms: float
    queries_per_second: float  # of all machines, at 70 % of their cores


def plan_serving(samples: float, rates: Rates, *, is_full: bool, cores: int = 16, gigabytes: float = 100) -> Serving:
    """Return what serves an index: machines enough to hold it in memory, each with several files."""
    per_row = rates.full_bytes_per_row if is_full else rates.small_bytes_per_row
    files = math.ceil(samples / rates.part_rows)
    machines = max(1, math.ceil(samples * per_row / (gigabytes * 1e9)))
    per_file = rates.full_search_ms * rates.part_rows / 1e6 if is_full else rates.small_search_ms
    cpu = files * per_file * rates.wider
    front = rates.front_ms + rates.front_ms_per_part * machines if machines > 1 else 0.0
    return Serving(samples * per_row, files, machines, cpu, front, 0.7 * machines * cores * 1000 / cpu)


@dataclass(frozen=True)
class Building:
    """One index file of all rows, built on one machine: what our planner takes, and what that costs."""

    key: str
    recall: float
    hours: float
    merge_hours: float  # of these; on one core
    index_bytes: float
    peak_bytes: float
    disk_bytes: float  # while building: the index, and the parts beside it


def plan_building(rows: int, dim: int, bytes_per_row: float, rates: Rates, cores: int = 16) -> Building:
    """Return what building takes within so many bytes a row, by the planner's own formulas.

    Its memory and sizes are held to the truth by tests; its time was 1.5 and 0.6 of what 10 M rows took within 500 MB
    and 12 GB.
    """
    from clip_retrieval.index.planning.bounds import Bounds
    from clip_retrieval.index.planning.costs import ROWS_OF_PART, held_bytes
    from clip_retrieval.index.planning.plan import make_plan
    from clip_retrieval.index.planning.shapes import Problem

    bounds = Bounds(max_index_bytes=int(rows * bytes_per_row), available_bytes=10**15, cores=cores)
    problem = Problem(rows=rows, dim=dim, bounds=bounds)
    plan = make_plan(problem)
    parts = math.ceil(rows / ROWS_OF_PART)
    merge = parts * plan.lists * rates.merge_us_per_list + rows * rates.merge_us_per_row if plan.bits == 4 else 0.0
    held = held_bytes(plan, problem)
    copied = (plan.index_bytes - held) / rates.copy_bytes_per_second
    # Parts hold lists; codes of a store too, unless they are in the embeddings, as half precision is.
    parts_bytes = held if plan.store in ("fp16", None) else plan.index_bytes
    return Building(
        plan.key,
        plan.recall,
        (plan.seconds + merge / 1e6 + copied) / 3600,
        merge / 1e6 / 3600,
        plan.index_bytes,
        plan.peak_bytes,
        plan.index_bytes + (parts_bytes if parts > 1 else 0),
    )


def money(job: Job, course: Course, rates: Rates, prices: Prices) -> dict[str, float]:
    """Return dollars by what they are for."""
    stored = job.samples * (2 * rates.dimension + rates.metadata_bytes)
    index_hours = job.samples / 1e6 * rates.index_hours_per_million / 16
    return {
        "GPU": job.workers * course.seconds / 3600 * prices.gpu_hour,
        "index": index_hours * prices.cpu_hour,
        "requests": job.partitions * (
            job.puts_per_partition(rates) * prices.million_puts + job.gets_per_partition * prices.million_gets
        ) / 1e6,
        "storage a month": stored / 1e12 * prices.tb_month,
        "small index a month": serving_month(job.samples, rates, prices, is_full=False),
        "full index a month": serving_month(job.samples, rates, prices, is_full=True),
    }  # fmt: skip


def serving_month(samples: float, rates: Rates, prices: Prices, *, is_full: bool) -> float:
    """Return what the machines cost that hold an index, and the one in front of several."""
    machines = plan_serving(samples, rates, is_full=is_full).machines
    return (machines + (machines > 1)) * HOURS_OF_A_MONTH * prices.cpu_hour


def table(header: str, rows: list[list[str]]) -> None:
    names = header.split(" | ")
    print(f"\n| {header} |\n|{'---|' * len(names)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def print_tables(sizes: list[tuple[Job, str]], rates: Rates, prices: Prices) -> None:
    courses = [(job, name, simulate(job, rates)) for job, name in sizes]
    header = "samples | machines | hours | without losses | lost work | machines lost | last idle to end | partitions"
    table(header, [[name, *describe_course(job, course)] for job, name, course in courses])
    header = "samples | pictures read | embeddings | metadata | store gives | GETs | PUTs | a second"
    table(header, [[name, *describe_store(job, course, rates)] for job, name, course in courses])
    header = "samples | index | size | files | CPU hours to build | machines to hold it | CPU ms a query | q/s of all"
    kinds = [("small", False), ("full", True)]
    listed = [[name, kind, *describe_index(job, rates, is_full=full)] for job, name in sizes for kind, full in kinds]
    table(header, listed)
    paid = [[name, *map(dollars, money(job, course, rates, prices).values())] for job, name, course in courses]
    table("samples | GPU | index | requests | storage a month | small index a month | full index a month", paid)


def print_buildings(rates: Rates) -> None:
    """Print what one file of ever more rows takes to build, within few bytes a row and within enough for whole rows."""
    sizes = [(10**7, "10 M"), (10**8, "100 M"), (10**9, "1 B")]
    table(
        "rows | within a row | kind | size | memory | disk | hours, 16 cores | of these merging, one core | recall@10",
        [
            [name, f"{within:,.0f} B", *describe_building(plan_building(rows, rates.dimension, within, rates))]
            for rows, name in sizes
            for within in (rates.small_bytes_per_row, rates.full_bytes_per_row * 1.1)
        ],
    )


def describe_building(built: Building) -> list[str]:
    gigabytes = [f"{size / 1e9:,.1f} GB" for size in (built.index_bytes, built.peak_bytes, built.disk_bytes)]
    return [built.key, *gigabytes, f"{built.hours:,.2f}", f"{built.merge_hours:,.2f}", f"~{built.recall:.2f}"]


def describe_course(job: Job, course: Course) -> list[str]:
    hours, ideal = course.seconds / 3600, course.ideal_seconds / 3600
    lost = f"{course.lost_seconds / course.busy_seconds:.2%}"
    tail = f"{course.tail_seconds:.0f} s"
    return [str(job.workers), f"{hours:.1f}", f"{ideal:.1f}", lost, str(course.deaths), tail, f"{job.partitions:,}"]


def describe_store(job: Job, course: Course, rates: Rates) -> list[str]:
    read, gets = job.samples * rates.bytes_per_sample, job.partitions * job.gets_per_partition
    puts = job.partitions * job.puts_per_partition(rates)
    return [
        f"{read / 1e12:,.1f} TB",
        f"{job.samples * 2 * rates.dimension / 1e12:,.2f} TB",
        f"{job.samples * rates.metadata_bytes / 1e9:,.0f} GB",
        f"{read / course.seconds / 1e9:.2f} GB/s",
        f"{gets:,.0f}",
        f"{puts:,.0f}",
        f"{(gets + puts) / course.seconds:,.0f}",
    ]


def describe_index(job: Job, rates: Rates, *, is_full: bool) -> list[str]:
    serving = plan_serving(job.samples, rates, is_full=is_full)
    front = f" + {serving.front_ms:.1f} in front" if serving.machines > 1 else ""
    return [
        f"{serving.bytes / 1e9:,.0f} GB",
        f"{serving.files:,}",
        f"{job.samples / 1e6 * rates.index_hours_per_million:,.1f}",
        str(serving.machines),
        f"{serving.cpu_ms:,.0f}{front}",
        f"{serving.queries_per_second:,.0f}",
    ]


def dollars(amount: float) -> str:
    return f"${amount:,.0f}" if amount >= 1 else "below $1"


def print_bends(job: Job, rates: Rates) -> None:
    """Print what happens to one job as one thing after the other gets worse."""
    two_hours: dict[str, Any] = {"lifetime_hours": 2.0}
    slow: dict[str, Any] = {"slow_share": 0.1}
    changed: list[tuple[str, dict[str, Any]]] = [
        ("as above", {}),
        ("machines live 2 hours (preemptible)", two_hours),
        ("the same, partitions of 1,000,000 (400 s)", {**two_hours, "samples_per_partition": 10**6}),
        ("the same, partitions of 10,000,000 (4,000 s)", {**two_hours, "samples_per_partition": 10**7}),
        ("one machine in ten half as fast", slow),
        ("the same, partitions of 10,000,000", {**slow, "samples_per_partition": 10**7}),
        ("a store that gives 1 GB/s", {"store_bytes_per_second": 1e9}),
        ("one object a sample instead of shards", {"samples_per_shard": 1}),
        ("the same, over 16 prefixes", {"samples_per_shard": 1, "prefixes": 16}),
        ("partitions of 1,000 (0.4 s)", {"samples_per_partition": 1_000, "samples_per_shard": 1_000}),
    ]
    rows = []
    for name, options in changed:
        course = simulate(dataclasses.replace(job, **options), rates)
        lost, tail = f"{course.lost_seconds / course.busy_seconds:.1%}", f"{course.tail_seconds:,.0f} s"
        rows.append([name, f"{course.seconds / 3600:.1f}", f"{course.efficiency:.0%}", lost, tail])
    table("what is worse | hours | of the ideal | lost work | last idle to end", rows)
    waits = [[str(parts), f"{slowest_of(parts, 0.01):.0%}"] for parts in (1, 4, 16, 100)]
    table("parts | queries that wait for the slowest hundredth of some part", waits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    groups = (Rates, Prices, Job)
    for group in groups:
        for field in fields(group):
            parser.add_argument(f"--{field.name}", type=type(field.default), default=None)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    rates, prices, job = (
        group(**{field.name: given[field.name] for field in fields(group) if field.name in given}) for group in groups
    )
    assert isinstance(rates, Rates)
    assert isinstance(prices, Prices)
    assert isinstance(job, Job)
    usual = [(1e8, 4, "100 M"), (1e9, 32, "1 B"), (5e9, 128, "5 B")]
    sizes = [(dataclasses.replace(job, samples=samples, workers=workers), name) for samples, workers, name in usual]
    if "samples" in given or "workers" in given:
        sizes = [(job, f"{job.samples:,.0f}")]
    print_tables(sizes, rates, prices)
    print_buildings(rates)
    print_bends(sizes[min(1, len(sizes) - 1)][0], rates)


if __name__ == "__main__":
    main()
