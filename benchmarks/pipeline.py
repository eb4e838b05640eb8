"""Inference side by side: this project as it is installed, and clip-retrieval 2.45 where there is one.

    python benchmarks/pipeline.py tars   --peer VENV [--runs 3] [--input FOLDER]
    python benchmarks/pipeline.py photos --peer VENV [--runs 3] [--input FOLDER | --format jpg|png|webp]

tars: 1,024 samples of 256 px in webdataset shards, pictures and captions. photos: a folder of pictures of 12
megapixels, pictures only. Without --input they are made first. Both projects get the same random ViT-B-32 and no
option but those of the input; --batch is the peer's, whose two warm-up batches it makes smaller. Runs alternate, and
after each of our later ones the engine alone encodes the same samples, ready in memory: the share of it that the
pipeline reaches is the median over such pairs. The first run of this project finds an empty cache and converts the
model; the others find it converted, as all but a user's first do.
--peer is a virtual environment with clip-retrieval 2.45 (and setuptools below 81, without which it does not start).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from make_data import picture, write_shards
from PIL import Image

MODEL = "ViT-B-32"
COMPARED = 256  # rows that are compared with open_clip's fp32


def write_photos(folder: Path, count: int, kind: str) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        data, path = picture(np.random.default_rng([7, number]), 3000), folder / f"{number:05d}.{kind}"
        if kind == "jpg":
            path.write_bytes(data)
        else:
            Image.open(io.BytesIO(data)).save(path)


def options_of(kind: str) -> list[str]:
    if kind == "tars":
        return ["--input_format", "webdataset", "--enable_metadata", "True"]
    return ["--input_format", "files", "--enable_text", "False"]


def timed(command: list[str], **environment: str) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - start, done.stdout


def run_ours(kind: str, source: Path, out: Path, cache: Path) -> tuple[float, dict[str, Any]]:
    command = [sys.executable, "-m", "clip_retrieval", "inference", str(source), str(out), "--json"]
    seconds, text = timed(
        [*command, *options_of(kind), "--clip_model", f"random:{MODEL}?seed=0"], CLIP_RETRIEVAL_CACHE=str(cache)
    )
    return seconds, json.loads(text)


def run_peer(args: argparse.Namespace, source: Path, out: Path, weights: Path) -> float:
    kind = args.kind
    tars = sorted(map(str, source.glob("*.tar")))
    place = str(source) if kind == "photos" else "{" + ",".join(tars) + "}" if len(tars) > 1 else tars[0]
    command = [
        str(args.peer / "bin/clip-retrieval"),
        "inference",
        "--input_dataset",
        place,
        "--output_folder",
        str(out),
    ]
    command += [
        *options_of(kind),
        "--batch_size",
        str(args.batch),
        "--use_jit",
        "False",
        "--output_partition_count",
        "1",
    ]
    command += ["--clip_model", f"open_clip:{MODEL}/{weights}", "--num_prepro_workers", str(os.cpu_count())]
    return timed(command, HF_HUB_OFFLINE="1", PYTHONPATH="")[0]


def samples_of(kind: str, source: Path) -> Iterator[tuple[bytes, str]]:
    """Yield picture and caption in the order of the input."""
    if kind == "photos":
        yield from ((path.read_bytes(), "") for path in sorted(source.iterdir()))
        return
    for shard in sorted(source.glob("*.tar")):
        with tarfile.open(shard) as tar:
            parts: dict[str, bytes] = {}
            for member in tar:
                parts[member.name.rpartition(".")[2]] = tar.extractfile(member).read()
                if len(parts) == 3:
                    yield parts["jpg"], parts["txt"].decode()
                    parts = {}


def measure_engine(kind: str, source: Path) -> None:
    """Print the seconds that the engine takes for ready pixels and captions, as json; in a process of its own."""
    from clip_retrieval.encoder.images import decode_image
    from clip_retrieval.encoder.load import load_encoder

    encoder = load_encoder(f"random:{MODEL}?seed=0", workload="bulk")
    pixels, captions = [], []
    for data, caption in samples_of(kind, source):
        pixels.append(encoder.info.preprocess(decode_image(data)))
        captions.append(caption)
    ready = np.stack(pixels)
    rounds = []
    for _ in range(2):
        start = time.perf_counter()
        for i in range(0, len(ready), 256):
            encoder.encode_images(ready[i : i + 256])
        middle = time.perf_counter()
        if kind == "tars":
            encoder.encode_texts(captions)
        rounds.append((middle - start, time.perf_counter() - middle))
    images, texts = rounds[-1]
    print(json.dumps({"images": images, "texts": texts}))


def least_cosines(kind: str, source: Path, out: Path) -> dict[str, float]:
    """Return how near our first rows come to open_clip's own transform and fp32 model."""
    import open_clip
    import torch

    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms(MODEL)
    model.eval()
    tokenizer = open_clip.get_tokenizer(MODEL)
    images, texts = [], []
    with torch.inference_mode():
        for number, (data, caption) in enumerate(samples_of(kind, source)):
            if number == COMPARED:
                break
            ready = preprocess(Image.open(io.BytesIO(data)).convert("RGB"))[None]
            images.append(model.encode_image(ready, normalize=True).numpy()[0])
            texts.append(model.encode_text(tokenizer([caption]), normalize=True).numpy()[0])
    wanted = {"img_emb": np.stack(images)} | ({"text_emb": np.stack(texts)} if kind == "tars" else {})
    found = {}
    for name, rows in wanted.items():
        ours = np.concatenate([np.load(path) for path in sorted((out / name).glob("*.npy"))])[: len(rows)]
        ours = ours.astype(np.float32)
        cosines = (ours * rows).sum(1) / np.linalg.norm(ours, axis=1)
        found[name] = float(cosines.min())
    return found


