"""What native code prints does not mix with results."""

from __future__ import annotations

import os
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
