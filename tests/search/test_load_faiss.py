"""How commands load faiss."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
SHOWN = {**PLAIN, "OMP_DISPLAY_ENV": "TRUE"}


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_told_otherwise(given: dict[str, str], policy: str) -> None:
    code = (
        "import os\nfrom clip_retrieval.search.load_faiss import load_faiss\nload_faiss()\nimport faiss\n"
        "print(os.environ.get('OMP_WAIT_POLICY'))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=SHOWN | given, capture_output=True, text=True, check=True)
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr.replace("[host] ", "")
    assert done.stdout.strip() == str(given.get("OMP_WAIT_POLICY"))


@pytest.mark.parametrize("command", [["index"], ["index", "score"]])
def test_the_commands_load_it_so(command: list[str]) -> None:
    words = [sys.executable, "-m", "clip_retrieval", *command, "no-folder", "no-folder-either"]
    done = subprocess.run(words, env=SHOWN, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no folder no-folder" in done.stderr
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in done.stderr