def save_weights(path: Path) -> None:
    import open_clip
    import torch

    torch.manual_seed(0)
    torch.save(open_clip.create_model(MODEL).state_dict(), path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["tars", "photos", "engine"])
    parser.add_argument("--input", type=Path)
    parser.add_argument("--format", choices=["jpg", "png", "webp"], default="jpg")
    parser.add_argument("--count", type=int)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--engine-of", choices=["tars", "photos"])  # for the child process
    return parser.parse_args()


def report(name: str, seconds: list[float], count: int, peer: list[float]) -> None:
    wall = statistics.median(seconds)
    ratio = f"{statistics.median(peer) / wall:7.2f} x" if peer else ""
    print(f"{name:38} {wall:8.1f} s ({min(seconds):.1f}-{max(seconds):.1f}) {count / wall:8.1f} samples/s {ratio}")


@dataclass
class Figures:
    """Seconds of all runs, and of our later ones samples per second without start-up."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    account: dict[str, Any] = field(default_factory=dict)  # what our last run said of itself


def measure(args: argparse.Namespace, source: Path, work: Path) -> Figures:
    figures = Figures()
    command = [sys.executable, __file__, "engine", "--engine-of", args.kind, "--input", str(source)]
    for run in range(args.runs + 1):
        seconds, figures.account = run_ours(args.kind, source, work / f"ours{run}", work / "cache")
        (figures.later if run else figures.first).append(seconds)
        if run:
            alone = json.loads(timed(command, CLIP_RETRIEVAL_CACHE=str(work / "cache"))[1])
            figures.engine.append(alone["images"] + alone["texts"])
            figures.rates.append(figures.account["rate"])
        if args.peer and run < args.runs:
            figures.peer.append(run_peer(args, source, work / f"peer{run}", work / "weights.pt"))
    return figures


def main() -> None:
    args = parse_arguments()
    if args.kind == "engine":
        measure_engine(args.engine_of, args.input)
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        source = args.input or work / "input"
        if args.input is None and args.kind == "tars":
            write_shards(source, args.count or 1024, 256, 256)
        elif args.input is None:
            write_photos(source, args.count or 60, args.format)
        save_weights(work / "weights.pt")
        figures = measure(args, source, work)
        account, peer = figures.account, figures.peer
        count = account["sample_count"]
        if peer:
            report("clip-retrieval 2.45", peer, count, peer)
        report("this project, first run (converts)", figures.first, count, peer)
        report("this project, later runs", figures.later, count, peer)
        report("the engine alone on ready tensors", figures.engine, count, [])
        shares = [100 * rate * alone / count for rate, alone in zip(figures.rates, figures.engine, strict=True)]
        print(
            f"\nthe pipeline without start-up: {statistics.median(figures.rates):.1f} samples/s, "
            f"{statistics.median(shares):.0f} % of it ({min(shares):.0f}-{max(shares):.0f})"
        )
        print(f"{account['diagnosis']}; {account['shares']}")
        for name, least in least_cosines(args.kind, source, work / f"ours{args.runs}").items():
            print(f"least cosine of {name} to open_clip's transform and fp32, {COMPARED} rows at most: {least:.6f}")


if __name__ == "__main__":
    main()
