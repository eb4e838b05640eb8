"""Building on a real Spark cluster on loopback: a master and two workers, of which one is killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_index

pyspark = pytest.importorskip("pyspark", reason="pyspark is not installed")
if shutil.which("java") is None:
    pytest.skip("Spark needs Java, and there is none here", allow_module_level=True)
pytestmark = pytest.mark.clusters

Rows = Callable[..., NDArray[np.float32]]
WriteRun = Callable[..., Path]
SPARK_HOME = Path(pyspark.__file__).parent
PATIENCE_SECONDS = 600  # of a machine that is busy otherwise
KEY = "IVF64,SQ8"
EMPTY = [3, 2500]
SMALL_TASKS = """
from clip_retrieval.index.building import ranges as plan
plan.LEAST_ROWS = 250
from clip_retrieval.cli import main
main()
"""
SCRIPT = """
import sys
from pyspark.sql import SparkSession
from clip_retrieval import clip_index
from clip_retrieval.errors import ClipRetrievalError, StorageError
from clip_retrieval.clusters.spark import open_cluster

def fail(task):
    raise StorageError("this disk is full; make room")

def build(**more):
    options = {"index_key": "IVF64,SQ8", "engine": "faiss", "nb_cores": 1, "distributed": "pyspark"}
    clip_index(sys.argv[1], f"{sys.argv[2]}/ix", nb_indices_to_keep=3, **options, **more)

def refused(call):
    try:
        call()
    except ClipRetrievalError as error:
        print("refused:", error)

session = SparkSession.builder.getOrCreate()
with open_cluster(None) as cluster:
    refused(lambda: cluster.run("trying", fail, [1]))
refused(lambda: build(temporary_indices_folder="memory://parts"))
build()
if session.sparkContext.parallelize([1, 2]).sum() == 3:
    print("the session of the script still runs")
