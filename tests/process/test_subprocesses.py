"""Our own modules as programs: they import the copy of the package that runs, and none of its rooms by bare name."""

from __future__ import annotations

import os
from pathlib import Path

import clip_retrieval
from clip_retrieval.process.subprocesses import module_environment


def test_a_program_of_ours_imports_the_copy_of_the_package_that_runs() -> None:
    first = module_environment()["PYTHONPATH"].split(os.pathsep)[0]
    assert Path(first) == Path(clip_retrieval.__file__).parent.parent


def test_what_is_added_to_the_environment_is_in_it() -> None:
    assert module_environment(A_NAME="a value")["A_NAME"] == "a value"
