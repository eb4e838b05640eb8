"""Embeddings of as many rendered pictures as wanted: the demo's glyphs drawn again, through `inference` with its model.

    python benchmarks/render_demo.py FOLDER [--rows 100000] [--queries 1000]

Draws with demo/augment.py, which paints training's kind of picture, some thousand a second: each glyph turned, scaled
and colored by random numbers of its own on a background of its own, so that no two are alike, and none is one that
was trained on. Captions are names in sentences. Needs the color emoji font that demo/glyphs.py names. FOLDER becomes
an embeddings folder, with queries beside that are no rows of it: queries_image.npy (other pictures), queries_text.npy
(parts of names, as people type them), and their exact neighbors gt_*.npy. A stopped run goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from index_vectors import DEPTH, MODALITIES, exact_neighbors
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    import torch
    from augment import Painter
    from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))

ROWS_PER_SHARD, PAINTED_AT_ONCE = 1000, 100
QUALITY = 92  # JPEG quality


@dataclass(frozen=True)
class Shard:
    """One tar: which pictures it holds, and what their captions are."""

    path: Path
    start: int
    count: int
    is_query: bool


def draw_shards(shards: list[Shard]) -> int:
    """Draw the pictures of the tars that are not there; return how many."""
    import torch
    from augment import Painter, Strength
    from captions import CaptionMaker
    from glyphs import load_glyphs

    glyphs = load_glyphs()
    painter = Painter(glyphs, Strength())
    missing = [shard for shard in shards if not shard.path.exists()]
    for shard in missing:
        seed = 2 * shard.start + shard.is_query
        rng = torch.Generator().manual_seed(seed)
        captions = CaptionMaker([glyph.name for glyph in glyphs], seed)
        caption = captions.partial if shard.is_query else captions.whole
        chosen = torch.randint(len(glyphs), (shard.count,), generator=rng)
        part = shard.path.with_suffix(".part")
        with tarfile.open(part, "w") as tar:
            for i, pixels in enumerate(paint(painter, chosen, rng)):
                text = caption(int(chosen[i])).text
                payloads = {
                    "jpg": encode_jpeg(pixels),
                    "txt": text.encode(),
                    "json": json.dumps({"seed": seed}).encode(),
                }
                for suffix, payload in payloads.items():
                    info = tarfile.TarInfo(f"{shard.start + i:09d}.{suffix}")
                    info.size = len(payload)
                    tar.addfile(info, io.BytesIO(payload))
        part.rename(shard.path)
    return sum(shard.count for shard in missing)


def paint(painter: Painter, chosen: Tensor, rng: torch.Generator) -> NDArray[np.uint8]:
    """Return pictures [n, 64, 64, 3]."""
    import torch
    from augment import MEAN, STD

    parts = [painter.paint(part, rng) * STD + MEAN for part in chosen.split(PAINTED_AT_ONCE)]
    return (torch.cat(parts) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def encode_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def render(folder: Path, count: int, *, is_query: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, ROWS_PER_SHARD)
    sizes = [min(ROWS_PER_SHARD, count - first) for first in starts]
    shards = [Shard(folder / f"{i:05d}.tar", starts[i], size, is_query) for i, size in enumerate(sizes)]
    start = time.perf_counter()
    drawn = draw_shards(shards)
    seconds = time.perf_counter() - start
    print(f"{drawn:,} pictures drawn in {seconds:.0f} s", flush=True)


def embed(shards: Path, folder: Path) -> None:
    from clip_retrieval import clip_inference

    summary = clip_inference(
        str(shards), str(folder), input_format="webdataset", clip_model="demo", enable_metadata=True, device="cpu"
    )
    print(json.dumps(summary.to_json()), flush=True)


def add_queries(folder: Path, embedded: Path) -> None:
    """Put the queries and their exact neighbors beside the embeddings."""
    files = sorted((folder / "img_emb").glob("*.npy"))
    for modality, name in zip(MODALITIES, ("img_emb", "text_emb"), strict=True):
        rows = np.concatenate([np.load(path) for path in sorted((embedded / name).glob("*.npy"))]).astype(np.float32)
        ids, scores = exact_neighbors(files, rows, DEPTH + 1)
        np.save(folder / f"queries_{modality}.npy", rows)
        np.save(folder / f"gt_{modality}.npy", ids)
        np.save(folder / f"gt_{modality}_scores.npy", scores)
        print(f"{modality}: {len(rows):,} queries, mean score of the first hit {scores[:, 0].mean():.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--keep_pictures", action="store_true", help="keep the tars below FOLDER/pictures")
    args = parser.parse_args()
    pictures, queries = args.folder / "pictures", args.folder / "query_pictures"
    render(queries, args.queries, is_query=True)
    render(pictures, args.rows, is_query=False)
    embed(pictures, args.folder)
    embed(queries, args.folder / "queries")
    add_queries(args.folder, args.folder / "queries")
    if not args.keep_pictures:
        shutil.rmtree(pictures)
    shutil.rmtree(queries)


if __name__ == "__main__":
    main()
