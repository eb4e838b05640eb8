from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from clip_retrieval.process.quick_start import SPIN, UNUSED_PARTS, starting_quickly

START = (
    "import gc, os, sys\nfrom clip_retrieval.process.quick_start import starting_quickly\n"
    "with starting_quickly():\n    assert not gc.isenabled()\n    import numpy as np\n"
    f"    spins = os.environ['{SPIN}']\n"
)


def run(code: str, **environment: str) -> str:
    """Return what a fresh Python prints that started quickly."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", START + code],
        capture_output=True, text=True, check=True,
        env={**{name: value for name, value in os.environ.items() if name != SPIN}, **environment},
    )  # fmt: skip
    return done.stdout.strip()


def test_parts_of_numpy_are_loaded_when_they_are_named() -> None:
    loaded = f"print([name for name in {UNUSED_PARTS!r} if f'numpy.{{name}}' in sys.modules])\n"
    used = (
        "print(np.random.default_rng(0).integers(9, size=3).tolist(), np.fft.fft([1, 0]).real.tolist())\n"
        "print(np.ma.masked_equal([1, 2], 2).sum(), np.polynomial.Polynomial([1, 2])(3), np.ctypeslib.as_ctypes)\n"
        "from numpy.random import default_rng\nimport numpy.ma\n"
        "assert default_rng is np.random.default_rng and numpy.ma is sys.modules['numpy.ma']\n"
    )
    before, numbers, more, after = run(loaded + used + loaded).splitlines()
    assert before == "[]"
    assert numbers == "[7, 5, 4] [1.0, 1.0]"
    assert more.startswith("1 7.0 <function")
    assert after == str(list(UNUSED_PARTS))


def test_a_name_that_numpy_lacks_is_an_error_as_ever() -> None:
    assert run("print(hasattr(np, 'no_such_part'), hasattr(np, 'testing'))") == "False True"


def test_idle_threads_sleep_unless_the_environment_says_otherwise() -> None:
    told = f"print(spins, os.environ.get('{SPIN}'))"
    assert run(told) == "4 None"
    assert run(told, **{SPIN: "20"}) == "20 20"


def test_garbage_is_collected_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SPIN, "4")
    with starting_quickly():
        assert not gc.isenabled()
    try:
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_the_package_leaves_the_numpy_of_its_user_alone() -> None:
    code = (
        "import sys\nfrom clip_retrieval import load_encoder\nprint('numpy' in sys.modules, 'numpy.ma' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True True"
