"""Scratch folders, named by host and process: the next run removes those of processes that are gone."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
import time
from pathlib import Path

TEMPORARY = "clip-retrieval-"  # what names of temporary folders begin with
SCRATCH_TRIES = 100
SECONDS_OF_NO_USE = 7 * 24 * 3600
HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


def make_temporary() -> Path:
    """Make a folder among the temporary files, and remove those of processes that are gone."""
    for left in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}{HOST}.*"):
        if is_left(left.name.removeprefix(TEMPORARY)):
            shutil.rmtree(left, ignore_errors=True)  # another user's stays
    return Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{HOST}.{os.getpid()}."))


def is_left(name: str, *, own: bool = False) -> bool:
    """Say whether a scratch folder, by its name, is of a process of this machine that is gone, or of this one."""
    host, _, rest = name.partition(".")
    pid = rest.partition(".")[0]
    return host == HOST and pid.isdigit() and (not is_alive(int(pid)) or (own and int(pid) == os.getpid()))


def make_scratch(folder: Path) -> None:
    """Make a scratch folder; again where another process removes their empty parent at the same moment."""
    for _ in range(SCRATCH_TRIES):
        try:
            folder.mkdir(parents=True)
        except (FileNotFoundError, FileExistsError):  # the parent was gone, or was there and then gone
            continue
        return
    folder.mkdir(parents=True)


def list_folder(folder: Path) -> list[Path]:
    """Return what is in a folder; nothing where it is not there, or another process removes it just now."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > SECONDS_OF_NO_USE
    except FileNotFoundError:
        return False  # removed just now by the process that made it


def is_alive(pid: int) -> bool:
    """Say whether a process of this machine runs; one that has ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's, or a system without /proc
