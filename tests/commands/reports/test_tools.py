from __future__ import annotations

import numpy as np
import pytest

from clip_retrieval.commands.reports.tools import print_remarks, print_similarities
from clip_retrieval.tools.inputs import Failure
from clip_retrieval.tools.similarity import Similarities


def test_failures_are_a_line_each_and_cut(capsys: pytest.CaptureFixture[str]) -> None:
    failures = [Failure("a" * 9000, "decode", "\x1b]0;x\x07\n" * 3000), Failure("b.jpg", "empty", "no bytes")]
    print_remarks([], failures)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) < 330
    assert "\x1b" not in lines[1]
    assert lines[2] == "  b.jpg: empty: no bytes"


def test_a_file_name_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31mred\nnew.png"
    print_similarities(Similarities("demo", (name,), ("dog\x07",), np.zeros((1, 1), np.float32), (), ()))
    printed = capsys.readouterr().out
    assert "\x1b[31m" not in printed
    assert "\x07" not in printed
    assert "a\\x1b[31mred new.png" in printed
