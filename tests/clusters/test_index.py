"""Building on real clusters of Spark and Ray on loopback, with a worker that is killed."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.clusters.config import ClusterConfig
from clip_retrieval.clusters.open import open_cluster

pytestmark = pytest.mark.clusters

Rows = Callable[..., NDArray[np.float32]]
WriteRun = Callable[..., Path]
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
from clip_retrieval.clusters.spark import gpu_of_task, open_spark

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
def note_gpu(path):
    open(path, "w").write(str(gpu_of_task()))

with open_spark(None) as cluster:
    refused(lambda: cluster.run("trying", fail, [1]))
    cluster.run("looking", note_gpu, [f"{sys.argv[2]}/gpu"])
refused(lambda: build(temporary_indices_folder="memory://parts"))
build()
if session.sparkContext.parallelize([1, 2]).sum() == 3:
    print("the session of the script still runs")
"""


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
    """Return scores and ids of queries, none of them the zero row."""
    queries = np.load(sorted((emb / "img_emb").glob("*.npy"))[-1])[:200].astype(np.float32)[1:]
    index.nprobe = index.nlist
    scores, ids = index.search(queries, 20)
    return scores, ids


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_script_for_spark_submit_builds_files_that_together_answer_as_one(
    spark: Any, emb: Path, built_here: Path, tmp_path: Path, same_hits: Callable[..., None]
) -> None:
    script = tmp_path / "build.py"
    script.write_text(SCRIPT)
    command = (Path(spark.environment["SPARK_HOME"]) / "bin" / "spark-submit", "--master", spark.address)
    gpus = [word for of in ("executor", "task") for word in ("--conf", f"spark.{of}.resource.gpu.amount=1")]
    with spark.running(*command, *gpus, script, emb, tmp_path) as submit:
        said_twice = submit.communicate(timeout=PATIENCE_SECONDS)
        said = "".join(said_twice).splitlines()
    assert f"refused: trying on {spark.address} failed: this disk is full; make room" in said
    assert any(re.match(r"refused: .*part_0.* is not in memory://parts/.* file system .* share", line) for line in said)
    assert "the session of the script still runs" in said
    assert submit.returncode == 0
    assert (tmp_path / "gpu").read_text() == "7"
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
    spark: Any, emb: Path, built_here: Path, tmp_path: Path, same_hits: Callable[..., None]
) -> None:
    command = (sys.executable, "-c", SMALL_TASKS, "index", emb, tmp_path / "ix", "--distributed", "pyspark")
    options = ("--spark_master", spark.address, "--engine", "faiss", "--nb_cores", 1)
    with spark.running(*command, *options, "--index_key", KEY) as process:
        # The first worker's Pythons are held while they are at a task, until the other one has done all the rest.
        def pythons() -> list[int]:
            found: list[int] = spark.below(spark.nodes[0], "pyspark.daemon")
            return found

        spark.wait_for(lambda: len(pythons()) > 1 or process.poll() is not None, "a task on the first worker")
        spark.send(signal.SIGSTOP, *pythons())
        work = tmp_path / "ix" / "_building"
        spark.wait_for(lambda: len(list(work.glob("*/part_*"))) >= 23 or process.poll() is not None, "the other worker")
        assert process.poll() is None
        spark.send(signal.SIGKILL, *spark.below(spark.nodes[0]))
        said = "".join(process.communicate(timeout=PATIENCE_SECONDS))
    assert "Traceback" not in said
    assert process.returncode == 0
    assert listing(tmp_path / "ix") == listing(built_here)
    wanted = search(faiss.read_index(str(built_here / "image.index")), emb)
    same_hits(search(faiss.read_index(str(tmp_path / "ix" / "image.index")), emb), wanted)


def test_a_task_of_ray_knows_its_gpu(ray: Any, tmp_path: Path) -> None:
    looking = "from clip_retrieval.clusters.ray import gpu_of_task; open({!r}, 'w').write(str(gpu_of_task()))"
    for name, resources in (("some", "CPU=1,GPU=1,second=1"), ("none", "CPU=1")):
        config = ClusterConfig(ray_address=ray.address, ray_resources=resources)
        with open_cluster("ray", config, uses_gpus=True) as cluster:
            cluster.run("looking", exec, [looking.format(str(tmp_path / name))])
    assert (tmp_path / "some").read_text() == "0"
    assert (tmp_path / "none").read_text() == "None"


def test_ray_builds_the_same_index(
    ray: Any, emb: Path, built_here: Path, tmp_path: Path, same_hits: Callable[..., None]
) -> None:
    command = (sys.executable, "-c", SMALL_TASKS, "index", emb, tmp_path / "ix", "--distributed", "ray")
    options = ("--ray_address", ray.address, "--engine", "faiss", "--nb_cores", 1, "--index_key", KEY, "--json")
    with ray.running(*command, *options) as process:
        said, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    assert set(json.loads(said)) >= {"indices"}
    assert listing(tmp_path / "ix") == listing(built_here)
    wanted = search(faiss.read_index(str(built_here / "image.index")), emb)
    same_hits(search(faiss.read_index(str(tmp_path / "ix" / "image.index")), emb), wanted)
