"""The script of a Slurm array, and how many arrays a number of tasks needs. Pure: nothing is submitted here."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SECONDS_OF_A_MINUTE = 60
USUAL_ARRAY_SIZE = 1001  # Slurm's default of MaxArraySize


@dataclass(frozen=True)
class Array:
    """One array: tasks `first` to `first + count - 1` of a submission, some of them at once."""

    first: int
    count: int
    at_once: int

    @property
    def indices(self) -> str:
        """The value of --array; its own indices begin at 0."""
        return f"0-{self.count - 1}" + (f"%{self.at_once}" if self.at_once < self.count else "")


def split_tasks(task_count: int, at_once: int, largest: int) -> list[Array]:
    """Cut tasks into independent arrays of at most `largest`, which together run `at_once` tasks at a time.

    Each array runs at least one task, so there are at most `at_once` arrays. Tasks beyond those are left out, and the
    others make their partitions.
    """
    array_count = min(math.ceil(task_count / largest), at_once)
    task_count = min(task_count, array_count * largest)
    bounds = [task_count * i // array_count for i in range(array_count + 1)]
    shares = [at_once * (i + 1) // array_count - at_once * i // array_count for i in range(array_count)]
    return [Array(first, last - first, share) for first, last, share in zip(bounds, bounds[1:], shares, strict=False)]


def script_text(
    lines: Sequence[str], environment: Mapping[str, str], command: Sequence[str], *, first_task: int = 0
) -> str:
    """Return a batch script: sbatch's options, then the command, which finds the number of its task in SLURM_PROCID."""
    options = [f"#SBATCH {line.removeprefix('#SBATCH').strip()}" for line in lines]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    number = f"export SLURM_PROCID=$(({first_task} + SLURM_ARRAY_TASK_ID))"
    return "\n".join(["#!/bin/bash", *options, "", *exports, number, f"exec {shlex.join(command)}", ""])


def sbatch_option(name: str, value: object) -> str:
    """Return `--name=value` as sbatch reads it in a script, where quotes hold spaces together."""
    text = " ".join(str(value).split())
    quoted = text if text and not set(text) & set(" \"'#\\") else '"' + text.replace("\\", "").replace('"', "'") + '"'
    return f"--{name}={quoted}"


def time_limit(text: str) -> str:
    """Return Slurm's --time of `text`: a plain number means seconds, rounded up to minutes; else Slurm's own form."""
    return str(math.ceil(int(text) / SECONDS_OF_A_MINUTE)) if text.isdigit() else text
