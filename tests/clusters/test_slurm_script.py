"""Scripts of Slurm arrays, the cut into arrays, and what Slurm's commands say: no Slurm is needed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from clip_retrieval.clusters import slurm
from clip_retrieval.clusters.slurm import (
    SlurmTask,
    ask,
    describe_facts,
    largest_array,
    own_words,
    parse_facts,
    parse_tasks,
    submit,
)
from clip_retrieval.clusters.slurm_config import SlurmConfig
from clip_retrieval.clusters.slurm_script import Array, sbatch_option, script_text, split_tasks, time_limit
from clip_retrieval.errors import ConfigError


@pytest.mark.parametrize(
    ("tasks", "at_once", "largest", "expected"),
    [
        (3, 3, 1001, [Array(0, 3, 3)]),
        (1001, 4, 1001, [Array(0, 1001, 4)]),
        (1002, 4, 1001, [Array(0, 501, 2), Array(501, 501, 2)]),
        (20, 3, 8, [Array(0, 6, 1), Array(6, 7, 1), Array(13, 7, 1)]),
        (20, 2, 8, [Array(0, 8, 1), Array(8, 8, 1)]),
        (1, 1, 1, [Array(0, 1, 1)]),
    ],
)
def test_tasks_are_cut_into_arrays_that_slurm_takes(
    tasks: int, at_once: int, largest: int, expected: list[Array]
) -> None:
    assert split_tasks(tasks, at_once, largest) == expected


def test_arrays_follow_one_another_and_run_as_many_tasks_at_once_as_were_asked_for() -> None:
    for tasks in range(1, 40):
        for at_once in range(1, tasks + 1):
            arrays = split_tasks(tasks, at_once, 7)
            firsts = [array.first for array in arrays]
            assert firsts == [sum(array.count for array in arrays[:i]) for i in range(len(arrays))]
            assert sum(array.at_once for array in arrays) == at_once
            assert all(1 <= array.count <= 7 and array.at_once >= 1 for array in arrays)


def test_an_array_is_slowed_down_only_where_it_has_more_tasks_than_nodes() -> None:
    assert [Array(5, 4, 2).indices, Array(0, 4, 4).indices, Array(0, 1, 1).indices] == ["0-3%2", "0-3", "0-0"]


def run_script(text: str, tmp_path: Path, **environment: str) -> list[str]:
    script = tmp_path / "script.sh"
    script.write_text(text)
    done = subprocess.run(
        ["bash", str(script)], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_script_hands_its_command_any_path_as_it_is(tmp_path: Path) -> None:
    path = '/a b/it\'s $HOME `x` "quoted".json'
    text = script_text(
        ["--job-name=x", "#SBATCH --mem=4G"],
        {"ARGS": path},
        ["bash", "-c", 'printenv ARGS; echo "$0"', path],
    )

    assert text.splitlines()[:3] == ["#!/bin/bash", "#SBATCH --job-name=x", "#SBATCH --mem=4G"]
    assert run_script(text, tmp_path) == [path, path]


def test_a_script_counts_the_number_of_its_task_on_from_the_arrays_before(tmp_path: Path) -> None:
    text = script_text([], {}, ["printenv", "SLURM_PROCID"], first_task=20)

    assert run_script(text, tmp_path, SLURM_ARRAY_TASK_ID="3") == ["23"]


def test_options_hold_spaces_and_quotes_together() -> None:
    assert sbatch_option("job-name", "clip") == "--job-name=clip"
    assert sbatch_option("comment", 'it\'s a "big"\n one #1') == "--comment=\"it's a 'big' one #1\""


@pytest.mark.parametrize(
    ("given", "expected"), [("60", "1"), ("61", "2"), ("1-12:00:00", "1-12:00:00"), ("12:00:00", "12:00:00")]
)
def test_a_plain_number_is_a_time_limit_in_seconds(given: str, expected: str) -> None:
    assert time_limit(given) == expected


def test_every_option_reaches_sbatch() -> None:
    config = SlurmConfig(
        slurm_job_name="my run",
        slurm_partition="gpu",
        slurm_nodes=3,
        slurm_gpus_per_node=8,
        slurm_cpus_per_task=12,
        slurm_account="vision",
        slurm_qos="low",
        slurm_constraint="a100",
        slurm_nodelist="n7",
        slurm_exclude="n[1-2]",
        slurm_job_comment="two words",
        slurm_job_timeout="7200",
        slurm_extra=("--mem=40G", "#SBATCH --exclusive"),
    )

    assert config.sbatch_lines() == [
        '--job-name="my run"', "--partition=gpu", "--nodes=1", "--ntasks=1", "--gres=gpu:8", "--cpus-per-task=12",
        "--account=vision", "--qos=low", "--constraint=a100", "--nodelist=n7", "--exclude=n[1-2]",
        '--comment="two words"', "--time=120", "--requeue", "--open-mode=append", "--mem=40G", "#SBATCH --exclusive",
    ]  # fmt: skip
    assert (config.task_count, config.worker_count) == (3, 24)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"slurm_nodes": 0}, "slurm_nodes must be at least 1"),
        ({"slurm_job_timeout": "soon"}, "slurm_job_timeout is a number of seconds, or a time such as 12:00:00"),
        ({"slurm_extra": ("mem=40G",)}, "slurm_extra is an option of sbatch, such as --mem=40G, not 'mem=40G'"),
        ({"slurm_extra": ("--mem=4G\nrm -r /",)}, "slurm_extra is an option of sbatch"),
        ({"slurm_extra": ("--array=0-5",)}, "slurm_extra cannot set --array"),
        ({"slurm_extra": ("#SBATCH -o log",)}, "slurm_extra cannot set --o"),
    ],
)
def test_what_slurm_could_not_take_is_refused_before(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        SlurmConfig(**options)  # type: ignore[arg-type]


LINES = """
12_0|COMPLETED|n1|/data/slurm/r.1/run.sh|None
12_1|FAILED|n2|/data/slurm/r.1/run.sh|NonZeroExitCode
12_2|PENDING||/data/a|b/run.sh|launch failed requeued held
13|RUNNING|n1|(null)|None
slurm_load_jobs error: something
""".strip().splitlines()


def test_lines_of_squeue_become_tasks() -> None:
    tasks = parse_tasks(LINES)

    assert [(task.name, task.has_ended, task.is_stuck) for task in tasks] == [
        ("12_0", True, False), ("12_1", True, False), ("12_2", False, True), ("13_0", False, False),
    ]  # fmt: skip
    assert tasks[2].script == "/data/a|b/run.sh"
    assert tasks[0] == SlurmTask(
        job=12, index=0, state="COMPLETED", node="n1", script="/data/slurm/r.1/run.sh", reason="None"
    )


def test_a_task_that_waits_for_room_is_not_stuck() -> None:
    [task] = parse_tasks(["5_0|PENDING||/run.sh|Resources"])
    assert not task.is_stuck


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("JobState=FAILED Reason=NonZeroExitCode ExitCode=3:0 NodeList=n2", "ended as FAILED with exit code 3 on n2"),
        ("JobState=FAILED ExitCode=0:9 NodeList=(null)", "ended as FAILED by signal 9"),
        ("JobState=TIMEOUT ExitCode=0:0 NodeList=n1\nJobState=FAILED", "ended as TIMEOUT on n1"),
    ],
)
def test_the_end_of_a_task_is_told_in_words(line: str, sentence: str) -> None:
    assert describe_facts(parse_facts(line)) == sentence


def test_slurms_own_words_are_told_once_and_without_the_name_of_its_program() -> None:
    lines = ["sbatch: error: invalid partition specified: x", "", "sbatch: error: invalid partition specified: x"]
    assert own_words(lines) == "invalid partition specified: x"
    assert own_words([]) == "without a word"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder that is the whole PATH: programs in it stand for Slurm."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_without_slurm_a_sentence_says_where_to_run(programs: Path) -> None:
    with pytest.raises(ConfigError, match="there is no sbatch on this machine; run this where Slurm's commands are"):
        submit(programs / "run.sh")


def test_the_job_of_a_federated_cluster_is_found(programs: Path) -> None:
    write_program(programs / "sbatch", "echo '4711;west'")
    assert submit(programs / "run.sh") == 4711


def test_a_command_that_does_not_answer_is_not_waited_for(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(programs / "squeue", "while :; do :; done")
    monkeypatch.setattr(slurm, "SECONDS_OF_A_COMMAND", 0.2)
    with pytest.raises(ConfigError, match="squeue does not answer"):
        ask("squeue")


@pytest.mark.parametrize(
    ("said", "expected"),
    [("MaxArraySize            = 8", 8), ("MaxJobCount = 5", 1001), ("SchedulerParameters = a,max_array_tasks=7,b", 7)],
)
def test_the_largest_array_is_what_slurm_says(programs: Path, said: str, expected: int) -> None:
    write_program(programs / "scontrol", f"echo '{said}'")
    assert largest_array() == expected
