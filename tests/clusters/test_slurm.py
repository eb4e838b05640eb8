"""Inference on a real Slurm of two nodes on loopback: tasks cancelled, failing, requeued, and nodes that die."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

LOCAL_SLURM = Path(__file__).with_name("local_slurm.py")
SEARCHED = os.environ["PATH"] + os.pathsep + "/usr/sbin"
MISSING = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name, path=SEARCHED) is None]
if MISSING:
    pytest.skip(
        f"Slurm is not installed ({', '.join(MISSING)}): apt-get install slurm-wlm munge", allow_module_level=True
    )
pytestmark = pytest.mark.clusters

PARTITIONS, PICTURES = 12, 4  # pictures in a partition
LARGEST_ARRAY = 4
PATIENCE_SECONDS = 300  # of a machine that is busy otherwise
POISON = b"this picture kills its worker"
Snapshot = Callable[[Path], dict[str, bytes]]

# What every worker does, by the files in the folder CONTROL: `exit-1` ends array task 1 with code 3, `broken` hides the
# package, and `hold` makes a worker wait, once it opened so many pictures, until the file is gone.
SITE = """
import os, pathlib, signal, sys, time
if "inference.slurm_worker" in sys.orig_argv:
    control, count = pathlib.Path(os.environ["CONTROL"]), 0
    leave = control / f"exit-{os.environ['SLURM_ARRAY_TASK_ID']}"
    if leave.exists():
        leave.unlink()
        os._exit(3)
    if (control / "broken").exists():
        sys.modules["clip_retrieval"] = None
    from PIL import Image
    open_picture = Image.open
    def open_or_not(file, *arguments, **options):
        global count
        count += 1
        if file.getvalue() == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            while count > int((control / "hold").read_text()):
                (control / f"held-{os.environ['SLURM_ARRAY_TASK_ID']}-{os.getpid()}").touch()
                time.sleep(0.02)
        except FileNotFoundError:
            pass
        return open_picture(file, *arguments, **options)
    Image.open = open_or_not
"""


@dataclass
class Cluster:
    """A running Slurm, and what workers find in CONTROL."""

    folder: Path
    daemons: subprocess.Popen[str]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def control(self) -> Path:
        return Path(self.environment["CONTROL"])

    def say(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
        )
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """Return {task: state} of all tasks."""
        lines = self.say("squeue", "--states", "all", "--array", "--noheader", "--format", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def hold(self, after: int) -> None:
        """Make every worker wait before it opens a picture more than `after`."""
        (self.control / "hold").write_text(str(after))

    def held(self, count: int) -> dict[int, int]:
        """Wait for so many held workers; return {array task: process}."""
        wait_for(lambda: len(list(self.control.glob("held-*"))) >= count, f"{count} held workers")
        names = [path.name.split("-") for path in self.control.glob("held-*")]
        return {int(task): int(process) for _, task, process in names}

    def let_go(self) -> None:
        (self.control / "hold").unlink(missing_ok=True)

    def start(self, source: Path, output: Path, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "clip_retrieval", "inference", str(source), str(output), "webdataset"]
        fixed = ["--clip_model", "hash:16?size=32", "--output_partition_count", str(PARTITIONS), "--batch_size", "5"]
        fixed += ["--num_prepro_workers", "0", "--distribution_strategy", "slurm", "--slurm_nodes", "2"]
        return subprocess.Popen(
            [*command, *fixed, *options],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, source: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
        return finish(self.start(source, output, *options))


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Return how a process ended; one that hangs is killed, and fails the test."""
    try:
        said, errors = process.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        said, errors = process.communicate()
        pytest.fail(f"the command hangs: {said}{errors}")
    return subprocess.CompletedProcess(process.args, process.returncode, said, errors)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


def done(output: Path) -> int:
    return len(list((output / "metadata").glob("*.parquet")))


