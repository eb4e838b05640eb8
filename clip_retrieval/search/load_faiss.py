"""Loads faiss for commands so its OpenMP threads sleep, not spin, while they wait for each other."""

from __future__ import annotations

import importlib
import os
import sys

POLICIES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # read by OpenMP while it is loaded


def load_faiss() -> None:
    """Load faiss; its threads sleep while they wait, unless the environment says otherwise.

    By default they spin, which takes the cores from the work that they wait for, such as a concurrent search for exact
    neighbors, and from other programs. The variable is set only for faiss's own OpenMP, not for what is loaded later.
    """
    if "faiss" in sys.modules or any(name in os.environ for name in POLICIES):
        return
    os.environ[POLICIES[0]] = "PASSIVE"
    try:
        importlib.import_module("faiss")
    finally:
        del os.environ[POLICIES[0]]
