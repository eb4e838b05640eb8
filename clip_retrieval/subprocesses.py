"""Starting our own modules as programs, with the imports that this process has."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def module_command(module: str) -> list[str]:
    """Return the command that runs a module, without the working folder's files among its imports."""
    return [sys.executable, "-P", "-m", module]


def module_environment(**extra: str) -> dict[str, str]:
    """Return this process's environment, with its import path; the working folder is left out of that."""
    package_root = str(Path(__file__).parent.parent)
    here = Path.cwd()
    rest = [entry for entry in sys.path if entry and Path(entry) != here]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys([package_root, *rest])), **extra}
