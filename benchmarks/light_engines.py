"""Engines that answer without a large framework, side by side on one random ViT-B/32: start, speed, memory, agreement.

    PYTHONPATH=PEERS python benchmarks/light_engines.py --work FOLDER [--pictures FOLDER] [--runs 5] [--json FILE]

PEERS are folders with clip_cpp 0.5.0 and mossblaser-clippie 0.0.4 (pip install --target); engines whose package is
missing are left out. All engines get the same weights, kept in the work folder, the same two threads, pictures that are
prepared already, and captions as text, which they tokenize themselves. Every figure is of a fresh process with its
files in the page cache; the cold starts of all engines take turns. Texts of 4 to 18 words: clip_cpp and this project
run the tokens that are there, Clippie trims a batch to its longest, torch and the plain export run all 77. What is
anonymous of the memory cannot be dropped by the system, as mapped weights can. Cosines are to torch in fp32.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from itertools import product
from pathlib import Path

THREADS = 2
ARCHITECTURE = "ViT-B-32-quickgelu"  # OpenAI's activation: the only one that clip_cpp and Clippie share
DIMENSION, SIZE = 512, 224
TOWERS = ("text", "image")
TIMED_ITEMS, REPETITIONS, LONGEST = 64, 3, 2.0
WORDS = "the a of and with in on red dog cat house tree water blue old small photo man woman street car green table"
# name: its class, the file or folder in the work folder, the package that it needs
ENGINES = {
    "clip_cpp 0.5.0 q4_0": ("ClipCpp", "q4_0.gguf", "clip_cpp"),
    "clip_cpp 0.5.0 q8_0": ("ClipCpp", "q8_0.gguf", "clip_cpp"),
    "clip_cpp 0.5.0 f16": ("ClipCpp", "f16.gguf", "clip_cpp"),
    "Clippie 0.0.4": ("Clippie", "clippie.weights", "clippie"),
    "onnxruntime fp32 of torch's export": ("PlainOnnx", "plain", "onnxruntime"),
    "torch fp32 (open_clip)": ("Torch", "model.pt", "open_clip"),
    **{
        f"ours: onnx {kind} on {runtime}": ("Ours", f"{kind}?runtime={runtime}", runtime)
        for runtime in ("onnxruntime", "openvino")
        for kind in ("fp32", "int8", "int4")
    },
    "ours: onnx int8 packed on onnxruntime": ("Ours", "int8-packed?runtime=onnxruntime", "onnxruntime"),
    "ours: gguf f16": ("Ours", "f16.gguf", "open_clip"),
}


class Ours:
    """This project; pixels are uint8, scaled within the model."""

    def __init__(self, folder: Path, file: str) -> None:
        from clip_retrieval import load_encoder

        name = f"{'gguf' if file.endswith('.gguf') else 'onnx'}:{folder / file}"
        self.encoder = load_encoder(name, workload="bulk" if sys.argv[-1] == "rates" else "query")
        import numpy as np

        self.pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        self.encode_texts = self.encoder.encode_texts
        self.note = self.encoder.info.precision

    def encode_images(self, start: int, stop: int):
        return self.encoder.encode_images(self.pixels[start:stop])


class ClipCpp:
    """clip.cpp by ctypes, with its own tokenizer and without numpy; one text at a time, and no more than 8 pictures."""

    def __init__(self, folder: Path, file: str) -> None:
        import ctypes
        import mmap

        class Many(ctypes.Structure):  # tokens, or pictures
            _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))

        class Picture(ctypes.Structure):
            _fields_ = (("width", ctypes.c_int), ("height", ctypes.c_int), *Many._fields_)

        self.ctypes, self.picture, self.many = ctypes, Picture, Many
        self.most = {"image": 8, "text": 1}
        package = Path(importlib.util.find_spec("clip_cpp").origin).parent
        ctypes.CDLL(str(package / "libggml.so"), mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(package / "libclip.so"))
        self.library.clip_model_load.restype = ctypes.c_void_p
        self.context = ctypes.c_void_p(self.library.clip_model_load(str(folder / file).encode(), 0))
        with (folder / "floats.raw").open("rb") as raw:
            self.floats = mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_COPY)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.floats))

    def call(self, name: str, given, count: int = 1):
        found = (self.ctypes.c_float * (DIMENSION * count))()
        function = self.library[name]
        function.restype = self.ctypes.c_bool
        if not function(self.context, THREADS, self.ctypes.byref(given), found, self.ctypes.c_bool()):
            raise RuntimeError(f"{name} failed")
        return found

    def encode_images(self, start: int, stop: int):
        values = SIZE * SIZE * 3
        pictures = [self.picture(SIZE, SIZE, self.address + i * values * 4, values) for i in range(start, stop)]
        if len(pictures) == 1:
            return self.call("clip_image_encode", pictures[0])
        array = (self.picture * len(pictures))(*pictures)
        return self.call("clip_image_batch_encode", self.many(self.ctypes.addressof(array), len(array)), len(array))

    def encode_texts(self, texts: list[str]):
        return [self.encode_text(text) for text in texts]

    def encode_text(self, text: str):
        tokens = self.many()
        self.library.clip_tokenize.restype = self.ctypes.c_bool
        if not self.library.clip_tokenize(self.context, text.encode(), self.ctypes.byref(tokens)):
            raise RuntimeError("clip_tokenize failed")
        return self.call("clip_text_encode", tokens)


class Clippie:
    """numpy on mapped weights; it scales its pictures itself, as this project does."""

    def __init__(self, folder: Path, file: str) -> None:
        import clippie
        import numpy as np
        from PIL import Image

        self.clippie, self.weights = clippie, clippie.load(folder / file)
        self.pixels, self.image = np.load(folder / "pixels.npy", mmap_mode="r"), Image

    def encode_images(self, start: int, stop: int):
        pictures = [self.image.fromarray(row) for row in self.pixels[start:stop]]
        return self.clippie.encode_image(pictures, self.weights.image_encoder)

    def encode_texts(self, texts: list[str]):
        return self.clippie.encode_text(texts, self.weights.text_encoder)


class PlainOnnx:
    """What torch.onnx.export writes, on ONNX Runtime; all 77 tokens, from this project's tokenizer (ONNX has none)."""

    def __init__(self, folder: Path, file: str) -> None:
        import numpy as np
        import onnxruntime

        from clip_retrieval.encoder.tokenizer import BpeTokenizer

        self.int64, self.folder, self.runtime, self.sessions = np.int64, folder / file, onnxruntime, {}
        self.tokenizer = BpeTokenizer()
        self.floats = load_floats(folder)

    def run(self, name: str, batch):
        if name not in self.sessions:
            options = self.runtime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = THREADS, 3
            self.sessions[name] = self.runtime.InferenceSession(
                str(self.folder / f"{name}.onnx"), options, providers=["CPUExecutionProvider"]
            )
        return self.sessions[name].run(None, {"input": batch})[0]

    def encode_images(self, start: int, stop: int):
        return self.run("image", self.floats[start:stop])

    def encode_texts(self, texts: list[str]):
        return self.run("text", self.tokenizer(texts).astype(self.int64))


