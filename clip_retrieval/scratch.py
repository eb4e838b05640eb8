"""Scratch folders, named by host and process: the next run removes those of processes that are gone."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import time
from pathlib import Path

TEMPORARY = "clip-retrieval-"  # prefix of temporary folders
SCRATCH_TRIES = 100
SECONDS_OF_NO_USE = 7 * 24 * 3600
HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


def make_temporary() -> Path:
    """Create a folder in the system's temporary folder, and remove those of processes that are gone."""
    for left in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}{HOST}.*"):
        if is_left(left.name.removeprefix(TEMPORARY)):
            shutil.rmtree(left, ignore_errors=True)  # folders of other users cannot be removed
    return Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{HOST}.{os.getpid()}."))


def is_left(name: str, *, own: bool = False) -> bool:
    """Say whether a scratch folder's name is that of a dead process of this machine or, with `own`, of this one."""
    host, _, rest = name.partition(".")
    pid = rest.partition(".")[0]
    return host == HOST and pid.isdigit() and (not is_alive(int(pid)) or (own and int(pid) == os.getpid()))


def make_scratch(folder: Path) -> None:
    """Create a scratch folder; retried because another process may remove the empty parent at the same moment."""
    for _ in range(SCRATCH_TRIES):
        try:
            folder.mkdir(parents=True)
        except (FileNotFoundError, FileExistsError):  # the parent vanished, or appeared and vanished
            continue
        return
    folder.mkdir(parents=True)


def move_into(staged: Path, target: Path) -> None:
    """Rename into a folder that is created first; retried because another process may remove it while it is empty."""
    for left in reversed(range(SCRATCH_TRIES)):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(target)
        except FileNotFoundError:
            if not left or not staged.exists():
                raise
            continue
        return


def list_folder(folder: Path) -> list[Path]:
    """Return the contents of a folder; empty if it does not exist or another process removes it meanwhile."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > SECONDS_OF_NO_USE
    except FileNotFoundError:
        return False  # its process removed it meanwhile


def is_alive(pid: int) -> bool:
    """Say whether a process of this machine is running; zombies are not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:
        return True  # a process of another user, or a system without /proc
