from __future__ import annotations

import numpy as np
import pytest

from clip_retrieval.commands.reports.tools import print_similarities
from clip_retrieval.tools.similarity import Similarities


def test_a_file_name_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31mred\nnew.png"
    print_similarities(Similarities("demo", (name,), ("dog\x07",), np.zeros((1, 1), np.float32), (), ()))
    printed = capsys.readouterr().out
    assert "\x1b[31m" not in printed
    assert "\x07" not in printed
    assert "a\ufffd[31mred\ufffdnew.png" in printed
