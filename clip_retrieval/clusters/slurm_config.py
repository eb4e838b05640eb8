"""Options of Slurm, and sbatch's options for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from clip_retrieval.clusters.slurm_script import sbatch_option, time_limit
from clip_retrieval.errors import ConfigError
from clip_retrieval.options import check_least, option

TIME = re.compile(r"\d+|\d+-\d+(:\d+){0,2}|\d+(:\d+){1,2}|UNLIMITED|INFINITE")
# Options of sbatch that are ours: the array, its logs, and where an array task runs.
OWN_OPTIONS = ("array", "a", "output", "o", "error", "e", "open-mode", "wait", "W", "wrap", "parsable", "ntasks", "n")


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """What an array task asks Slurm for; none of it affects the output."""

    slurm_job_name: str | None = option(None, help="Name of the jobs. None: clip-retrieval.", may_change=True)
    slurm_partition: str | None = option(None, help="Slurm partition. None: the cluster's default.", may_change=True)
    slurm_nodes: int | None = option(
        None,
        help="Array tasks that run at once, each on one node. None: 1.",
        least=1,
        may_change=True,
        aliases=("slurm_jobs",),
    )
    slurm_tasks: int | None = option(
        None,
        help="Array tasks in all; with a time limit, more than nodes. None: as many as slurm_nodes. Each makes a "
        "contiguous part of the partitions, then what others have not begun.",
        least=1,
        may_change=True,
    )
    slurm_gpus_per_node: int | None = option(
        None, help="GPUs of an array task (--gres=gpu:N); it runs a worker on each.", least=0, may_change=True
    )
    slurm_cpus_per_task: int | None = option(
        None, help="Cores of an array task. None: what Slurm gives, often one.", least=1, may_change=True
    )
    slurm_account: str | None = option(None, help="Account to charge.", may_change=True)
    slurm_qos: str | None = option(None, help="Quality of service.", may_change=True)
    slurm_constraint: str | None = option(None, help="Features that a node must have.", may_change=True)
    slurm_nodelist: str | None = option(None, help="Nodes that an array task may use, such as n[1-4].", may_change=True)
    slurm_exclude: str | None = option(None, help="Nodes that it must not use.", may_change=True)
    slurm_job_comment: str | None = option(None, help="Comment of the jobs.", may_change=True)
    slurm_job_timeout: str | None = option(
        None,
        help="Time limit of an array task: seconds, or as Slurm writes it, such as 1-12:00:00. None: the partition's.",
        may_change=True,
    )
    slurm_extra: tuple[str, ...] = option(
        (),
        help="Another option of sbatch, such as --mem=40G; may be given several times.",
        repeatable=True,
        may_change=True,
    )
    slurm_cache_path: str | None = option(
        None,
        help="Folder for scripts and logs, which all nodes see. None: OUTPUT_FOLDER/slurm, or for an output in a store "
        "clip-retrieval-slurm in the working folder.",
        may_change=True,
    )
    slurm_wait: bool = option(
        True,
        help="Wait for the tasks, and submit again what is missing. False: submit and end; the same command, given "
        "again, waits, and `clip-retrieval status` shows how far it is.",
        may_change=True,
    )
    slurm_verbose_wait: bool = option(
        False, help="While waiting, report every change in the states of the tasks.", may_change=True
    )
    slurm_print: bool = option(False, help="Show the script that would be submitted, and end.", may_change=True)

    def __post_init__(self) -> None:
        check_least(self)
        if self.slurm_job_timeout is not None and not TIME.fullmatch(self.slurm_job_timeout):
            raise ConfigError(
                f"slurm_job_timeout is a number of seconds, or a time such as 12:00:00, not {self.slurm_job_timeout!r}"
            )
        for line in self.slurm_extra:
            name = re.match(r"(?:#SBATCH\s+)?--?([A-Za-z][\w-]*)", line.strip())
            if name is None or "\n" in line:
                raise ConfigError(f"slurm_extra is an option of sbatch, such as --mem=40G, not {line!r}")
            if name[1] in OWN_OPTIONS:
                raise ConfigError(f"slurm_extra cannot set --{name[1]}, which holds the run together; leave it out")

    @property
    def node_count(self) -> int:
        return self.slurm_nodes or 1

    @property
    def task_count(self) -> int:
        return self.slurm_tasks or self.node_count

    @property
    def worker_count(self) -> int:
        """How many workers run at once."""
        return min(self.node_count, self.task_count) * max(1, self.slurm_gpus_per_node or 0)

    def sbatch_lines(self) -> Sequence[str]:
        """Return sbatch's options, without those of one array."""
        given = {
            "job-name": self.slurm_job_name or "clip-retrieval",
            "partition": self.slurm_partition,
            "nodes": 1,
            "ntasks": 1,
            "gres": f"gpu:{self.slurm_gpus_per_node}" if self.slurm_gpus_per_node else None,
            "cpus-per-task": self.slurm_cpus_per_task,
            "account": self.slurm_account,
            "qos": self.slurm_qos,
            "constraint": self.slurm_constraint,
            "nodelist": self.slurm_nodelist,
            "exclude": self.slurm_exclude,
            "comment": self.slurm_job_comment,
            "time": None if self.slurm_job_timeout is None else time_limit(self.slurm_job_timeout),
        }
        options = [sbatch_option(name, value) for name, value in given.items() if value is not None]
        # A task whose node dies goes to another one; its log is continued.
        return [*options, "--requeue", "--open-mode=append", *self.slurm_extra]
