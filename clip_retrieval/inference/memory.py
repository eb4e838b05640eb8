"""How much memory this process and its readers took, where the system tells (Linux)."""

from __future__ import annotations

import os
from pathlib import Path

PROCESSES = Path("/proc")


def memory_now() -> int | None:
    """Return the bytes that this process holds."""
    return field_of("self", "VmRSS")


def memory_peak(process: int | str = "self") -> int | None:
    """Return the most bytes that a process has held."""
    return field_of(str(process), "VmHWM")


def children(module: str) -> list[int]:
    """Return the processes that this one has started to run a module."""
    found = []
    for folder in PROCESSES.iterdir() if PROCESSES.is_dir() else ():
        if folder.name.isdigit() and number_in(folder / "status", "PPid") == os.getpid():
            try:
                is_wanted = module in (folder / "cmdline").read_text()
            except OSError:
                continue  # it ended while we looked
            if is_wanted:
                found.append(int(folder.name))
    return found


def field_of(process: str, name: str) -> int | None:
    kilobytes = number_in(PROCESSES / process / "status", name)
    return None if kilobytes is None else kilobytes * 1024


def number_in(path: Path, name: str) -> int | None:
    """Return the first number behind a name in a file of lines; None where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
