"""Draw the demo gallery: webdataset shards of pictures in the gallery's style, with captions and json.

python demo/gallery.py --out clip_retrieval/demo/gallery
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from glyphs import Glyph, load_glyphs
from pictures import Picture, draw_gallery_picture

SEED = 2026
PICTURES_PER_SHARD = 425
SECOND_PICTURE_OF_EVERY = 4  # every fourth glyph is there twice


def draw_gallery(glyphs: list[Glyph]) -> list[Picture]:
    """Draw one picture of each glyph, then a second of some, in an order that mixes neighbors."""
    rng = np.random.default_rng(SEED)
    chosen = [*glyphs, *glyphs[::SECOND_PICTURE_OF_EVERY]]
    return [draw_gallery_picture(chosen[i], rng) for i in rng.permutation(len(chosen))]


def add(tar: tarfile.TarFile, name: str, payload: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(payload), 0o644
    tar.addfile(info, io.BytesIO(payload))


def describe(picture: Picture) -> dict[str, object]:
    return {
        "emoji": chr(picture.glyph.code_point),
        "code_point": f"U+{picture.glyph.code_point:04X}",
        "background": picture.background,
        "rotation_degrees": picture.rotation_degrees,
        "scale": picture.scale,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pictures = draw_gallery(load_glyphs())
    for shard, start in enumerate(range(0, len(pictures), PICTURES_PER_SHARD)):
        with tarfile.open(args.out / f"{shard:05d}.tar", "w") as tar:
            for i, picture in enumerate(pictures[start : start + PICTURES_PER_SHARD], start=start):
                add(tar, f"{i:05d}.jpg", picture.jpeg)
                add(tar, f"{i:05d}.txt", picture.glyph.name.encode())
                add(tar, f"{i:05d}.json", json.dumps(describe(picture), ensure_ascii=False).encode())
    print(f"{len(pictures)} pictures in {args.out}")


if __name__ == "__main__":
    main()