def jobs_of(output: Path) -> list[Path]:
    return sorted(path.parent for path in (output / "slurm").glob("*/inference-*.sh"))


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    process = subprocess.Popen(
        [sys.executable, str(LOCAL_SLURM), str(folder), f"MaxArraySize={LARGEST_ARRAY}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        configuration = process.stdout.readline().strip()
        assert configuration, "no Slurm started; it has said why"
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE.replace("POISON", repr(POISON)))
        path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
        yield Cluster(folder, process, {"SLURM_CONF": configuration, "PATH": SEARCHED, "PYTHONPATH": path})
    finally:
        process.stdin.close()
        process.wait(PATIENCE_SECONDS)
        process.stdout.close()


@pytest.fixture
def cluster(daemons: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """Give the cluster, with an empty folder that controls workers; no job is left at the end."""
    control = tmp_path / "control"
    control.mkdir()
    mine = {**os.environ, **daemons.environment, "CONTROL": str(control)}
    yield Cluster(daemons.folder, daemons.daemons, mine)
    (control / "hold").unlink(missing_ok=True)
    daemons = Cluster(daemons.folder, daemons.daemons, mine)
    with suppress(subprocess.CalledProcessError):
        daemons.say("scancel", "--user", str(os.getuid()))
    wait_for(lambda: not set(daemons.states().values()) & {"PENDING", "RUNNING", "COMPLETING"}, "the end of all tasks")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[[Path, int, int], Path]) -> Path:
    return write_shards(tmp_path_factory.mktemp("source") / "shards", PARTITIONS, PICTURES)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the output of a run in one process."""
    output = tmp_path_factory.mktemp("sequential") / "whole"
    command = [sys.executable, "-m", "clip_retrieval", "inference", str(source), str(output), "webdataset"]
    options = ["--clip_model", "hash:16?size=32", "--output_partition_count", str(PARTITIONS), "--batch_size", "5"]
    subprocess.run([*command, *options, "--num_prepro_workers", "0"], check=True, capture_output=True)
    return output


def test_an_array_makes_the_bytes_of_one_process(
    cluster: Cluster, source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    options = ["--slurm_verbose_wait", "True", "--slurm_job_name", "my run", "--slurm_extra", "--mem=100M"]
    ended = cluster.run(source, tmp_path / "out", *options)

    assert ended.returncode == 0, ended.stderr
    assert snapshot(tmp_path / "out") == snapshot(whole)
    assert re.search(r"submitted job \d+, logs in .*/out/slurm; `clip-retrieval status .*/out` shows", ended.stderr)
    assert "tasks: " in ended.stderr
    [job] = jobs_of(tmp_path / "out")
    assert sorted(path.name for path in job.glob("*.log")) == ["task-0.log", "task-1.log"]
    assert cluster.run(source, tmp_path / "out").returncode == 0
    assert jobs_of(tmp_path / "out") == [job]  # all is there: nothing was submitted


def test_the_script_can_be_looked_at_and_nothing_is_submitted(cluster: Cluster, source: Path, tmp_path: Path) -> None:
    before = cluster.states()

    ended = cluster.run(source, tmp_path / "out", "--slurm_print", "--slurm_partition", "main")

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("#!/bin/bash\n#SBATCH --array=0-1\n#SBATCH --output=")
    assert "#SBATCH --partition=main\n" in ended.stdout
    assert cluster.states() == before
    assert not (tmp_path / "out" / "slurm").exists()


def test_the_partitions_of_a_cancelled_task_are_made_by_the_other(
    cluster: Cluster, source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    cluster.hold(after=PICTURES + 1)
    run = cluster.start(source, tmp_path / "out")
    held = cluster.held(2)
    [job] = {task.partition("_")[0] for task, state in cluster.states().items() if state == "RUNNING"}

    cluster.say("scancel", f"{job}_0")
    wait_for(lambda: cluster.states()[f"{job}_0"] == "CANCELLED", "the end of the task")
    cluster.let_go()
    ended = finish(run)

    assert ended.returncode == 0, ended.stderr
    assert not is_running(held[0])
    assert snapshot(tmp_path / "out") == snapshot(whole)
    assert len(jobs_of(tmp_path / "out")) == 1
    assert cluster.states()[f"{job}_1"] == "COMPLETED"


def test_the_partitions_of_a_failed_task_are_made_by_the_other(
    cluster: Cluster, source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    (cluster.control / "exit-1").touch()

    ended = cluster.run(source, tmp_path / "out")

    assert ended.returncode == 0, ended.stderr
    assert not (cluster.control / "exit-1").exists()
    assert "FAILED" in cluster.states().values()
    assert snapshot(tmp_path / "out") == snapshot(whole)


def test_what_killed_tasks_leave_is_submitted_again(
    cluster: Cluster, source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    cluster.hold(after=PICTURES + 1)
    run = cluster.start(source, tmp_path / "out")

    for process in cluster.held(2).values():
        os.kill(process, signal.SIGKILL)
    wait_for(lambda: len(jobs_of(tmp_path / "out")) == 2, "another submission")
    cluster.let_go()
    ended = finish(run)

    assert ended.returncode == 0, ended.stderr
    assert re.search(
        r"the tasks ended \(2 failed\), and 10 partitions are not made; submitted again as job \d+", ended.stderr
    )
    assert snapshot(tmp_path / "out") == snapshot(whole)


def test_a_partition_that_kills_its_workers_is_given_up_and_named(
    cluster: Cluster, source: Path, whole: Path, tmp_path: Path, write_tar: Callable[..., Path], snapshot: Snapshot
) -> None:
    shards = Path(shutil.copytree(source, tmp_path / "shards"))
    write_tar(shards / "007.tar", [("a.jpg", POISON), ("a.txt", b"a")])

    ended = cluster.run(shards, tmp_path / "out")

    assert ended.returncode == 1
    assert "each of these partitions failed, or lost its worker, 2 times; task " in ended.stderr
    assert "not made: partitions 7 (partition 7 on " in ended.stderr
    made, expected = snapshot(tmp_path / "out"), snapshot(whole)
    assert made.keys() == {name for name in expected if "_07." not in name}
    assert all(made[name] == expected[name] for name in made if "emb/" in name)


def test_a_requeued_task_goes_on(
    cluster: Cluster, source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    cluster.hold(after=PICTURES + 1)
    run = cluster.start(source, tmp_path / "out", "--slurm_nodes", "1")
    [process] = cluster.held(1).values()
    [task] = [task for task, state in cluster.states().items() if state == "RUNNING"]

    cluster.say("scontrol", "requeue", task)
    wait_for(lambda: cluster.states()[task] == "PENDING", "the requeue")
    assert not is_running(process)
    cluster.let_go()
    cluster.say("scontrol", "update", f"jobid={task}", "StartTime=now")
    ended = finish(run)

    assert ended.returncode == 0, ended.stderr
    assert "Restarts=1" in cluster.say("scontrol", "--oneliner", "show", "job", task)
    assert snapshot(tmp_path / "out") == snapshot(whole)
    assert len(jobs_of(tmp_path / "out")) == 1


def test_a_task_that_lives_on_when_its_node_died_and_its_copy_do_each_other_no_harm(
    cluster: Cluster, source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    cluster.hold(after=PICTURES + 1)
    run = cluster.start(source, tmp_path / "out")
    held = cluster.held(2)
    [job] = {task.partition("_")[0] for task, state in cluster.states().items() if state == "RUNNING"}
    node = re.search(r"NodeList=(n\d)", cluster.say("scontrol", "--oneliner", "show", "job", f"{job}_0"))
    assert node is not None

    os.kill(int((cluster.folder / f"slurmd-{node[1]}.pid").read_text()), signal.SIGKILL)
    cluster.say("scontrol", "update", f"nodename={node[1]}", "state=down", "reason=died")
    wait_for(lambda: cluster.states()[f"{job}_0"] == "PENDING", "the requeue")
    os.kill(held[1], signal.SIGKILL)  # its node is free for the copy
    cluster.say("scontrol", "update", f"jobid={job}_0", "StartTime=now")
    wait_for(lambda: len([*cluster.control.glob("held-0-*")]) == 2, "the copy")
    copies = [int(path.name.rpartition("-")[2]) for path in cluster.control.glob("held-0-*")]
    are_both_alive = held[0] in copies and all(map(is_running, copies))
    cluster.let_go()
    ended = finish(run)
    assert cluster.daemons.stdin is not None
    cluster.daemons.stdin.write(f"start {node[1]}\n")
    cluster.daemons.stdin.flush()
    cluster.say("scontrol", "update", f"nodename={node[1]}", "state=resume")

    assert ended.returncode == 0, ended.stderr
    assert are_both_alive
    assert snapshot(tmp_path / "out") == snapshot(whole)


def test_a_node_of_two_devices_runs_a_worker_on_each(
    cluster: Cluster, source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    ended = cluster.run(source, tmp_path / "out", "--slurm_nodes", "1", "--device", "cpu,cpu")

    assert ended.returncode == 0, ended.stderr
    assert snapshot(tmp_path / "out") == snapshot(whole)
    [job] = jobs_of(tmp_path / "out")
    assert [path.name for path in job.glob("*.log")] == ["task-0.log"]


def test_more_tasks_than_an_array_may_have_are_several_arrays(
    cluster: Cluster, source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    ended = cluster.run(source, tmp_path / "out", "--slurm_tasks", str(LARGEST_ARRAY + 2))

    assert ended.returncode == 0, ended.stderr
    arrays = [re.search(r"--array=(\S+)", next(job.glob("*.sh")).read_text()) for job in jobs_of(tmp_path / "out")]
    assert [array and array[1] for array in arrays] == ["0-2%1", "0-2%1"]
    assert snapshot(tmp_path / "out") == snapshot(whole)


def test_one_may_submit_leave_and_come_back(
    cluster: Cluster, source: Path, whole: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    cluster.hold(after=PICTURES + 1)
    output = tmp_path / "out"
    ended = cluster.run(source, output, "--slurm_wait", "False")
    assert ended.returncode == 0, ended.stderr
    assert re.match(r"submitted job \d+, logs in ", ended.stdout)
    cluster.held(2)

    assert cluster.run(source, output, "--slurm_wait", "False").stdout.startswith("still in the queue: job ")
    waiting = cluster.start(source, output)
    assert waiting.stderr is not None
    wait_for(lambda: "still in the queue: job " in str(waiting.stderr and waiting.stderr.readline()), "the first words")
    waiting.send_signal(signal.SIGINT)
    ended = finish(waiting)
    assert ended.returncode == 130
    assert re.search(
        r"stopped waiting, and job \d+ goes on \(2 running\); logs in .* `scancel \d+` ends it", ended.stderr
    )

    cluster.let_go()
    ended = cluster.run(source, output)
    assert ended.returncode == 0, ended.stderr
    assert snapshot(output) == snapshot(whole)
    assert len(jobs_of(output)) == 1


def test_tasks_that_were_cancelled_by_hand_are_not_submitted_again(
    cluster: Cluster, source: Path, tmp_path: Path
) -> None:
    cluster.hold(after=1)
    run = cluster.start(source, tmp_path / "out")
    cluster.held(2)

    cluster.say("scancel", "--user", str(os.getuid()))
    ended = finish(run)

    assert ended.returncode == 1
    assert "Error: the tasks were cancelled; not made: partitions 0, 1, 2" in ended.stderr
    assert len(jobs_of(tmp_path / "out")) == 1


def test_a_partition_that_slurm_does_not_know_is_told_in_its_own_words(
    cluster: Cluster, source: Path, tmp_path: Path
) -> None:
    ended = cluster.run(source, tmp_path / "out", "--slurm_partition", "nosuch")

    assert ended.returncode == 1
    assert "Error: sbatch refuses: invalid partition specified: nosuch" in ended.stderr


def test_a_worker_without_the_package_is_told_with_its_log(cluster: Cluster, source: Path, tmp_path: Path) -> None:
    (cluster.control / "broken").touch()

    ended = cluster.run(source, tmp_path / "out")

    assert ended.returncode == 1
    [job] = jobs_of(tmp_path / "out")
    assert "no task got far enough to begin a partition; task " in ended.stderr
    assert re.search(rf"ended as FAILED with exit code 1 on n\d \(last line of {job}/task-\d.log: ", ended.stderr)
    assert "clip_retrieval" in ended.stderr
