"""How fast inference is on GPUs, beside the model alone on ready tensors, and what compiling the model would bring.

    python benchmarks/gpu.py --models ViT-B-32 ViT-L-14 --samples 20000 --json gpu.json

Needs a machine with one or more NVIDIA GPUs, on which nothing else works. Weights are random: nothing is fetched.
Each row of the table: images/s of the model alone (eager, compiled, as CUDA graphs; the best batch size), of the whole
pipeline with one GPU from 256 px JPEGs in tars on local disk, its share of the model's rate, and with all GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from make_data import write_shards


def rate_of(run, items: int, seconds: float = 3.0) -> float:
    """Return items/s of a function, after one run to warm up."""
    import torch

    run()
    torch.cuda.synchronize()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        run()
        torch.cuda.synchronize()
        count += 1
    return count * items / (time.perf_counter() - start)


def model_alone(architecture: str) -> dict[str, float]:
    """Return images/s by way of running the image tower in fp16, and the batch size that was best in eager mode."""
    import torch

    from clip_retrieval.encoder.config import EncoderConfig
    from clip_retrieval.encoder.engines.gpu import find_batch_size
    from clip_retrieval.encoder.load import load_encoder

    config = EncoderConfig(clip_model=f"random:{architecture}", device="cuda:0", precision="fp16")
    encoder = load_encoder(config, workload="bulk")
    side = encoder.info.preprocess.size
    size = find_batch_size(encoder.encode_images, encoder.memory, side)
    ready = torch.rand((size, 3, side, side), device="cuda").half()
    found = {"batch": size}
    tower = encoder.model.encode_image
    ways = {
        "eager": lambda: tower,
        "compiled": lambda: torch.compile(tower),
        "CUDA graphs": lambda: torch.compile(tower, mode="reduce-overhead"),
    }
    for name, make in ways.items():
        start = time.perf_counter()
        with torch.inference_mode():
            try:
                way = make()
                found[name] = rate_of(lambda way=way: way(ready), size)
            except Exception as error:  # noqa: BLE001 -- a compiler that fails is a result too
                print(f"{architecture}, {name}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
                found[name] = float("nan")
        found[f"{name}, s to the first"] = time.perf_counter() - start
    pixels = np.zeros((size, side, side, 3), np.uint8)
    found["engine"] = rate_of(lambda: encoder.encode_images(pixels), size)  # with copies and normalization
    return found


def run_pipeline(architecture: str, shards: Path, out: Path, device: str, batch: int) -> dict[str, float]:
    command = [sys.executable, "-m", "clip_retrieval", "inference", str(shards), str(out), "--json"]
    command += ["--input_format", "webdataset", "--enable_text", "False", "--clip_model", f"random:{architecture}"]
    command += ["--device", device, "--batch_size", str(batch)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    account = json.loads(done.stdout)
    return {"rate": account["rate"], "shares": account["shares"], "diagnosis": account["diagnosis"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-L-14"])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        sys.exit("there is no GPU that torch can use on this machine")
    count = torch.cuda.device_count()
    print(
        f"{count} x {torch.cuda.get_device_name(0)}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}\n"
    )
    names = ["batch", "eager", "compiled", "CUDA graphs", "engine", "pipeline", "share of eager"]
    names += [f"pipeline, {count} GPUs"] if count > 1 else []
    print("| model | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        shards = Path(scratch) / "shards"
        write_shards(shards, args.samples, 1000, args.side)
        for architecture in args.models:
            found = model_alone(architecture)
            one = run_pipeline(
                architecture, shards, Path(scratch) / f"{architecture}-one", "cuda:0", int(found["batch"])
            )
            found |= {"pipeline": one["rate"], "share of eager": one["rate"] / found["eager"], "shares": one["shares"]}
            found["diagnosis"] = one["diagnosis"]
            if count > 1:
                every = run_pipeline(
                    architecture, shards, Path(scratch) / f"{architecture}-all", "cuda", int(found["batch"])
                )
                found[f"pipeline, {count} GPUs"] = every["rate"]
            results[architecture] = found
            print(f"| {architecture} | " + " | ".join(f"{found[name]:,.2f}" for name in names) + " |", flush=True)
            print(f"\n{architecture}: {one['diagnosis']}\n", file=sys.stderr)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
