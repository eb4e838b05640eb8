"""What `clip-retrieval search` costs on a folder of pictures: the first time, again, after changes; beside rclip.

    python benchmarks/photos.py SCRATCH [--count 10000] [--layers 12] [--small 100000] [--rclip PYTHON]

PYTHON is the interpreter of an environment that rclip is installed in. rclip runs one model only, ViT-B-32-256: this
script exports that architecture with random weights to ONNX, puts the files where rclip looks for its own, and gives
the same weights to `search`. With fewer `--layers` than the model's 12 both encode faster, and what they do besides
weighs more. Each line of the table is one command in a fresh process, from the shell to the printed
paths: wall seconds, CPU seconds of the process and its children, the MiB of the largest process. `--small` pictures of
32 px with a weight-free model show what looking for changes costs. SCRATCH keeps the small pictures for the next time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from make_data import picture

ARCHITECTURE = "ViT-B-32-256"
LAYERS = 12
HASHING = "hash:512?size=32"
QUERY = "a red boat under a bridge"
DISTINCT = 500  # pictures that are drawn; the others are these with other bytes after their end
PER_FOLDER = 500
RUNS = ("first", "second, nothing changed", "third", "after ten changes", "again")


def make_pictures(folder: Path, count: int, side: int) -> None:
    """Write `count` JPEGs whose shorter side is `side`, no two of the same bytes, into folders of 500."""
    if (folder / "done").exists():
        return
    drawn = [picture(np.random.default_rng([1, i]), side) for i in range(min(DISTINCT, count))]
    for i in range(count):
        place = folder / f"{i // PER_FOLDER:03d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:06d}.jpg").write_bytes(drawn[i % len(drawn)] + b"%d" % i)
    (folder / "done").touch()


def change_pictures(folder: Path) -> None:
    """Change, rename, remove and add pictures, ten in all."""
    some = sorted(folder.glob("0*/*.jpg"))
    for path in some[:4]:
        path.write_bytes(path.read_bytes() + b"changed")
    for path in some[4:6]:
        path.rename(path.with_name(f"renamed-{path.name}"))
    for path in some[6:8]:
        path.unlink()
    for number in range(2):
        (folder / f"new-{number}.jpg").write_bytes(picture(np.random.default_rng([2, number]), 480))


def measure(command: Sequence[str], variables: Mapping[str, str], cwd: Path) -> tuple[float, float, float]:
    """Run a command; return its wall seconds, CPU seconds, and the MiB of its largest process."""
    code = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, cwd=None);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *command], env=os.environ | variables, cwd=cwd, stdout=subprocess.PIPE, text=True
    )
    wall = time.perf_counter() - start
    status, cpu, memory = done.stdout.split()
    if status != "0":
        sys.exit(f"{' '.join(command)} ended with {status}")
    return wall, float(cpu), float(memory)


def make_model(folder: Path, layers: int) -> None:
    """Write the architecture with so many layers and random weights, as a folder of open_clip's."""
    if (folder / "open_clip_config.json").exists():
        return
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = open_clip.get_model_config(ARCHITECTURE)
    config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = layers
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    weights = open_clip.CLIP(**config).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    said = {
        "model_cfg": config,
        "preprocess_cfg": {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(said))


def export_for_rclip(folder: Path, home: Path) -> None:
    """Write the weights as the ONNX files that rclip looks for, and CLIP's vocabulary beside them."""
    models = home / "ViT-B-32-256-datacomp_s34b_b86k"
    if (models / "textual.onnx").exists():
        return
    import open_clip
    import torch

    models.mkdir(parents=True)
    model = open_clip.create_model(f"local-dir:{folder}").eval()

    class Tower(torch.nn.Module):
        def __init__(self, encode: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__()
            self.model, self.encode = model, encode

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return self.encode(given)

    cases = (
        ("visual", model.encode_image, torch.zeros(2, 3, 256, 256)),
        ("textual", model.encode_text, torch.ones(2, 77, dtype=torch.int64)),
    )
    for name, encode, example in cases:
        torch.onnx.export(
            Tower(encode), (example,), models / f"{name}.onnx", input_names=["input"], output_names=["output"],
            dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}}, dynamo=False,
        )  # fmt: skip
    (home / "tokenizer").mkdir()
    vocabulary = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    shutil.copy(vocabulary, home / "tokenizer" / vocabulary.name)


def show(what: str, ours: tuple[float, float, float], theirs: tuple[float, float, float] | None) -> None:
    cells = [f"{ours[0]:.2f} / {ours[1]:.2f} / {ours[2]:.0f}"]
    cells.append("" if theirs is None else f"{theirs[0]:.2f} / {theirs[1]:.2f} / {theirs[2]:.0f}")
    cells.append("" if theirs is None else f"{theirs[0] / ours[0]:.2f} / {theirs[1] / ours[1]:.2f}")
    print(f"| {what} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the image tower and of the text tower")
    parser.add_argument("--small", type=int, default=100_000)
    parser.add_argument("--rclip", type=Path, help="the python of an environment with rclip")
    args = parser.parse_args()
    scratch = args.scratch.resolve()
    pictures, small = scratch / f"pictures-{args.count}", scratch / f"small-{args.small}"
    folder, home = scratch / f"model-{args.layers}", scratch / f"rclip-{args.layers}"
    make_pictures(pictures, args.count, 480)
    shutil.rmtree(scratch / "cache" / "folders", ignore_errors=True)
    variables = {"CLIP_RETRIEVAL_CACHE": str(scratch / "cache"), "RCLIP_DATADIR": str(home), "HF_HUB_OFFLINE": "1"}
    search = [sys.executable, "-m", "clip_retrieval", "search", QUERY, "--paths"]
    make_model(folder, args.layers)
    if args.rclip:
        export_for_rclip(folder, home)
        for old in home.glob("db.sqlite3*"):
            old.unlink()

    print(f"{args.count:,} pictures of 640 x 480, {ARCHITECTURE} of {args.layers} layers, {os.cpu_count()} cores")
    print("each cell: wall s / CPU s / MiB of the largest process; the last column: rclip / ours, wall / CPU\n")
    print("| run | clip-retrieval search | rclip | ratio |\n|---|---|---|---|")
    command = [str(args.rclip), "-m", "rclip", "--filepath-only", QUERY] if args.rclip else None
    for what in RUNS:
        if what == "after ten changes":
            change_pictures(pictures)
        model = ["--clip_model", str(folder)] if what == "first" else []
        ours = measure([*search, str(pictures), *model], variables, scratch)
        show(what, ours, measure(command, variables, pictures) if command else None)
    shutil.rmtree(pictures)  # they are not what make_pictures writes any more
    if args.small:
        make_pictures(small, args.small, 32)
        measure_small([*search, str(small)], variables, small)


def measure_small(command: Sequence[str], variables: Mapping[str, str], small: Path) -> None:
    """Measure the look for changes in a folder of very many pictures."""
    show("small pictures, no weights: first", measure([*command, "--clip_model", HASHING], variables, small), None)
    show("small pictures, nothing changed", measure(command, variables, small), None)
    more = small / "one-more.jpg"
    more.write_bytes(picture(np.random.default_rng(9), 32))
    show("small pictures, after one change", measure(command, variables, small), None)
    more.unlink()


if __name__ == "__main__":
    main()
