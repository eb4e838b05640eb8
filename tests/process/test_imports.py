from __future__ import annotations

import subprocess
import sys


def test_modules_are_there_after_the_block_and_missing_ones_raise_where_they_are_used() -> None:
    code = (
        "import sys\nfrom clip_retrieval.process.imports import importing\n"
        "with importing('colorsys', 'no_such_module', 'wave'):\n    pass\n"
        "assert {'colorsys', 'wave'} <= sys.modules.keys() and 'no_such_module' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