"""
OPTIONS = """
spark.ui.enabled false
spark.driver.host 127.0.0.1
spark.driver.bindAddress 127.0.0.1
spark.driver.memory 512m
spark.executor.memory 512m
spark.cores.max 2
spark.scheduler.minRegisteredResourcesRatio 1.0
spark.driver.extraJavaOptions -XX:TieredStopAtLevel=1 -XX:+UseSerialGC
spark.executor.extraJavaOptions -XX:TieredStopAtLevel=1 -XX:+UseSerialGC
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def processes_of(session: int) -> Iterator[tuple[int, str]]:
    """Yield id and command of every process of a session, which children of children still belong to."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, command = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(stat.rpartition(")")[2].split()[3]) == session:
            yield int(folder.name), command.replace(b"\0", b" ").decode()


def send_all(session: int, number: signal.Signals, only: str = "") -> None:
    for process, command in processes_of(session):
        if only in command:
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue


@dataclass(frozen=True)
class LoopbackCluster:
    """A master's address, and the sessions of the two workers, with their executors and those's Pythons."""

    master: str
    environment: dict[str, str]
    workers: list[int]

    @contextmanager
    def running(self, *command: object) -> Iterator[subprocess.Popen[str]]:
        """Start a driver, which ends with the block, and whatever it started too."""
        words = [str(word) for word in command]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            words, env=self.environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
        ) as process:
            try:
                yield process
            finally:
                send_all(process.pid, signal.SIGKILL)

    def pythons(self, worker: int) -> list[int]:
        return [process for process, command in processes_of(worker) if "pyspark.daemon" in command]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackCluster]:
    folder = tmp_path_factory.mktemp("spark")
    (folder / "spark-defaults.conf").write_text(OPTIONS)
    environment = {
        **os.environ,
        "SPARK_HOME": str(SPARK_HOME),
        "SPARK_CONF_DIR": str(folder),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_DIRS": str(folder),
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_DAEMON_JAVA_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        "PYSPARK_PYTHON": sys.executable,
    }
    port = free_port()
    log = (folder / "daemons.log").open("w")
    started: list[subprocess.Popen[bytes]] = []

    def start(role: str, *arguments: object) -> int:
        command = [SPARK_HOME / "bin" / "spark-class", f"org.apache.spark.deploy.{role}", "--host", "127.0.0.1"]
        words = [str(word) for word in (*command, "--webui-port", 0, *arguments)]
        started.append(subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True))
        return started[-1].pid

    master = f"spark://127.0.0.1:{port}"
    try:
        start("master.Master", "--port", port)
        own = ("--cores", 1, "--memory", "1g", "--work-dir", folder / "work")
        workers = [start("worker.Worker", *own, master) for _ in range(2)]
        said = folder / "daemons.log"
        wait_for(lambda: said.read_text().count("Successfully registered with master") == 2, "workers")
        yield LoopbackCluster(master, environment, workers)
    finally:
        for process in started:
            send_all(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


@pytest.fixture(scope="module")
def emb(tmp_path_factory: pytest.TempPathFactory, unit_rows: Rows, write_run: WriteRun) -> Path:
    rows = unit_rows(6000, 32).astype(np.float16)
    rows[EMPTY] = 0
    return write_run(tmp_path_factory.mktemp("run") / "emb", np.split(rows, [1000, 1001, 2500]))


@pytest.fixture(scope="module")
def built_here(tmp_path_factory: pytest.TempPathFactory, emb: Path) -> Path:
    folder = tmp_path_factory.mktemp("local") / "ix"
    clip_index(str(emb), str(folder), index_key=KEY, engine="faiss", nb_cores=1)
    return folder


def search(index: faiss.Index, emb: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return scores and ids of queries of which none is the zero row."""
    queries = np.load(sorted((emb / "img_emb").glob("*.npy"))[-1])[:200].astype(np.float32)[1:]
    index.nprobe = index.nlist
    scores, ids = index.search(queries, 20)
    return scores, ids


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_script_for_spark_submit_builds_files_that_together_answer_as_one(
    cluster: LoopbackCluster, emb: Path, built_here: Path, tmp_path: Path, same_hits: Callable[..., None]
) -> None:
    script = tmp_path / "build.py"
    script.write_text(SCRIPT)
    command = (SPARK_HOME / "bin" / "spark-submit", "--master", cluster.master, script, emb, tmp_path)
    with cluster.running(*command) as submit:
        said = submit.communicate(timeout=PATIENCE_SECONDS)[0].splitlines()
    assert f"refused: trying on {cluster.master} failed: this disk is full; make room" in said
    assert any(re.match(r"refused: .*part_0.* is not in memory://parts/.* file system .* share", line) for line in said)
    assert "the session of the script still runs" in said
    assert submit.returncode == 0
    names = ["image.index/00.index", "image.index/01.index", "image.index/02.index"]
    here = [name for name in listing(built_here) if name != "image.index"]
    assert listing(tmp_path / "ix") == sorted([*here, *names])
    wanted = search(faiss.read_index(str(built_here / "image.index")), emb)
    answers = [search(faiss.read_index(str(tmp_path / "ix" / name)), emb) for name in names]
    scores = np.concatenate([scores for scores, _ in answers], axis=1)
    ids = np.concatenate([ids for _, ids in answers], axis=1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :20]
    same_hits((np.take_along_axis(scores, best, 1), np.take_along_axis(ids, best, 1)), wanted)


def test_a_worker_that_is_killed_while_it_adds_changes_nothing(
    cluster: LoopbackCluster, emb: Path, built_here: Path, tmp_path: Path, same_hits: Callable[..., None]
) -> None:
    command = (sys.executable, "-c", SMALL_TASKS, "index", emb, tmp_path / "ix", "--distributed", "pyspark")
    options = ("--spark_master", cluster.master, "--engine", "faiss", "--nb_cores", 1)
    with cluster.running(*command, *options, "--index_key", KEY) as process:
        doomed = cluster.workers[0]
        # Its Pythons are held while they are at a task, until the other worker has done all the rest.
        wait_for(lambda: len(cluster.pythons(doomed)) > 1 or process.poll() is not None, "a task on the first worker")
        send_all(doomed, signal.SIGSTOP, only="pyspark.daemon")
        work = tmp_path / "ix" / "_building"
        wait_for(lambda: len(list(work.glob("*/part_*"))) >= 23 or process.poll() is not None, "the other worker")
        assert process.poll() is None
        send_all(doomed, signal.SIGKILL)
        said = process.communicate(timeout=PATIENCE_SECONDS)[0]
    assert "Traceback" not in said
    assert process.returncode == 0
    assert listing(tmp_path / "ix") == listing(built_here)
    wanted = search(faiss.read_index(str(built_here / "image.index")), emb)
    same_hits(search(faiss.read_index(str(tmp_path / "ix" / "image.index")), emb), wanted)
