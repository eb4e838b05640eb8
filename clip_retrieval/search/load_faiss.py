"""Loads faiss for commands so that its OpenMP threads sleep, not spin, while they wait for each other."""

from __future__ import annotations

import importlib
import os
import sys

POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # read by OpenMP while it is loaded


def load_faiss() -> None:
    """Load faiss; where its threads were told nothing else, they sleep while they wait.

    Else they spin, which takes the cores from whoever they wait for: exact neighbors that are looked for meanwhile, or
    other programs. The variable is set for faiss' own OpenMP alone, and not for what is loaded later.
    """
    if "faiss" in sys.modules or any(name in os.environ for name in POLICIES):
        return
    os.environ[POLICIES[0]] = "PASSIVE"
    try:
        importlib.import_module("faiss")
    finally:
        del os.environ[POLICIES[0]]