class Torch:
    """open_clip as it comes, all 77 tokens."""

    def __init__(self, folder: Path, file: str) -> None:
        import open_clip
        import torch

        torch.set_num_threads(THREADS)
        self.torch, self.tokenizer = torch, open_clip.get_tokenizer(ARCHITECTURE)
        self.model = open_clip.create_model(ARCHITECTURE, pretrained=str(folder / file)).eval()
        self.floats = load_floats(folder)

    def encode_images(self, start: int, stop: int):
        with self.torch.inference_mode():
            return self.model.encode_image(self.torch.from_numpy(self.floats[start:stop])).numpy()

    def encode_texts(self, texts: list[str]):
        with self.torch.inference_mode():
            return self.model.encode_text(self.tokenizer(texts)).numpy()


def load_floats(folder: Path):
    """Return the scaled pictures [n, 3, s, s] as a mapped file."""
    import numpy as np

    return np.load(folder / "floats.npy", mmap_mode="c")


def read_memory() -> dict[str, float]:
    """Return this process's peak resident and present anonymous memory in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(lines[name].split()[0]) / 1024 for key, name in (("peak", "VmHWM"), ("anonymous", "RssAnon"))}


def run_worker(name: str, tower: str, folder: Path, task: str) -> None:
    """Open an engine, encode one item, and say when that was done; for `rates` go on to speed and all embeddings."""
    captions = json.loads((folder / "captions.json").read_text())
    engine = globals()[ENGINES[name][0]](folder, ENGINES[name][1])

    def encode(start: int, stop: int):
        return engine.encode_images(start, stop) if tower == "image" else engine.encode_texts(captions[start:stop])

    encode(0, 1)
    found = {"at": time.perf_counter(), "note": getattr(engine, "note", ""), **read_memory()}
    if task == "rates":
        import numpy as np

        most = getattr(engine, "most", {}).get(tower, 32)
        count = len(captions) if tower == "text" else len(np.load(folder / "pixels.npy", mmap_mode="r"))
        rows = [np.asarray(encode(i, min(i + most, count))).reshape(-1, DIMENSION) for i in range(0, count, most)]
        np.save(folder / "rows.npy", np.concatenate(rows))
        timed = min(count, TIMED_ITEMS)
        for label, batch in (("single", 1), ("batch", most)):
            found[label] = max(measure(encode, timed, batch) for _ in range(REPETITIONS))
        found["most"] = most
    print(json.dumps(found))


def measure(encode, count: int, batch: int) -> float:
    """Return items a second over the first `count` of them, or as many as are begun within some seconds."""
    start, done = time.perf_counter(), 0
    while done < count and time.perf_counter() - start < LONGEST:
        encode(done, min(done + batch, count))
        done = min(done + batch, count)
    return done / (time.perf_counter() - start)


def prepare(folder: Path, pictures: Path) -> None:
    """Write the model in every engine's format where it is not there yet, the inputs, and what torch makes of them."""
    import logging

    import numpy as np

    from clip_retrieval.storage import made_whole

    logging.disable(logging.WARNING)  # open_clip's, that the weights are random
    write_inputs(folder, pictures)
    write_model(folder / "model.pt")
    source = f"open_clip:{ARCHITECTURE}/{folder.resolve() / 'model.pt'}"
    for file in ("f32.gguf", "f16.gguf", "fp32"):
        dtype = [] if file == "fp32" else ["--dtype", file[:3]]
        run_command(folder / file, "convert", source, "--to", "gguf" if dtype else "onnx", *dtype)
    for file in ("q4_0.gguf", "q8_0.gguf"):
        run_command(folder / file, "quantize", folder / "f32.gguf", "--type", file[:4])
    for file in ("int8", "int4", "int8-packed"):
        kind, _, packed = file.partition("-")
        run_command(folder / file, "quantize", folder / "fp32", "--type", kind, *(["--packed"] if packed else []))
    torch = Torch(folder, "model.pt")
    write_plain(torch, folder / "plain")
    if importlib.util.find_spec("clippie") and not (folder / "clippie.weights").exists():
        import weightie
        from clippie.scripts.convert_weights_file import extract_weights

        with made_whole(folder / "clippie.weights") as staged, staged.open("wb") as file:
            weightie.dump(extract_weights(torch.model), file)
    np.save(folder / "reference-text.npy", torch.encode_texts(json.loads((folder / "captions.json").read_text())))
    rows = [torch.encode_images(i, i + 32) for i in range(0, len(torch.floats), 32)]
    np.save(folder / "reference-image.npy", np.concatenate(rows))


