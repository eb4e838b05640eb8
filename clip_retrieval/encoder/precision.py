"""The number formats that this machine computes fast in. Loads no runtime."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

from clip_retrieval.encoder.config import Chosen

CPU_FLAGS = Path("/proc/cpuinfo")
UNITS = ("amx_bf16", "amx_int8", "avx2", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni", "fma")


def cpu_precisions() -> tuple[Chosen, ...]:
    """Return the number formats that OpenVINO computes fast in on this CPU, the fastest first; the last is fp32."""
    return precisions_of(CPU_FLAGS)


@cache
def precisions_of(flags_file: Path) -> tuple[Chosen, ...]:
    """Return the number formats for a CPU that a file like /proc/cpuinfo describes.

    With matrix units for bfloat16 (AMX) bfloat16 is the fastest; else int8, four times as fast as fp32, if there are
    units for its dot products (VNNI); else bfloat16 if there are units for it.
    """
    flags = read_flags(flags_file)
    if "amx_bf16" in flags:
        return ("bf16", "fp32")
    has_int8 = bool(flags & {"avx512_vnni", "avx_vnni"})
    has_bf16 = "avx512_bf16" in flags
    return (*(("int8",) if has_int8 else ()), *(("bf16",) if has_bf16 else ()), "fp32")


def cpu_units() -> list[str]:
    """Return what decides how this CPU computes: its architecture, and the units that runtimes ask for."""
    flags = read_flags(CPU_FLAGS)
    return [platform.machine(), *(unit for unit in UNITS if unit in flags)]


def read_flags(flags_file: Path) -> frozenset[str]:
    """Return the features that Linux names for the first core; none if they cannot be known."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    try:
        lines = flags_file.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
