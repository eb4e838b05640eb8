from __future__ import annotations

from pathlib import Path

import pytest

from clip_retrieval.encoder.precision import precisions_of


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 avx512_vnni avx512_bf16 amx_bf16 amx_int8", ("bf16", "fp32")),
        ("fpu avx2 avx512_vnni avx512_bf16", ("int8", "bf16", "fp32")),
        ("fpu avx2 avx_vnni", ("int8", "fp32")),
        ("fpu avx2", ("fp32",)),
    ],
)
def test_the_fastest_that_the_cpu_has_units_for_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    assert precisions_of(tmp_path / "cpuinfo") == expected


def test_an_unknown_cpu_computes_in_fp32(tmp_path: Path) -> None:
    assert precisions_of(tmp_path / "there is none") == ("fp32",)
