"""The Slurm jobs of one run: their scripts and logs, and how they are found again from the output folder's name."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_retrieval.clusters import slurm
from clip_retrieval.clusters.slurm import SlurmTask
from clip_retrieval.clusters.slurm_config import SlurmConfig
from clip_retrieval.clusters.slurm_script import USUAL_ARRAY_SIZE, Array, sbatch_option, script_text, split_tasks
from clip_retrieval.errors import ConfigError
from clip_retrieval.inference.attempts import RUN_VARIABLE
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.plan import Plan
from clip_retrieval.layout import EmbeddingsFolder
from clip_retrieval.options import flags_of
from clip_retrieval.scratch import list_folder
from clip_retrieval.storage import writable

logger = logging.getLogger(__name__)

ARGUMENTS, LOG = "worker.json", "task-{index}.log"
JOBS_FOLDER = "slurm"  # of scripts and logs, in a local output folder
REFUSED_IN_PATHS = set('"\\\n')
JOBS_FOLDER_OF_STORES = "clip-retrieval-slurm"  # in the working folder, if the output is in a store
# Options that are not for the workers, besides Slurm's own: the waiting command shows the whole run.
HERE_ONLY = ("distribution_strategy", "metrics_port", "enable_wandb", "wandb_project")


@dataclass(frozen=True, kw_only=True)
class SlurmJobs:
    """All jobs of one run. A job belongs to it if its script's file name has the output folder's digest."""

    plan: Plan

    @property
    def config(self) -> SlurmConfig:
        return self.plan.config.slurm

    @property
    def script_name(self) -> str:
        return script_name(self.plan.folder)

    @property
    def folder(self) -> Path:
        """The folder of scripts and logs, which all nodes see."""
        given, folder = self.config.slurm_cache_path, self.plan.folder
        if given is not None:
            found = Path(given).absolute()
        else:
            found = Path(folder.path(JOBS_FOLDER)) if folder.is_local else Path.cwd() / JOBS_FOLDER_OF_STORES
        if set(str(found)) & REFUSED_IN_PATHS:
            raise ConfigError(f"sbatch takes no path with quotes or backslashes: {found}; name a slurm_cache_path")
        return found

    def tasks(self) -> list[SlurmTask]:
        """Return this run's tasks, also those of earlier commands; ended ones for as long as Slurm knows them."""
        return slurm.list_tasks(self.script_name)

    def submit(self, partition_count: int) -> list[int]:
        """Submit arrays for so many missing partitions; return their jobs. Raises ConfigError in Slurm's words."""
        arrays, lines = self.arrays(partition_count, slurm.largest_array()), self.lines()
        jobs: list[int] = []
        for array in arrays:
            try:
                jobs.append(slurm.submit(self.write(array, lines, sum(array.count for array in arrays))))
            except slurm.SlurmRefusedError as error:
                if not jobs:
                    raise
                logger.warning("%s; %s of %s arrays are submitted, for all partitions", error, len(jobs), len(arrays))
                break
        return jobs

    def preview(self, partition_count: int) -> str:
        """Return the scripts that would be submitted."""
        try:
            largest = slurm.largest_array()
        except ConfigError:  # no Slurm here: the script can still be shown
            largest = USUAL_ARRAY_SIZE
        arrays, place = self.arrays(partition_count, largest), self.folder / f"{self.plan.run}.1"
        total = sum(array.count for array in arrays)
        return "\n".join(self.text(array, self.lines(), place, total) for array in arrays)

    def arrays(self, partition_count: int, largest: int) -> list[Array]:
        task_count = max(1, min(self.config.task_count, partition_count))
        return split_tasks(task_count, min(self.config.node_count, task_count), largest)

    def lines(self) -> Sequence[str]:
        """Return sbatch's options; --nodelist becomes --exclude if it names several nodes."""
        config, names = self.config, self.config.slurm_nodelist
        if names is None or not set(names) & set(",["):
            return config.sbatch_lines()
        others = slurm.nodes_outside(names, config.slurm_partition)
        excluded = ",".join([*others, *([config.slurm_exclude] if config.slurm_exclude else [])])
        lines = [line for line in config.sbatch_lines() if not line.startswith(("--nodelist=", "--exclude="))]
        return [*lines, sbatch_option("exclude", excluded)] if excluded else lines

    def write(self, array: Array, lines: Sequence[str], task_count: int) -> Path:
        """Write an array's script and its workers' arguments into their own folder; return the script."""
        with writable(str(self.folder)):
            used = {path.name for path in list_folder(self.folder)}
            names = (f"{self.plan.run}.{number}" for number in range(1, len(used) + 2))
            place = self.folder / next(name for name in names if name not in used)
            place.mkdir(parents=True)
            (place / ARGUMENTS).write_text(json.dumps(worker_arguments(self.plan), indent=1), encoding="utf-8")
            script = place / self.script_name
            script.write_text(self.text(array, lines, place, task_count), encoding="utf-8")
        return script

    def text(self, array: Array, lines: Sequence[str], place: Path, task_count: int) -> str:
        escaped = str(place).replace("%", "%%")  # sbatch replaces %a, %j and others
        own = [f"--array={array.indices}", sbatch_option("output", f"{escaped}/{LOG.format(index='%a')}")]
        environment = {
            "WORKER_ARGS_PATH": f"{place}/{ARGUMENTS}",
            "NUM_TASKS": str(len(self.plan.partitions)),
            "WORLD_SIZE": str(task_count),
            "SLURM_LOCALID": "",  # the task has all devices of its node
            RUN_VARIABLE: self.plan.run,
        }
        command = [sys.executable, "-m", "clip_retrieval", "inference.slurm_worker"]
        return script_text([*own, *lines], environment, command, first_task=array.first)


def script_name(folder: EmbeddingsFolder) -> str:
    """Return the file name of the scripts that write to a folder: the same for every spelling of its name."""
    return f"inference-{hashlib.sha256(folder.place.encode()).hexdigest()[:12]}.sh"


def run_of(task: SlurmTask) -> str:
    """Return the id of the run that a task was submitted for."""
    return Path(task.script).parent.name.rpartition(".")[0]


def log_of(task: SlurmTask) -> Path:
    return Path(task.script).with_name(LOG.format(index=task.index))


def worker_arguments(plan: Plan) -> dict[str, object]:
    """Return the options of this run's workers by name, those of Slurm left out."""
    arguments: dict[str, object] = {}
    for flag in flags_of(InferenceConfig):
        value: object = plan.config
        for name in flag.path:
            value = getattr(value, name)
        if value != flag.default and not flag.name.startswith("slurm_") and flag.name not in HERE_ONLY:
            arguments[flag.name] = value
    return {**arguments, "output_partition_count": len(plan.partitions)}
