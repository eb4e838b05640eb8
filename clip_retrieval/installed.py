"""Which packages are installed, and one sentence if one is missing.

The distribution clip-retrieval-light holds the same package as clip-retrieval, and leaves the large dependencies out.
"""

from __future__ import annotations

import importlib.util

from clip_retrieval.errors import ClipRetrievalError

FULL, LIGHT = "clip-retrieval", "clip-retrieval-light"


def is_installed(package: str) -> bool:
    """Say whether a package can be imported, or is loaded already: a module made by hand has no spec to find."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:
        return True


def is_light() -> bool:
    """Say whether only the light distribution is installed; a source tree of no distribution counts as the full one."""
    return has_distribution(LIGHT) and not has_distribution(FULL)


def has_distribution(name: str) -> bool:
    from importlib import metadata  # noqa: PLC0415 -- 10 ms, for sentences only

    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def pip_install(package: str, extra: str | None) -> str:
    """Return the command that installs a package, by an extra of the installed distribution or by its name."""
    return f"pip install '{LIGHT if is_light() else FULL}[{extra}]'" if extra else f"pip install {package}"


def need(
    package: str, subject: str, kind: type[ClipRetrievalError], *, extra: str | None = None, instead: str = ""
) -> None:
    """Raise the error if a package is missing that is optional in both distributions."""
    if not is_installed(package):
        raise kind(f"{subject} needs {package}: {pip_install(package, extra)}{or_else(instead)}")


def need_full(package: str, subject: str, kind: type[ClipRetrievalError], *, instead: str = "") -> None:
    """Raise the error if a package is missing that clip-retrieval requires and clip-retrieval-light does not.

    Both own the same files. So the light one is removed first: removed later, it would take the other's files along.
    """
    if is_installed(package):
        return
    command, why = f"pip install {FULL}", "which is not installed"
    if is_light():
        command, why = f"pip uninstall -y {LIGHT} && {command}", f"which {LIGHT} leaves out"
    raise kind(f"{subject} needs {package}, {why}: {command}{or_else(instead)}")


def or_else(instead: str) -> str:
    return f"; or {instead}" if instead else ""
