"""Whole runs on a GPU beside the same on the CPU. Skipped without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clip_retrieval import clip_inference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
MODEL = "random:ViT-S-32"
SHARDS, PER_SHARD, SECONDS = 12, 100, 120

Write = Callable[[Path, int, int], Path]
Read = Callable[[Path, str], NDArray[np.float16]]


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_a_run_on_a_gpu_gives_the_rows_of_one_on_the_cpu(
    precision: str, tmp_path: Path, write_shards: Write, read_embeddings: Read
) -> None:
    tars = write_shards(tmp_path / "tars", 2, PER_SHARD)
    options = {"input_format": "webdataset", "clip_model": MODEL, "batch_size": 64, "num_prepro_workers": 2}
    clip_inference(str(tars), str(tmp_path / "cpu"), **options, device="cpu", precision="fp32")
    clip_inference(str(tars), str(tmp_path / "gpu"), **options, device="cuda:0", precision=precision)
    for folder in ("img_emb", "text_emb"):
        cpu, gpu = (read_embeddings(tmp_path / name, folder).astype(np.float32) for name in ("cpu", "gpu"))
        assert cpu.shape == gpu.shape == (2 * PER_SHARD, 384)
        assert (cpu * gpu).sum(axis=1).min() > (0.99 if precision == "bf16" else 0.998)
    if precision == "auto":
        manifest = json.loads((tmp_path / "gpu" / "manifest.json").read_text())
        assert manifest["encoder"]["precision"] == "fp16"
        assert min(manifest["encoder"]["precision_check"]["least_cosine"].values()) > 0.999


def test_a_killed_run_on_a_gpu_ends_in_the_same_bytes(
    tmp_path: Path, write_shards: Write, snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    tars = write_shards(tmp_path / "tars", SHARDS, PER_SHARD)

    def start(out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "clip_retrieval", "inference", str(tars), str(tmp_path / out), "webdataset"]
        command += ["--clip_model", MODEL, "--device", "cuda:0", "--output_partition_count", str(SHARDS)]
        return subprocess.Popen([*command, "--batch_size", "16", "--num_prepro_workers", "2"], start_new_session=True)

    undisturbed, killed = start("whole"), start("killed")
    deadline = time.monotonic() + SECONDS
    while not list((tmp_path / "killed" / "metadata").glob("*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(SECONDS)
    done = len(list((tmp_path / "killed" / "metadata").glob("*.parquet")))
    assert 0 < done < SHARDS
    assert start("killed").wait(SECONDS) == undisturbed.wait(SECONDS) == 0
    assert snapshot(tmp_path / "killed") == snapshot(tmp_path / "whole")
