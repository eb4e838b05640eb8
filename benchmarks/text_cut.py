"""Texts per second of ViT-B-32's text tower, captions cut to their length against captions padded to 77 tokens.

    python benchmarks/text_cut.py [--texts 2000] [--batch 256] [--repeats 3] [--json]

Random weights with randomized biases and norms, captions of 4 to 18 words. Both ways take turns batch by batch, and
the best of the repeats counts for each batch, so that other processes disturb both alike. CPU time is given beside the
time that passed; it counts threads that wait for each other, so neither is to be trusted on a busy machine. The ratio
of tokens is about what can be won.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from clip_retrieval.encoder.engines.causal_text import TextEncoder, choose_text_encoder

WORDS = (
    "a the of on in with and at near under dog cat man woman child horse street beach mountain kitchen table red blue "
    "small old wooden bright running sitting holding photograph painting umbrella bicycle restaurant airplane"
).split()


def make_captions(count: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(4, 18))) for _ in range(count)]


def make_model() -> Any:
    """Build the architecture with every bias and norm randomized: zeros would hide a dropped one."""
    torch.manual_seed(0)
    model: Any = open_clip.create_model("ViT-B-32").eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias") or ".ln_" in name:
                value.add_(0.05 * torch.randn_like(value))
    return model


@torch.inference_mode()
def measure(encode: TextEncoder, batch: Tensor) -> tuple[float, float, Tensor]:
    """Return the seconds that passed, those of CPU time, and the features."""
    wall, cpu = time.perf_counter(), time.process_time()
    features = encode(batch)
    return time.perf_counter() - wall, time.process_time() - cpu, features


def compare(ways: dict[str, TextEncoder], batches: list[Tensor], repeats: int) -> dict[str, float]:
    """Return texts per second of each way, by the clock and by CPU time, and the least cosine between them."""
    wall, cpu = (dict.fromkeys(ways, 0.0) for _ in range(2))
    least = 1.0
    for batch in batches:
        runs = [{name: measure(encode, batch) for name, encode in ways.items()} for _ in range(repeats)]
        for name in ways:
            wall[name] += min(run[name][0] for run in runs)
            cpu[name] += min(run[name][1] for run in runs)
        padded, cut = (runs[0][name][2] for name in ways)
        least = min(least, float(nn.functional.cosine_similarity(padded, cut).min()))
    count = sum(len(batch) for batch in batches)
    rates = {name: count / seconds for name, seconds in wall.items()}
    speedups = {"speedup": wall["padded"] / wall["cut"], "cpu_speedup": cpu["padded"] / cpu["cut"]}
    return {**rates, **speedups, "least_cosine": least}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    model, tokenizer = make_model(), open_clip.get_tokenizer("ViT-B-32")
    batches = list(torch.split(tokenizer(make_captions(args.texts)), args.batch))
    ways = {"padded": model.encode_text, "cut": choose_text_encoder(model, tokenizer, torch.device("cpu"))}
    for encode in ways.values():
        measure(encode, batches[0])
    result = compare(ways, batches, args.repeats)
    lengths = torch.cat(batches).argmax(dim=1) + 1.0
    result["token_ratio"] = batches[0].shape[1] / float(lengths.mean())
    if args.json:
        print(json.dumps(result))
        return
    print(f"{args.texts} captions of 4-18 words, batch {args.batch}, best of {args.repeats}, fp32")
    print(f"  {torch.get_num_threads()} threads, {result['token_ratio']:.2f} x fewer tokens when cut")
    for name in ways:
        print(f"  {name:<7} {result[name]:7.1f} texts/s")
    print(f"  {result['speedup']:.2f} x as fast by the clock, {result['cpu_speedup']:.2f} x by CPU time")
    print(f"  least cosine {result['least_cosine']:.7f}")


if __name__ == "__main__":
    main()
