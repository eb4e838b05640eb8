"""Runs tasks on the Spark cluster that the caller, spark-submit or Spark's own configuration names."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar
from uuid import uuid4

from pyspark import TaskContext
from pyspark.sql import SparkSession

from clip_retrieval.clusters.base import Checked, Shared, ShowProgress, why_unreachable
from clip_retrieval.clusters.failures import explain_failure
from clip_retrieval.errors import ClusterError, ConfigError
from clip_retrieval.progress import show_progress

logger = logging.getLogger(__name__)

APP_NAME = "clip-retrieval"
SECONDS_BETWEEN_LOOKS = 0.25
SECONDS_TO_WORRY = 60.0
# Spark logs a Java traceback for every failed try; the final failure is reported in one sentence.
QUIET = {"spark.log.level": "FATAL", "spark.ui.showConsoleProgress": "false"}

Task = TypeVar("Task")


class SparkCluster:
    """Runs tasks on executors, shows progress, and reports a failure in one sentence."""

    rows_of_task: int | None = None
    is_here = False

    @property
    def gpu_of_task(self) -> Callable[[], str | None]:
        return gpu_of_task

    def __init__(self, session: SparkSession, show: ShowProgress = show_progress) -> None:
        self.context, self.show = session.sparkContext, show
        self.name = str(self.context.master)
        self.cores_of_task: int | None = int(self.context.getConf().get("spark.task.cpus") or 1)

    def share(self, value: bytes) -> Shared:
        """Broadcast a value to every executor; tasks read the result's `value`."""
        shared: Shared = self.context.broadcast(value)
        return shared

    def run(self, title: str, function: Callable[[Task], None], tasks: Sequence[Task]) -> None:
        """Run the function on every task, anywhere; raises ClusterError when one has failed for good."""
        failures: list[Exception] = []
        group = f"{title} {uuid4().hex[:8]}"

        def submit() -> None:
            try:
                self.context.setJobGroup(group, title)
                self.context.parallelize(tasks, len(tasks)).foreach(Checked(function))
            except Exception as error:  # reported by the thread that waits  # noqa: BLE001
                failures.append(error)

        thread = threading.Thread(target=submit, name=group, daemon=True)
        thread.start()
        try:
            self.watch(thread, title, group, len(tasks))
        except BaseException:
            self.context.cancelJobGroup(group)
            raise
        if failures:
            raise ClusterError(f"{title} on {self.name} failed: {explain_failure(failures[0])}") from failures[0]

    def watch(self, thread: threading.Thread, title: str, group: str, count: int) -> None:
        """Wait for the tasks, and show how many are done; warn once a minute while no executor takes one."""
        warned, before = time.monotonic(), 0
        with self.show(f"{title}, tasks", count) as advance:
            while thread.is_alive():
                thread.join(SECONDS_BETWEEN_LOOKS)
                done, active = self.count_tasks(group)
                advance(done - before)
                before = done
                if not (done or active) and time.monotonic() - warned > SECONDS_TO_WORRY:
                    warned = time.monotonic()
                    logger.warning("no executor takes a task yet: has %s cores and memory free?", self.context.master)

    def count_tasks(self, group: str) -> tuple[int, int]:
        """Return how many tasks of a job are done, and how many are under way."""
        tracker = self.context.statusTracker()
        jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(group)]
        stages = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
        known = [stage for stage in stages if stage]
        return sum(stage.numCompletedTasks for stage in known), sum(stage.numActiveTasks for stage in known)


@contextmanager
def open_spark(master: str | None, show: ShowProgress = show_progress) -> Iterator[SparkCluster]:
    """Yield the running Spark session, or a new one, which ends with the block; raises ConfigError if none starts.

    Without `master`, spark-submit, SPARK_CONF_DIR or the environment names it, else it is this machine's cores.
    """
    if "SPARK_REMOTE" in os.environ:
        raise ConfigError("SPARK_REMOTE names a Spark Connect server, which runs no tasks of Python; name a master")
    running = SparkSession.getActiveSession()
    if running is None and master is not None:
        check_master(master)
    session = running or start_session(master)
    try:
        yield SparkCluster(session, show)
    finally:
        if running is None:
            session.stop()


def check_master(master: str) -> None:
    """Raise ClusterError if none of the masters of a cluster can be reached."""
    scheme, mark, addresses = master.partition("://")
    whys = [why_unreachable(address) for address in addresses.split(",")] if mark and scheme == "spark" else [""]
    if all(whys):
        raise ClusterError(f"no Spark master answers at {master} ({whys[0]})")


def start_session(master: str | None) -> SparkSession:
    builder = SparkSession.builder.appName(APP_NAME)
    for name, value in {**QUIET, **({"spark.master": master} if master else {})}.items():
        builder = builder.config(name, value)
    # executors run this Python, unless another is named
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    in_main_thread = threading.current_thread() is threading.main_thread()
    heard = signal.getsignal(signal.SIGINT)
    try:
        with starting_silently():
            return builder.getOrCreate()
    except Exception as error:
        place = f" at {master}" if master else ""
        raise ConfigError(f"no Spark session starts{place}: {explain_failure(error)}") from error
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, heard)  # Spark replaces the handler, and does not call the earlier one


@contextmanager
def starting_silently() -> Iterator[None]:
    """Discard stdout and stderr of processes that the block starts: Java and Spark print greetings."""
    streams = (1, 2)
    nothing, kept = os.open(os.devnull, os.O_WRONLY), [os.dup(stream) for stream in streams]
    try:
        for stream in streams:
            os.dup2(nothing, stream)
        yield
    finally:
        for stream, own in zip(streams, kept, strict=True):
            os.dup2(own, stream)
            os.close(own)
        os.close(nothing)


def gpu_of_task() -> str | None:
    """Return the number of the GPU that Spark gave to the task that runs in this process."""
    task = TaskContext.get()
    given = task.resources().get("gpu") if task is not None else None
    return given.addresses[0] if given is not None and given.addresses else None
