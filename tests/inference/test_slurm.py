"""What is submitted to Slurm, when again, and what a task reads; programs of a line or two stand in for Slurm."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from clip_retrieval.clusters.slurm import SlurmTask
from clip_retrieval.errors import ConfigError, WorkerError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.distributors import slurm
from clip_retrieval.inference.distributors.slurm_ends import Round, count_states, last_words, name_jobs
from clip_retrieval.inference.distributors.slurm_jobs import SlurmJobs, worker_arguments
from clip_retrieval.inference.distributors.slurm_worker import cores_given, read_task
from clip_retrieval.inference.plan import open_output, open_plan, plan_run
from clip_retrieval.inference.run import preview_scripts, run_inference, submit_inference
from clip_retrieval.inference.telemetry.live import Live
from clip_retrieval.options import build_config
from clip_retrieval.sources import open_source

Write = Callable[[Path, int], Path]
STATES = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
SQUEUE = """
here=$(dirname "$0")
[ -e "$here/refuses" ] && { echo "squeue: error: Unable to contact slurm controller" >&2; exit 1; }
[ -e "$here/state" ] && for script in "$OUT"/slurm/*/*.sh; do
    [ -e "$script" ] && echo "7_0|$(cat "$here/state")||$script|$(cat "$here/reason")"
done
true
"""


@pytest.fixture
def config(tmp_path: Path, write_pictures: Write) -> Callable[..., InferenceConfig]:
    pictures = write_pictures(tmp_path / "in", 6)

    def make(**options: object) -> InferenceConfig:
        fixed = {"clip_model": "hash:16?size=32", "output_partition_count": 3, "num_prepro_workers": 0}
        fixed["distribution_strategy"] = "slurm"
        return build_config(InferenceConfig, fixed | options, [pictures, tmp_path / "out"])

    return make


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder of programs in place of Slurm: sbatch counts in `submitted`, squeue shows `state` and `reason`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {
        "sbatch": 'echo "$2" >> "$(dirname "$0")/submitted"\necho 7',
        "squeue": SQUEUE,
        "scontrol": "echo 'MaxArraySize = 1001'",
        "sinfo": "echo n1 n2 n3 n4",
        "scancel": "true",
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setattr(slurm, "SECONDS_BETWEEN_LOOKS", (0.001, 0.001))
    return folder


def show(stand_in: Path, state: str, reason: str = "None") -> None:
    (stand_in / "state").write_text(state)
    (stand_in / "reason").write_text(reason)


def submitted(stand_in: Path) -> list[Path]:
    record = stand_in / "submitted"
    return [Path(line) for line in record.read_text().splitlines()] if record.exists() else []


def tasks_in(*states: str) -> Sequence[SlurmTask]:
    return [
        SlurmTask(job=1, index=index, state=state, node="n1", script="/x/run.1/s.sh", reason="None")
        for index, state in enumerate(states)
    ]


def round_of(*states: str, given_up: int = 0, has_begun: bool = True, fruitless: int = 0) -> Round:
    return Round(tasks=tasks_in(*states), left=5, given_up=given_up, has_begun=has_begun, fruitless=fruitless)


@pytest.mark.parametrize("state", [state for state in STATES if state != "CANCELLED"])
def test_what_a_task_leaves_is_submitted_again_however_it_ended(state: str) -> None:
    assert round_of(state, "COMPLETED").why_hopeless() is None


def test_one_cancelled_task_of_several_is_no_reason_to_end() -> None:
    assert round_of("CANCELLED", "COMPLETED").why_hopeless() is None


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (round_of("FAILED", "COMPLETED", given_up=5), "each of these partitions failed, or lost its worker, 2 times"),
        (round_of("CANCELLED", "CANCELLED", "COMPLETED"), "the tasks were cancelled"),
        (round_of("FAILED", has_begun=False), "no task got far enough to begin a partition"),
        (round_of("TIMEOUT", fruitless=3), "the tasks were submitted 3 times and made no further partition"),
        (round_of(fruitless=3), "the tasks were submitted 3 times and made no further partition"),
    ],
)
def test_a_run_ends_where_submitting_again_would_be_in_vain(end: Round, why: str) -> None:
    assert end.why_hopeless() == why


def test_jobs_and_states_are_named() -> None:
    assert [name_jobs({12}), name_jobs([3, 2])] == ["job 12", "jobs 2, 3"]
    assert count_states(tasks_in("RUNNING", "PENDING", "PENDING")) == "2 pending, 1 running"
    assert count_states([]) == "0 tasks"


def test_the_last_line_of_a_log_is_told_with_its_path(tmp_path: Path) -> None:
    log = tmp_path / "task-0.log"
    assert last_words(log) == f"it wrote no log {log}"
    log.write_bytes(b"")
    assert last_words(log) == f"its log {log} is empty"
    log.write_bytes(b"x" * 20_000 + b"\nModuleNotFoundError: \xff no clip_retrieval\n\n")
    assert last_words(log) == f"last line of {log}: ModuleNotFoundError: \ufffd no clip_retrieval"


def test_jobs_that_slurm_forgets_are_submitted_three_times_at_most(
    config: Callable[..., InferenceConfig], stand_in: Path
) -> None:
    with pytest.raises(WorkerError, match="the tasks were submitted 3 times and made no further partition; not made"):
        run_inference(config())
    assert len(set(submitted(stand_in))) == 3


def test_a_job_that_is_held_is_not_waited_for(config: Callable[..., InferenceConfig], stand_in: Path) -> None:
    show(stand_in, "PENDING", "JobHeldUser")
    with pytest.raises(
        WorkerError, match=r"job 7 waits for somebody to act \(JobHeldUser\); see `scontrol show job 7_0"
    ):
        run_inference(config())


def test_a_controller_that_stays_away_is_not_waited_for_without_end(
    config: Callable[..., InferenceConfig], stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "SECONDS_OF_SILENCE", 0.05)
    given = config()
    run = plan_run(given, open_output(given), open_source(given.source, given.output_folder))
    (stand_in / "refuses").touch()
    waiting = slurm.Waiting(run, Live(3))
    waiting.answered = 0.0
    with pytest.raises(WorkerError, match=r"Unable to contact slurm controller, for .* job 7 may still go on"):
        waiting.ask({7})


def test_nothing_is_submitted_while_tasks_of_an_earlier_command_are_in_the_queue(
    config: Callable[..., InferenceConfig], stand_in: Path
) -> None:
    first = submit_inference(config(slurm_wait=False))
    show(stand_in, "RUNNING")
    second = submit_inference(config(slurm_wait=False))

    assert isinstance(first, slurm.Submitted)
    assert isinstance(second, slurm.Submitted)
    assert (first.is_new, second.is_new) == (True, False)
    assert second.run.run == first.run.run, "attempts are counted over both"
    assert len(submitted(stand_in)) == 1
    assert second.sentence().startswith("still in the queue: job 7, logs in ")


def test_the_folder_of_jobs_may_be_another_and_they_are_found_again(
    config: Callable[..., InferenceConfig], stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path / "jobs" / ".."))
    submit_inference(config(slurm_wait=False, slurm_cache_path=str(tmp_path / "jobs")))
    [script] = submitted(stand_in)
    assert script.parent.parent == tmp_path / "jobs"
    assert script.name == SlurmJobs(plan=open_plan(config())).script_name


def test_nodes_that_tasks_may_use_are_told_as_all_others_that_they_may_not(
    config: Callable[..., InferenceConfig], stand_in: Path
) -> None:
    (stand_in / "scontrol").write_text("#!/bin/sh\necho 'MaxArraySize = 9'\n[ $1 = show ] && echo n1 && echo n3\n")
    script = preview_scripts(config(slurm_nodelist="n[1,3]", slurm_exclude="n3"))
    assert "#SBATCH --exclude=n2,n4,n3\n" in script
    assert "--nodelist" not in script
    assert "#SBATCH --nodelist=n1\n" in preview_scripts(config(slurm_nodelist="n1"))


@pytest.mark.usefixtures("stand_in")
def test_a_path_is_told_so_that_sbatch_replaces_nothing_in_it(config: Callable[..., InferenceConfig]) -> None:
    script = preview_scripts(config(slurm_cache_path="/data/50%a of it"))
    assert re.search(r'#SBATCH --output="/data/50%%a of it/\S+/task-%a.log"\n', script)
    with pytest.raises(ConfigError, match="sbatch takes no path with quotes or backslashes: "):
        preview_scripts(config(slurm_cache_path='/data/"here"'))


@pytest.mark.usefixtures("stand_in")
def test_there_are_no_more_tasks_than_partitions(config: Callable[..., InferenceConfig]) -> None:
    assert "#SBATCH --array=0-2\n" in preview_scripts(config(slurm_nodes=100))


def test_workers_get_the_options_of_the_run_without_those_of_slurm(config: Callable[..., InferenceConfig]) -> None:
    given = config(slurm_nodes=2, enable_text=False, wds_caption_key="cap", metrics_port=1)
    arguments = json.loads(json.dumps(worker_arguments(open_plan(given))))
    read = build_config(InferenceConfig, arguments)

    assert not [name for name in arguments if name.startswith("slurm_")]
    assert (read.distribution_strategy, read.telemetry.metrics_port) == (None, 0)
    assert (read.source, read.encoder, read.output_partition_count) == (given.source, given.encoder, 3)


def test_slurm_options_without_slurm_are_refused(config: Callable[..., InferenceConfig]) -> None:
    with pytest.raises(ConfigError, match="slurm_\\* options are for --distribution_strategy slurm"):
        config(distribution_strategy=None, slurm_print=True)


@pytest.mark.parametrize("name", ["update", "retry_failed"])
def test_a_change_of_a_folder_is_not_made_here_where_slurm_was_asked_for(
    config: Callable[..., InferenceConfig], name: str
) -> None:
    with pytest.raises(ConfigError, match="update and retry_failed are made on this machine"):
        config(**{name: True})


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "worker.json"
    path.write_text(json.dumps({"input_dataset": "in", "output_folder": "out", "use_jit": False}))
    return {"WORKER_ARGS_PATH": str(path), "NUM_TASKS": "12", "WORLD_SIZE": "3", "SLURM_PROCID": "2"}


def test_a_task_reads_its_environment_as_in_clip_retrieval_2(environment: dict[str, str]) -> None:
    task = read_task({**environment, "SLURM_LOCALID": "1"})
    assert (task.rank, task.world, task.local_id) == (2, 3, 1)
    assert task.run.output_partition_count == 12
    assert read_task({**environment, "SLURM_LOCALID": ""}).local_id is None


@pytest.mark.parametrize(
    ("given", "workers", "cores"),
    [
        ({"SLURM_CPUS_ON_NODE": "96"}, 1, 96),
        ({"SLURM_CPUS_ON_NODE": "96"}, 8, 12),
        ({"SLURM_CPUS_ON_NODE": "96", "SLURM_CPUS_PER_TASK": "10"}, 8, 10),
        ({"SLURM_CPUS_ON_NODE": "4"}, 8, 1),
        ({}, 8, None),
    ],
)
def test_a_worker_uses_the_cores_that_slurm_gave_it(given: dict[str, str], workers: int, cores: int | None) -> None:
    assert cores_given(given, workers) == cores


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"WORKER_ARGS_PATH": ""}, "WORKER_ARGS_PATH must name a json file"),
        ({"WORKER_ARGS_PATH": "/no/such.json"}, "WORKER_ARGS_PATH: /no/such.json cannot be read: No such file"),
        ({"NUM_TASKS": "many"}, "NUM_TASKS must be a number, at least 1, not 'many'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a number, at least 1, not '0'"),
        ({"SLURM_PROCID": ""}, "SLURM_PROCID must be a number, at least 0, not ''"),
        ({"SLURM_PROCID": "3"}, "SLURM_PROCID is 3, and WORLD_SIZE only 3"),
    ],
)
def test_an_environment_that_says_no_task_is_refused(
    environment: dict[str, str], change: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_task(environment | change)


def test_a_count_that_contradicts_the_arguments_is_refused(environment: dict[str, str]) -> None:
    path = Path(environment["WORKER_ARGS_PATH"])
    path.write_text(json.dumps({"input_dataset": "in", "output_folder": "out", "output_partition_count": 11}))
    with pytest.raises(ConfigError, match="NUM_TASKS is 12, and output_partition_count 11 in "):
        read_task(environment)
