"""What native code prints does not mix with results."""

from __future__ import annotations

import os
import sys

import pytest

from clip_retrieval.search.native_output import printing_to_stderr


def test_native_output_goes_to_stderr_and_results_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    sys.stdout.write("before\n")
    with printing_to_stderr():
        os.write(1, b"native\n")
    sys.stdout.write("after\n")
    out, err = capfd.readouterr()
    assert out == "before\nafter\n"
    assert err == "native\n"
