"""What native code prints does not mix with results."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from clip_retrieval.search.native_output import printing_nothing


def test_native_output_is_dropped_and_results_go_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    sys.stdout.write("before\n")
    with printing_nothing():
        os.write(1, b"native\n")
    sys.stdout.write("after\n")
    out, err = capfd.readouterr()
    assert out == "before\nafter\n"
    assert err == ""


@pytest.mark.parametrize("closing", ["sys.stdout = None", "os.close(1)", "sys.stdout.close()"])
def test_a_program_without_stdout_opens_indices_too(closing: str) -> None:
    code = (
        f"import os, sys\nfrom clip_retrieval.search.native_output import printing_nothing\n{closing}\n"
        "with printing_nothing():\n    pass\nos.write(2, b'opened')\nos._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "opened"