def write_inputs(folder: Path, pictures: Path) -> None:
    """Write 128 pictures, spread over those that are there, as uint8 and as floats; and 64 captions."""
    import tarfile
    from io import BytesIO

    import numpy as np

    from clip_retrieval.encoder.formats.openai_pt import MEAN, STD
    from clip_retrieval.encoder.images import decode_image
    from clip_retrieval.encoder.preprocess import Preprocess

    suffixes = (".jpg", ".jpeg", ".png", ".webp")
    found = [path.read_bytes() for path in sorted(pictures.rglob("*")) if path.suffix.lower() in suffixes]
    for path in () if found else sorted(pictures.rglob("*.tar")):
        with tarfile.open(fileobj=BytesIO(path.read_bytes())) as tar:
            found += [tar.extractfile(member).read() for member in tar if member.name.lower().endswith(suffixes)]
    chosen = found[:: max(1, len(found) // 128)][:128]
    pixels = np.stack([Preprocess(SIZE, MEAN, STD)(decode_image(data)) for data in chosen])
    floats = ((pixels.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)).astype(np.float32)
    np.save(folder / "pixels.npy", pixels)
    np.save(folder / "floats.npy", np.ascontiguousarray(floats.transpose(0, 3, 1, 2)))
    floats.tofile(folder / "floats.raw")
    rng = np.random.default_rng(0)
    captions = [" ".join(rng.choice(WORDS.split(), rng.integers(4, 19))) for _ in range(64)]
    (folder / "captions.json").write_text(json.dumps(captions))


def write_model(path: Path) -> None:
    """Save open_clip's random weights, with biases and norms random too: zeros and ones would hide errors."""
    if path.exists():
        return
    import open_clip
    import torch

    from clip_retrieval.storage import made_whole

    torch.manual_seed(0)
    state = open_clip.create_model(ARCHITECTURE).state_dict()
    for name, tensor in state.items():
        if tensor.ndim == 1:
            is_scale = "ln_" in name and name.endswith("weight")
            tensor.copy_(torch.randn_like(tensor) * 0.1 + is_scale)
    with made_whole(path) as staged:
        torch.save(state, staged)


def run_command(out: Path, command: str, source: Path | str, *options: str) -> None:
    import subprocess

    if not out.exists():
        words = ["-m", "clip_retrieval", command, str(source), str(out), *options]
        print(*words[1:], flush=True)
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


def write_plain(engine: Torch, folder: Path) -> None:
    """Export both towers as torch does it by itself."""
    if folder.exists():
        return
    import torch

    from clip_retrieval.encoder.export.traced import quiet, without_fast_path
    from clip_retrieval.storage import made_whole

    class Tower(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.model, self.name = engine.model, name

        def forward(self, batch):
            return getattr(self.model, f"encode_{self.name}")(batch)

    examples = {"image": torch.zeros(2, 3, SIZE, SIZE), "text": torch.ones(2, 77, dtype=torch.int64)}
    options = {"input_names": ["input"], "dynamic_shapes": ({0: torch.export.Dim("n", min=1, max=4096)},)}
    with made_whole(folder) as staged, quiet(), without_fast_path():
        staged.mkdir()
        for name, example in examples.items():
            torch.onnx.export(Tower(name).eval(), (example,), str(staged / f"{name}.onnx"), dynamo=True, **options)


def start_worker(name: str, tower: str, folder: Path, task: str) -> dict:
    """Return what a fresh process measured, with `seconds` from its launch to its first embedding; {} where it died."""
    import subprocess  # here, since a worker that imports it starts later

    start = time.perf_counter()  # this clock is shared by all processes
    command = [sys.executable, __file__, "--worker", name, tower, str(folder), task]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        print(f"{name}, {tower}, {task}: died with {done.returncode} {last}", flush=True)
        return {}
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"seconds": found["at"] - start}


def measure_starts(names: list[str], folder: Path, runs: int, results: dict) -> None:
    """Let all engines start in turn, `runs` times; a round before that, for the page cache, does not count."""
    keys = ("seconds", "peak", "anonymous")
    for run, name, tower in product(range(runs + 1), names, TOWERS):
        found = start_worker(name, tower, folder, "start")
        if found and run:
            kept = results[name].setdefault(f"{tower} start", {key: [] for key in keys})
            for key in keys:
                kept[key].append(found[key])
            print(f"start {run} of {runs}: {name}, first {tower} after {found['seconds']:.2f} s", flush=True)


def measure_rates(names: list[str], folder: Path, results: dict) -> None:
    import numpy as np

    for name, tower in product(names, TOWERS):
        found = start_worker(name, tower, folder, "rates")
        if not found:
            continue
        rows, wanted = np.load(folder / "rows.npy"), np.load(folder / f"reference-{tower}.npy")
        cosines = (rows * wanted).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(wanted, axis=1)
        kept = {key: found[key] for key in ("single", "batch", "most", "note")}
        results[name][f"{tower} rates"] = kept | {"least": float(cosines.min()), "mean": float(cosines.mean())}
        speeds = f"{found['single']:.1f} {tower}s/s one by one, {found['batch']:.1f} in batches of {found['most']}"
        print(f"{name}: {speeds}; least cosine {cosines.min():.6f}", flush=True)


def size_of(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 2**20


def make_table(results: dict) -> str:
    from statistics import median

    heads = ["engine", "file MiB", "s to first text, best / median", "s to first image", "peak MiB (anonymous), text"]
    heads += ["image", "images/s, batch 1 / 32", "texts/s", "cosine of images, least / mean", "of texts"]
    rows = [heads, ["---"] * len(heads)]
    for name, found in results.items():
        starts = [found.get(f"{tower} start") for tower in TOWERS]
        rates = [found.get(f"{tower} rates") for tower in reversed(TOWERS)]
        note = next((f" ({rate['note']})" for rate in rates if rate and rate["note"]), "")
        cells = [name + note, f"{found['size']:.0f}"]
        cells += [f"{min(s['seconds']):.2f} / {median(s['seconds']):.2f}" if s else "fails" for s in starts]
        cells += [f"{median(s['peak']):.0f} ({median(s['anonymous']):.0f})" if s else "fails" for s in starts]
        cells += [format_rate(rate) if rate else "fails" for rate in rates]
        cells += [f"{rate['least']:.5f} / {rate['mean']:.5f}" if rate else "fails" for rate in rates]
        rows.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def format_rate(rate: dict) -> str:
    batched = {1: "no batches", 32: f"{rate['batch']:.1f}"}.get(rate["most"], f"{rate['batch']:.1f} at {rate['most']}")
    return f"{rate['single']:.1f} / {batched}"


def describe_inputs(folder: Path) -> str:
    """Say how alike the embeddings are to each other: where all are alike, a cosine to the right one says little."""
    import numpy as np

    parts = []
    for tower in TOWERS:
        rows = np.load(folder / f"reference-{tower}.npy")
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        among = (rows @ rows.T)[~np.eye(len(rows), dtype=bool)]
        parts.append(f"{len(rows)} {tower}s, mean cosine to each other {among.mean():.3f}")
    return "; ".join(parts)


def choose_engines(wanted: str) -> list[str]:
    names = []
    for name, (_, _, package) in ENGINES.items():
        if not any(part in name for part in wanted.split(",")):
            continue
        if importlib.util.find_spec(package):
            names.append(name)
        else:
            print(f"{name}: left out, {package} is not installed")
    return names


def parse_arguments():
    import argparse

    gallery = Path(__file__).parent.parent / "clip_retrieval/demo/gallery"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the model in all formats, 3.5 GB")
    parser.add_argument("--pictures", type=Path, default=gallery, help="folder of pictures, or of tars with them")
    parser.add_argument("--runs", type=int, default=5, help="cold starts of each engine and tower")
    parser.add_argument("--engines", default="", help="parts of engines' names, with commas; default all")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    import subprocess

    args = parse_arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])  # the workers inherit these two
    os.environ |= {f"{name}_NUM_THREADS": str(THREADS) for name in ("OMP", "OPENBLAS", "MKL")}
    args.work.mkdir(parents=True, exist_ok=True)
    names = choose_engines(args.engines)
    subprocess.run([sys.executable, __file__, "--prepare", str(args.work), str(args.pictures)], check=True)
    results = {name: {"size": size_of(args.work / ENGINES[name][1].partition("?")[0])} for name in names}
    measure_starts(names, args.work, args.runs, results)
    measure_rates(names, args.work, results)
    print(f"\n{describe_inputs(args.work)}\n\n{make_table(results)}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        run_worker(sys.argv[2], sys.argv[3], Path(sys.argv[4]), sys.argv[5])
    elif sys.argv[1:2] == ["--prepare"]:
        prepare(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
