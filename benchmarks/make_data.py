"""Make webdataset shards of seeded, photo-like pictures with captions and json, to measure on.

python benchmarks/make_data.py FOLDER --count 1024 --per-shard 256 --side 256
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = (
    "red green old small bright wooden cat dog house bridge river tree boat street garden lamp horse cup book".split()
)


def picture(rng: np.random.Generator, side: int) -> bytes:
    """Return a JPEG of smooth color clouds with a few sharp boxes; the shorter side is `side`."""
    width, height = (side, side * 4 // 3) if rng.random() < 0.5 else (side * 4 // 3, side)
    coarse = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (height, width, 3))
    pixels = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
    for _ in range(4):
        y, x = rng.integers(0, height // 2), rng.integers(0, width // 2)
        pixels[y : y + height // 5, x : x + width // 5] = rng.integers(0, 256, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def write_shards(folder: Path, count: int, per_shard: int, side: int, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shard, start in enumerate(range(0, count, per_shard)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(start, min(start + per_shard, count)):
                rng = np.random.default_rng([seed, i])
                text = "a picture of a " + " ".join(rng.choice(WORDS, rng.integers(2, 12)))
                parts = {"jpg": picture(rng, side), "txt": text.encode(), "json": json.dumps({"id": i}).encode()}
                for suffix, payload in parts.items():
                    info = tarfile.TarInfo(f"{i:09d}.{suffix}")
                    info.size = len(payload)
                    tar.addfile(info, io.BytesIO(payload))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--per-shard", type=int, default=256)
    parser.add_argument("--side", type=int, default=256)
    args = parser.parse_args()
    write_shards(args.folder, args.count, args.per_shard, args.side)
    print(f"{args.count} samples in {args.folder}")


if __name__ == "__main__":
    main()
