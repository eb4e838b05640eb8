"""Measure the demo model on pictures that training never saw, and write the figures into its model card.

python demo/evaluate.py clip_retrieval/demo/model [--card]
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from augment import IMAGE_SIDE, MEAN, STD
from captions import CaptionMaker
from glyphs import Glyph, load_glyphs
from pictures import draw_gallery_picture, draw_hard_picture
from PIL import Image
from torch import Tensor
from torch.nn import functional

STYLES = {"gallery": draw_gallery_picture, "hard": draw_hard_picture}
SEEDS = (101, 102, 103)  # the gallery is drawn with 2026, training reports with 99
EASY_QUERIES = (
    *("red heart", "cat face", "slice of pizza", "dog", "fire"),
    *("flag", "blue circle", "smiling face", "rocket", "apple"),
)
MARK = re.compile(r"(<!-- figures -->).*(<!-- end of figures -->)", re.DOTALL)


def draw_pixels(glyphs: Sequence[Glyph], style: str, seed: int) -> Tensor:
    """Return one normalized picture of each glyph [glyphs, 3, 64, 64], through JPEG and the model's own resize."""
    rng = np.random.default_rng(seed)
    rows = []
    for glyph in glyphs:
        image = Image.open(io.BytesIO(STYLES[style](glyph, rng).jpeg))
        rows.append(np.asarray(image.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC), dtype=np.float32))
    pixels = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2) / 255
    return (pixels - MEAN) / STD


@torch.no_grad()
def encode_pixels(clip: torch.nn.Module, pixels: Tensor) -> Tensor:
    """Return unit image embeddings [n, dim]."""
    return functional.normalize(torch.cat([clip.visual(part) for part in pixels.split(256)]).float(), dim=-1)


@torch.no_grad()
def encode_texts(clip: torch.nn.Module, tokenizer: object, texts: Sequence[str]) -> Tensor:
    """Return unit text embeddings [n, dim]."""
    return functional.normalize(clip.encode_text(tokenizer(list(texts))).float(), dim=-1)


def name_recall(
    clip: torch.nn.Module, glyphs: Sequence[Glyph], names: Tensor, style: str, seed: int
) -> dict[str, float]:
    """Return text-to-image recall at 1 and 10: one picture of each glyph, asked for by its name's embedding."""
    scores = names @ encode_pixels(clip, draw_pixels(glyphs, style, seed)).T
    own = scores.diagonal()
    rank = (scores > own[:, None]).sum(1)
    return {f"recall@{k}": round(float((rank < k).float().mean()), 3) for k in (1, 10)}


def measure(folder: Path) -> dict[str, object]:
    """Return every figure of the model card."""
    import open_clip

    torch.manual_seed(0)
    clip = open_clip.create_model(f"local-dir:{folder}").eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    glyphs = load_glyphs()
    names = [glyph.name for glyph in glyphs]
    captions = CaptionMaker(names, 0)
    name_embeddings = encode_texts(clip, tokenizer, names)
    figures: dict[str, object] = {"glyphs": len(glyphs)}
    for style in STYLES:
        runs = [name_recall(clip, glyphs, name_embeddings, style, seed) for seed in SEEDS]
        figures[style] = {key: round(float(np.mean([run[key] for run in runs])), 3) for key in runs[0]}
    pictures = encode_pixels(clip, draw_pixels(glyphs, "gallery", SEEDS[0]))
    words = list(captions.ids)
    first = (encode_texts(clip, tokenizer, words) @ pictures.T).argmax(1)
    holds = captions.has_word[first, torch.tensor([captions.ids[word] for word in words])]
    share = round(float(holds.float().mean()), 3)
    figures["single words"] = {"queries": len(words), "first hit holds the word": share}
    easy = (encode_texts(clip, tokenizer, EASY_QUERIES) @ pictures.T).argmax(1).tolist()
    figures["easy queries"] = {query: names[i] for query, i in zip(EASY_QUERIES, easy, strict=True)}
    wanted = [captions.word_ids(query.split()) for query in EASY_QUERIES]
    right = [bool(captions.has_word[i, ids].all()) for i, ids in zip(easy, wanted, strict=True)]
    figures["easy queries right"] = sum(right)
    return figures


def as_markdown(figures: dict[str, object]) -> str:
    gallery, hard, words = (figures[name] for name in ("gallery", "hard", "single words"))
    first_hits = "; ".join(f"{query}: {name}" for query, name in figures["easy queries"].items())
    return "\n".join(
        [
            f"| {figures['glyphs']:,} glyphs, a new picture each, mean of {len(SEEDS)} seeds | @1 | @10 |",
            "|---|---|---|",
            f"| name to picture, the gallery's style | {gallery['recall@1']:.3f} | {gallery['recall@10']:.3f} |",
            f"| name to picture, the independent renderer | {hard['recall@1']:.3f} | {hard['recall@10']:.3f} |",
            "",
            f"Single words ({words['queries']:,} queries): the first hit's name holds the word in "
            f"{100 * words['first hit holds the word']:.1f} %.",
            "",
            f"First hits of ten easy queries ({figures['easy queries right']} right): {first_hits}.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--card", action="store_true", help="write the figures into the model's README.md")
    args = parser.parse_args()
    figures = measure(args.model)
    print(json.dumps(figures, indent=2))
    if args.card:
        card = args.model / "README.md"
        card.write_text(MARK.sub(lambda match: f"{match[1]}\n{as_markdown(figures)}\n{match[2]}", card.read_text()))


if __name__ == "__main__":
    main()
