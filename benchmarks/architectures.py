"""Which of open_clip's architectures work here: on torch, as ONNX, on OpenVINO in fp32 and in int8.

    python benchmarks/architectures.py run RESULTS.jsonl [--only NAME ...] [--memory_gb 10] [--seconds 900]
    python benchmarks/architectures.py run SHORT.jsonl --blocks 2
    python benchmarks/architectures.py table RESULTS.jsonl SHORT.jsonl

`run` takes architectures from the smallest to the largest, each with random weights in a process of its own, and adds a
line to RESULTS.jsonl for each; those with a line there are skipped, so it may be stopped and started again. It
encodes two pictures and two texts on torch, converts the model as `convert --to onnx` and the default `inference` do,
encodes them with the converted graphs on OpenVINO, and again with int8 weights, which is the default on CPUs with VNNI.
A model whose tokenizer would have to be downloaded is tried without its texts.

With `--blocks 2` each tower has at most two blocks of each kind and width: all operators of the architecture, at a
fraction of its time and memory, so that the largest fit too.

`table` prints the results as Markdown; of two files that have an architecture, the first counts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TEXTS = ["a dog on the beach", "two red apples"]
BYTES_PER_PARAMETER = 12  # fp32 weights of the model, of the graph and of what runs it, at once
TEXT_DEPTHS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--only", nargs="+", default=[], help="architectures to try; all without it")
    parser.add_argument("--memory_gb", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=900, help="for one architecture")
    parser.add_argument("--blocks", type=int, help="of each kind and width that a tower has at most; all without it")
    arguments = parser.parse_args()
    match arguments.what:
        case "run":
            run_all(arguments)
        case "table":
            print_table(arguments.results)


def read_results(path: Path) -> dict[str, Result]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {result["architecture"]: result for result in map(json.loads, lines)}


def run_all(arguments: argparse.Namespace) -> None:
    done = read_results(arguments.results[0])
    for architecture, count in list_sizes(arguments.only):
        if architecture in done:
            continue
        result: Result = {"architecture": architecture, "parameters": count if isinstance(count, int) else None}
        if isinstance(count, str):
            result["torch"] = count
        elif arguments.blocks is None and count * BYTES_PER_PARAMETER > arguments.memory_gb * 1e9:
            result["torch"] = f"not tried: above {arguments.memory_gb:g} GB"
        else:
            result |= run_one(architecture, arguments)
        with arguments.results[0].open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(result, flush=True)


def run_one(architecture: str, arguments: argparse.Namespace) -> Result:
    """Try one architecture in a process of its own, which may end in any way.

    It is forked off this one, which has imported torch and open_clip already.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        process = multiprocessing.get_context("fork").Process(target=try_apart, args=(architecture, arguments, answer))
        process.start()
        process.join(arguments.seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return {"torch": f"not finished in {arguments.seconds:g} s"}
        found = json.loads(answer.read_text()) if answer.exists() else {"torch": f"ended with {process.exitcode}"}
    return {**found, "seconds": round(time.monotonic() - started)}


def try_apart(architecture: str, arguments: argparse.Namespace, answer: Path) -> None:
    limit = int(arguments.memory_gb * 1.5e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if arguments.blocks is not None:
        shorten(architecture, arguments.blocks)
    answer.write_text(json.dumps({"blocks": arguments.blocks} | try_one(architecture)))


def list_sizes(only: list[str]) -> list[tuple[str, int | str]]:
    """Return the architectures with their number of parameters, the smallest first, or why they cannot be built."""
    import open_clip
    import torch

    sizes: list[tuple[str, int | str]] = []
    for architecture in only or open_clip.list_models():
        try:
            with torch.device("meta"):
                model = open_clip.create_model(architecture, device="meta", pretrained_text=False)
            sizes.append((architecture, sum(value.numel() for value in model.parameters())))
        except Exception as error:  # noqa: BLE001 -- torch, timm and transformers raise all kinds
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            sizes.append((architecture, f"cannot be built here: {first[:200]}"))
    return sorted(sizes, key=lambda size: size[1] if isinstance(size[1], int) else 0)


def shorten(architecture: str, blocks: int) -> None:
    """Have open_clip, timm and transformers build the architecture's towers with fewer blocks, in this process."""
    import open_clip
    import timm
    import transformers

    for part, config in open_clip.factory._MODEL_CONFIGS[architecture].items():
        if part.endswith("_cfg") and "layers" in config:
            config["layers"] = cut_depth(config["layers"], blocks)
    build, read = timm.create_model, transformers.AutoConfig.from_pretrained
    timm.create_model = partial(build_short, build, blocks)
    open_clip.hf_model.AutoConfig = SimpleNamespace(from_pretrained=partial(read_short, read, blocks))


def build_short(build: Callable[..., Any], blocks: int, name: str, **options: Any) -> Any:
    try:
        return build(name, depth=blocks, **options)
    except TypeError:  # it has stages, each with its own number of blocks
        trunk = build(name, **options)
    for container in list(find_containers(trunk)):
        drop_alike(container, blocks)
    return trunk


def read_short(read: Callable[..., Any], blocks: int, *given: Any, **options: Any) -> Any:
    config = read(*given, **options)
    for key in TEXT_DEPTHS:
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, min(getattr(config, key), blocks))
    return config


def cut_depth(layers: int | list[int], most: int) -> int | list[int]:
    return [min(count, most) for count in layers] if isinstance(layers, list) else min(layers, most)


def find_containers(model: Any) -> Iterator[Any]:
    from torch import nn

    return (module for module in model.modules() if isinstance(module, nn.Sequential | nn.ModuleList))


def drop_alike(container: Any, most: int) -> None:
    """Drop modules that follow `most` others of their class and of the shapes of their weights."""
    kinds = [(type(child), [weight.shape for weight in child.parameters()]) for child in container]
    for place in range(len(kinds) - 1, most - 1, -1):
        if kinds[place][1] and all(kind == kinds[place] for kind in kinds[place - most : place]):
            del container[place]


def try_one(architecture: str) -> Result:
    """Return what each way to run a model gives: a cosine to torch's embeddings, or what went wrong."""
    from clip_retrieval.encoder.export.compare import make_batches
    from clip_retrieval.encoder.export.convert import convert_into, open_torch
    from clip_retrieval.encoder.export.onnx_weights import quantize_into
    from clip_retrieval.encoder.uri import parse_uri
    from clip_retrieval.errors import ClipRetrievalError, first_line

    result: Result = {}
    with tempfile.TemporaryDirectory() as scratch:
        step = "torch"
        try:
            origin = open_torch(parse_uri(f"random:{architecture}"), None)
            encoder = origin.encoder
            pixels = next(iter(make_batches(encoder.info.preprocess.size, (2,))))
            wanted = encode(encoder, pixels)
            result |= {"torch": "works", "towers": list(wanted)}
            step = "onnx"
            plain, small = Path(scratch) / "plain", Path(scratch) / "int8"
            convert_into(origin, plain)
            result["onnx"] = "built" if is_built(plain) else "traced"
            step = "openvino"
            result[step] = compare(wanted, plain, "fp32", pixels)
            step = "int8"
            quantize_into(plain, small, "int8")
            result[step] = compare(wanted, small, "fp32", pixels)
        except (ClipRetrievalError, OSError, ValueError, RuntimeError) as error:
            result[step] = first_line(error)[:400]
    return result


def is_built(folder: Path) -> bool:
    import onnx

    graph = onnx.load(folder / "visual.onnx", load_external_data=False)
    return graph.producer_name != "pytorch"


def encode(encoder: Any, pixels: Any) -> dict[str, Any]:
    found = {"image": encoder.encode_images(pixels)} if "image" in encoder.info.towers else {}
    return found | ({"text": encoder.encode_texts(TEXTS)} if "text" in encoder.info.towers else {})


def compare(wanted: dict[str, Any], folder: Path, precision: str, pixels: Any) -> dict[str, float]:
    """Return the least cosine of each tower, on OpenVINO as bulk work runs it."""
    from clip_retrieval import load_encoder
    from clip_retrieval.encoder.config import EncoderConfig

    config = EncoderConfig(clip_model=f"onnx:{folder}?runtime=openvino", precision=precision)  # type: ignore[arg-type]
    found = encode(load_encoder(config, workload="bulk"), pixels)
    return {tower: round(float((wanted[tower] * found[tower]).sum(axis=1).min()), 6) for tower in found}


def print_table(paths: list[Path]) -> None:
    print("| architecture | million parameters | blocks | torch | ONNX | OpenVINO fp32 | OpenVINO int8 |")
    print("|---|---|---|---|---|---|---|")
    found: dict[str, Result] = {}
    for path in reversed(paths):
        found |= read_results(path)
    for name, result in sorted(found.items(), key=lambda item: item[0].lower()):
        count = result["parameters"]
        millions = "" if count is None else f"{count / 1e6:.0f}"
        cells = [show(result.get(key, "")) for key in ("torch", "onnx", "openvino", "int8")]
        print(f"| {name} | {millions} | {result.get('blocks') or 'all'} | {' | '.join(cells)} |")


def show(value: str | dict[str, float]) -> str:
    """Return a table's cell: text, or the least cosine of picture and text."""
    return value if isinstance(value, str) else ", ".join(f"{tower} {cosine:.4f}" for tower, cosine in value.items())


if __name__ == "__main__":
    main()
