"""Inference side by side: this project as it is installed, and clip-retrieval 2.45 where there is one.

    python benchmarks/pipeline.py tars   --peer VENV [--runs 3] [--input FOLDER]
    python benchmarks/pipeline.py photos --peer VENV [--runs 3] [--input FOLDER]

tars: 1,024 samples of 256 px in webdataset shards, pictures and captions. photos: a folder of 12-megapixel JPEGs,
pictures only. Without --input they are made first. Both projects get the same random ViT-B-32 and no option but those
of the input; --batch is the peer's, whose two warm-up batches it makes smaller. Runs alternate. The first run of this
project finds an empty cache and converts the model; the others find it converted, as all but a user's first do.
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
from pathlib import Path
from typing import Any

import numpy as np
from make_data import picture, write_shards

MODEL = "ViT-B-32"
COMPARED = 256  # rows that are compared with open_clip's fp32


def write_photos(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:05d}.jpg").write_bytes(picture(np.random.default_rng([7, number]), 3000))


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
        yield from ((path.read_bytes(), "") for path in sorted(source.rglob("*.jpg")))
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
    for _ in range(4):
        start = time.perf_counter()
        for i in range(0, len(ready), 256):
            encoder.encode_images(ready[i : i + 256])
        middle = time.perf_counter()
        if kind == "tars":
            encoder.encode_texts(captions)
        rounds.append((middle - start, time.perf_counter() - middle))
    images, texts = (statistics.median(times) for times in zip(*rounds[1:], strict=True))
    print(json.dumps({"images": images, "texts": texts}))


def least_cosines(kind: str, source: Path, out: Path) -> dict[str, float]:
    """Return how near our first rows come to open_clip's own transform and fp32 model."""
    import open_clip
    import torch
    from PIL import Image

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
            write_photos(source, args.count or 60)
        save_weights(work / "weights.pt")
        first, later, peer = [], [], []
        for run in range(args.runs + 1):
            seconds, account = run_ours(args.kind, source, work / f"ours{run}", work / "cache")
            (later if run else first).append(seconds)
            if args.peer and run < args.runs:
                place = work / f"peer{run}"
                peer.append(run_peer(args, source, place, work / "weights.pt"))
        count = account["sample_count"]
        if peer:
            report("clip-retrieval 2.45", peer, count, peer)
        report("this project, first run (converts)", first, count, peer)
        report("this project, later runs", later, count, peer)
        command = [sys.executable, __file__, "engine", "--engine-of", args.kind, "--input", str(source)]
        engine = json.loads(timed(command, CLIP_RETRIEVAL_CACHE=str(work / "cache"))[1])
        alone = count / (engine["images"] + engine["texts"])
        print(f"\nengine alone on ready tensors: {alone:.1f} samples/s ({count / engine['images']:.1f} images/s)")
        share = 100 * account["rate"] / alone
        print(f"the pipeline without start-up: {account['rate']:.1f} samples/s, {share:.0f} % of it")
        print(f"{account['diagnosis']}; {account['shares']}")
        for name, least in least_cosines(args.kind, source, work / f"ours{args.runs}").items():
            print(f"least cosine of {name} to open_clip's transform and fp32, {COMPARED} rows at most: {least:.6f}")


if __name__ == "__main__":
    main()
