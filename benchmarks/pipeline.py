"""Inference side by side: this project, a plain open_clip loop, and clip-retrieval 2.45 where it is installed.

    python benchmarks/pipeline.py [--shards FOLDER] [--model random:ViT-B-32] [--peer VENV] [--runs 3]

Without --shards, 1,024 samples are made first. --peer is a virtual environment with clip-retrieval 2.45 (and
setuptools below 81, without which it does not start). All runs alternate on one machine, on the same tars and the
same weights; what is printed are medians, and the ratio of the wall times of the whole commands.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from make_data import write_shards


def run_ours(shards: list[Path], out: Path, model: str, batch: int) -> tuple[float, dict[str, float]]:
    """Return the wall seconds of the command, and its own account."""
    command = [sys.executable, "-m", "clip_retrieval", "inference", str([str(s) for s in shards]), str(out)]
    command += ["--input_format", "webdataset", "--enable_metadata", "True", "--batch_size", str(batch)]
    command += [
        "--clip_model",
        model,
        "--output_partition_count",
        "1",
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--json",
    ]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, json.loads(done.stdout)


def run_peer(venv: Path, shards: list[Path], out: Path, weights: Path, batch: int) -> float:
    """Return the wall seconds of clip-retrieval 2.45 on the same work."""
    pattern = "{" + ",".join(map(str, shards)) + "}" if len(shards) > 1 else str(shards[0])
    command = [str(venv / "bin/clip-retrieval"), "inference", "--input_dataset", pattern, "--output_folder", str(out)]
    command += ["--input_format", "webdataset", "--enable_metadata", "True", "--batch_size", str(batch)]
    command += ["--clip_model", f"open_clip:ViT-B-32/{weights}", "--use_jit", "False", "--output_partition_count", "1"]
    command += ["--num_prepro_workers", str(os.cpu_count())]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return time.perf_counter() - start


def plain_loop(shards: list[Path], model_name: str, batch: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Embed with open_clip and nothing else; return images, texts [n, d], and the seconds after loading."""
    import io
    import tarfile

    import open_clip
    import torch
    from PIL import Image

    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(model_name)
    model.eval()
    tokenizer = open_clip.get_tokenizer(model_name)
    pictures, captions = [], []
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                data = tar.extractfile(member).read()
                if member.name.endswith(".jpg"):
                    pictures.append(data)
                elif member.name.endswith(".txt"):
                    captions.append(data.decode())
    images, texts = [], []
    start = time.perf_counter()
    with torch.inference_mode():
        for i in range(0, len(pictures), batch):
            pixels = torch.stack([preprocess(Image.open(io.BytesIO(data))) for data in pictures[i : i + batch]])
            images.append(model.encode_image(pixels, normalize=True).numpy())
            texts.append(model.encode_text(tokenizer(captions[i : i + batch]), normalize=True).numpy())
    return np.concatenate(images), np.concatenate(texts), time.perf_counter() - start


def least_cosine(ours: Path, reference: np.ndarray) -> float:
    rows = np.concatenate([np.load(path).astype(np.float32) for path in sorted(ours.glob("*.npy"))])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return float((rows * reference).sum(1).min())


def save_weights(model_name: str, path: Path) -> None:
    import open_clip
    import torch

    torch.manual_seed(0)
    torch.save(open_clip.create_model(model_name).state_dict(), path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--skip-loop", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        if args.shards is None:
            args.shards = work / "shards"
            write_shards(args.shards, 1024, 256, 256)
        shards = sorted(args.shards.glob("*.tar"))
        walls: dict[str, list[float]] = {}
        for run in range(args.runs):
            wall, account = run_ours(shards, work / f"ours{run}", f"random:{args.model}?seed=0", args.batch)
            walls.setdefault("this project", []).append(wall)
            if args.peer:
                weights = work / "weights.pt"
                save_weights(args.model, weights)
                wall = run_peer(args.peer, shards, work / f"peer{run}", weights, args.batch)
                walls.setdefault("clip-retrieval 2.45", []).append(wall)
        count = account["sample_count"]
        for name, seconds in walls.items():
            wall = statistics.median(seconds)
            spread = f"{min(seconds):.1f}-{max(seconds):.1f}"
            print(f"{name:22} {wall:7.1f} s wall ({spread})  {count / wall:7.1f} samples/s")
        busy = account["inference_duration"]
        print(f"{'encoding alone':22} {busy:7.1f} s of it        {count / busy:7.1f} samples/s")
        if args.peer:
            ratio = statistics.median(walls["clip-retrieval 2.45"]) / statistics.median(walls["this project"])
            print(f"this project is {ratio:.2f} x as fast")
        if not args.skip_loop:
            images, texts, seconds = plain_loop(shards, args.model, args.batch)
            print(f"{'plain open_clip loop':22} {seconds:7.1f} s without start {count / seconds:7.1f} samples/s")
            for name, reference in (("img_emb", images), ("text_emb", texts)):
                least = least_cosine(work / "ours0" / name, reference)
                print(f"least cosine of {name} to the loop, row by row: {least:.6f}")


if __name__ == "__main__":
    main()
