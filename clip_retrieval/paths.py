"""What a url names: a file or folder of this machine, a shell command (`pipe:`), or something on a store."""

from __future__ import annotations

import os
import stat
from pathlib import Path

PIPE = "pipe:"
OF_THE_KERNEL = ("/proc/", "/sys/")
ROOTS = ("/", "./", "../")  # beginnings of what can only be a local path


def local_path(url: str) -> Path | None:
    """Return the local path that a url names; None for stores and pipes.

    What exists wins: `pipe:x/1.jpg` is a file if there is a folder `pipe:x`, and so is `~/1.jpg` if it exists.
    """
    if url.startswith("file://"):
        return Path(url.removeprefix("file://"))
    if url.startswith(ROOTS):
        return Path(url)
    if "://" in url:
        return None
    if url.startswith("~"):
        return Path(url if os.path.lexists(url) else os.path.expanduser(url))  # noqa: PTH111 -- Path's fails on ~$a.jpg
    is_special = url.startswith(PIPE) or "::" in url
    return None if is_special and not os.path.lexists(url.partition("/")[0]) else Path(url)


def without_query(url: str) -> str:
    """Return a url without its query, such as a signature, so that it ends with its suffix; a local path unchanged."""
    return url.partition("?")[0] if local_path(url) is None else url


def literal(url: str) -> str:
    """Return the url, with ./ before a relative path that looks like a command, a store or a home folder.

    So it stays a local path when its file or folder is gone.
    """
    is_special = url.startswith(("~", PIPE)) or "::" in url
    return f"./{url}" if is_special and not url.startswith(ROOTS) and local_path(url) == Path(url) else url


def is_on_store(url: str) -> bool:
    return local_path(url) is None and not url.startswith(PIPE)


def is_pipe(url: str) -> bool:
    """Say whether a url is a shell command, and not a file or folder whose name begins like one."""
    return url.startswith(PIPE) and local_path(url) is None


def describe_special(path: Path) -> str | None:
    """Return what kind of special file a path is, which may never end when it is read; None for a file or a folder.

    Named pipes block, /dev/zero never ends. Linux calls /proc/kmsg a regular file of no bytes, but reading it waits
    for the next message of the kernel. Raises OSError if nothing is there.
    """
    about = path.stat()
    if stat.S_ISDIR(about.st_mode):
        return None
    if not stat.S_ISREG(about.st_mode):
        return "a pipe, a socket or a device"
    is_of_kernel = about.st_size == 0 and os.path.realpath(path).startswith(OF_THE_KERNEL)
    return "a window into the kernel" if is_of_kernel else None
