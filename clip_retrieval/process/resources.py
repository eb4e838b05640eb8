"""What this process may use of the machine: cores and memory, with the bounds that containers set (cgroups)."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from clip_retrieval.errors import ConfigError

has_limits = importlib.util.find_spec("resource") is not None  # not on Windows
if has_limits:
    import resource

PROCESSES = Path("/proc")
MOST_FILES = 65_536

CORES_VARIABLE = "CLIP_RETRIEVAL_CORES"
CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_OF_PROCESS = Path("/proc/self/cgroup")
MEMORY_OF_MACHINE = Path("/proc/meminfo")
NO_LIMIT = 1 << 60  # cgroup v1 writes a number near 2**63 if there is none


def count_cores() -> int:
    """Return the number of cores that this process may use, at least 1.

    That is what CLIP_RETRIEVAL_CORES says, else the number that it may run on or, if smaller, the quota of its cgroups,
    rounded up. Raises ConfigError if the variable is not such a number.
    """
    given = os.environ.get(CORES_VARIABLE)
    if given is not None:
        if not given.strip().isdecimal() or int(given) < 1:
            raise ConfigError(f"{CORES_VARIABLE} must be a number of cores, at least 1, not {given!r}")
        return int(given)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *map(math.ceil, cpu_quotas())]))


@contextmanager
def use_cores(count: int | None) -> Iterator[None]:
    """Limit the block, and processes started in it, to `count` cores; None changes nothing."""
    if count is None:
        yield
        return
    if count < 1:
        raise ConfigError(f"the number of threads must be at least 1, not {count}")
    before = os.environ.get(CORES_VARIABLE)
    os.environ[CORES_VARIABLE] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ[CORES_VARIABLE]
        else:
            os.environ[CORES_VARIABLE] = before


def raise_file_limit(most: int = MOST_FILES) -> None:
    """Let this process open as many files and connections as its hard limit allows, `most` at most."""
    if not has_limits:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # some systems have a lower limit than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def memory_limit() -> int | None:
    """Return the bytes of memory that this process may use, by the machine and its cgroups; None if unknown."""
    bounds = [*physical_memory(), *memory_bounds()]
    return min(bounds) if bounds else None


def cpu_quotas() -> Iterator[float]:
    """Yield the cores that each cgroup of this process, and each one above it, may fill."""
    for folder in cgroup_folders("cpu"):
        words = read_words(folder / "cpu.max")  # v2: quota and period in microseconds
        if not words:
            words = [*read_words(folder / "cpu.cfs_quota_us"), *read_words(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
            yield int(words[0]) / int(words[1])


def memory_bounds() -> Iterator[int]:
    """Yield the bytes that each cgroup of this process, and each one above it, may hold."""
    for folder in cgroup_folders("memory"):
        for word in (*read_words(folder / "memory.max"), *read_words(folder / "memory.limit_in_bytes")):
            if word.isdecimal() and int(word) < NO_LIMIT:
                yield int(word)


def physical_memory() -> Iterator[int]:
    words = read_words(MEMORY_OF_MACHINE)  # MemTotal: 1234 kB
    if words[:1] == ["MemTotal:"] and words[1].isdecimal():
        yield int(words[1]) * 1024
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cgroup_folders(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's cgroups that may hold bounds of a controller, up to the root's.

    Inside a container the paths may be the host's, which do not exist there; the root's folder always exists.
    """
    for line in read_lines(CGROUP_OF_PROCESS):
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            root = CGROUP_ROOT  # v2
        elif controller in controllers.split(","):
            root = next((r for name in (controllers, controller) if (r := CGROUP_ROOT / name).is_dir()), CGROUP_ROOT)
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for part in dict.fromkeys((inner, *inner.parents, PurePosixPath())):
            if ".." not in part.parts:
                yield root / part


def read_words(path: Path) -> list[str]:
    return " ".join(read_lines(path)).split()


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file of the kernel's; none if it is missing."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


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
    """Return the first number behind a name in a file of lines; None if there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
