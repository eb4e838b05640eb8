"""The build backend of clip-retrieval-light: setuptools, on a copy of this folder with the root's package beside it.

setuptools takes neither a package nor a license from above its project. The copy lies in a temporary folder, so that a
build leaves nothing in the tree, and no file of an earlier build gets into a wheel.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from setuptools import build_meta

HERE = Path(__file__).resolve().parent
OWN = ("pyproject.toml", "README.md", "MANIFEST.in", "backend.py")
ABOVE = ("clip_retrieval", "LICENSE", "NOTICE")  # of the repository; an sdist has them here

Settings = dict[str, Any] | None


@contextmanager
def assembled() -> Iterator[None]:
    """Be in a folder with all that the distribution is made of, while the block runs."""
    with tempfile.TemporaryDirectory(prefix="clip-retrieval-light-") as place:
        root = HERE if (HERE / ABOVE[0]).is_dir() else HERE.parents[1]
        for source in [*(HERE / name for name in OWN), *(root / name for name in ABOVE)]:
            target = Path(place, source.name)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, target)
        with chdir(place):
            yield


def build(hook: Callable[..., str], folder: str, *settings: Any) -> str:
    target = str(Path(folder).resolve())
    with assembled():
        return hook(target, *settings)


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:  # noqa: ARG001 -- the hook's signature
    return build(build_meta.build_wheel, wheel_directory, config_settings)


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    return build(build_meta.build_sdist, sdist_directory, config_settings)


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Settings = None) -> str:
    return build(build_meta.prepare_metadata_for_build_wheel, metadata_directory, config_settings)
