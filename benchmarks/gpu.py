"""How fast inference is on one GPU, beside the model alone on ready tensors, and what other ways would bring.

    python benchmarks/gpu.py [--json gpu.json] [--seconds 480] [--models ViT-B-32 ViT-L-14] [--stages …]

Needs a machine with an NVIDIA GPU on which nothing else works. Weights are random: nothing is fetched. Each result is
printed, and written to the JSON, as soon as it is known; each stage has a time limit of its own, and what it had found
by then stays. `--device cpu --tiny` tries the script itself on a machine without a GPU.

    readers    the pipeline without a model: what 256 px JPEGs in tars bring through all cores
    jpeg       JPEGs decoded and resized on the GPU instead: pictures/s, and how near they come to Pillow's exact ones
    alone      the image tower on ready tensors: number formats, batch sizes, memory formats, CUDA graphs; then the
               engine, with copies from page-locked memory, normalization and copies back; captions, too
    compiled   the image tower as torch.compile makes it
    exact      cosines of each number format to fp32 on the CPU
    pipeline   `clip-retrieval inference`, from tars of JPEGs to the folder of embeddings; its share of the model alone
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_jpeg import decode_on_gpu, resize_on_gpu
from make_data import picture, write_shards
from PIL import Image

from clip_retrieval.encoder.config import EncoderConfig, PictureConfig
from clip_retrieval.encoder.devices import allocate_pixels
from clip_retrieval.encoder.engines.causal_text import encode_in_groups, find_causal_tower
from clip_retrieval.encoder.engines.open import open_engine
from clip_retrieval.encoder.engines.openclip import OpenClipEncoder
from clip_retrieval.encoder.pictures import read_pixels
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.encoder.uri import parse_uri

STAGES = ("readers", "jpeg", "alone", "pipeline", "exact", "compiled")
BATCHES = (64, 128, 256, 512, 1024)
SECONDS = 0.6  # for each figure of a model on ready tensors
PER_SHARD = 1000
EXACT, FAST = PictureConfig(decode="exact"), PictureConfig(decode="fast")


class OverTimeError(Exception):
    """A stage took longer than its limit."""


class Results:
    """Figures by name, printed and written at once."""

    def __init__(self, path: Path | None, seconds: float) -> None:
        self.path, self.found, self.end = path, {}, time.monotonic() + seconds

    def add(self, name: str, value: Any) -> None:
        self.found[name] = value
        print(f"{name:48} {f'{value:,.4g}' if isinstance(value, float) else value}", flush=True)
        if self.path:
            self.path.write_text(json.dumps(self.found, indent=1))

    @contextmanager
    def stage(self, name: str, seconds: float) -> Iterator[None]:
        """Run the block for at most so long, and go on after an error: a part that fails is a result, too."""

        def over(*_: object) -> None:
            raise OverTimeError

        signal.signal(signal.SIGALRM, over)
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, max(0.1, min(seconds, self.end - start)))
        try:
            yield
        except OverTimeError:
            self.add(f"{name}: cut off after s", time.monotonic() - start)
        except Exception as error:  # noqa: BLE001
            self.add(f"{name}: failed", f"{type(error).__name__}: {str(error)[:300]}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(f"  [{name}: {time.monotonic() - start:.1f} s, {self.end - time.monotonic():.0f} s left]", flush=True)


class Bench:
    """The results, the input and the device."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.args, self.scratch, self.device = args, scratch, args.device
        self.results = Results(args.json, args.seconds)
        self.batches = (8,) if args.tiny else BATCHES
        self.seconds = 0.1 if args.tiny else SECONDS
        self.usual = 8 if args.tiny else 512
        self.unique = min(args.samples, 64 if args.tiny else 4 * PER_SHARD)  # pictures that are made

        self.encoders: dict[str, OpenClipEncoder] = {}

    def encoder(self, architecture: str) -> OpenClipEncoder:
        """Open a model as bulk work on the device has it; once."""
        if architecture not in self.encoders:
            precision = "fp32" if self.device == "cpu" else "fp16"
            self.encoders[architecture] = open_engine_of(f"random:{architecture}", self.device, precision)
        return self.encoders[architecture]

    def sync(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def rate(self, run: Callable[[], object], items: int) -> float:
        """Return items/s, after two runs to warm up."""
        for _ in range(2):
            run()
        self.sync()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < self.seconds:
            for _ in range(4):
                run()
            self.sync()
            count += 4
        return count * items / (time.perf_counter() - start)


def write_tars(bench: Bench, unique: int, total: int) -> Path:
    """Write tars of `unique` pictures, with all cores, once, and give each of them several names."""
    folder = bench.scratch / "tars"
    if folder.exists():
        return folder
    folder.mkdir()
    per_shard = min(PER_SHARD, unique)
    with ProcessPoolExecutor() as processes:
        made = list(
            processes.map(partial(write_shard, bench.scratch, per_shard, bench.args.side), range(unique // per_shard))
        )
    for number in range(total // per_shard):
        os.link(made[number % len(made)], folder / f"{number:05d}.tar")
    return folder


def write_shard(scratch: Path, count: int, side: int, number: int) -> Path:
    folder = scratch / f"made-{number}"
    write_shards(folder, count, count, side, seed=number)
    return folder / "00000.tar"


def readers(bench: Bench) -> None:
    name, tars = "hash:8?size=224", write_tars(bench, bench.unique, bench.args.samples)
    account, cpu = run_inference(bench, name, tars, "readers", "--device", "cpu", "--enable_text", "False")
    bench.results.add("readers: pictures/s", account["rate"])
    bench.results.add("readers: CPU share of the main process", cpu / account["wall_seconds"])


@torch.inference_mode()
def jpeg(bench: Bench) -> None:
    """Compare decoding and resizing on the GPU with Pillow, by speed and by embeddings."""
    count = 16 if bench.args.tiny else 1024
    rng = np.random.default_rng(5)
    files = [picture(rng, bench.args.side) for _ in range(min(count, 256))]
    files = (files * (count // len(files)))[:count]
    preprocess = Preprocess(224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    bench.results.add("jpeg: size of a file, mean", float(np.mean([len(file) for file in files])))
    start = time.perf_counter()
    exact = np.stack([read_pixels(file, preprocess, EXACT) for file in files[:256]])
    bench.results.add("jpeg: Pillow exact, one core, pictures/s", len(exact) / (time.perf_counter() - start))
    start = time.perf_counter()
    fast = np.stack([read_pixels(file, preprocess, FAST) for file in files[:256]])
    bench.results.add("jpeg: Pillow, --decode fast, one core, pictures/s", len(fast) / (time.perf_counter() - start))
    for size in (8,) if bench.args.tiny else (32, 128, 512):
        decoded = bench.rate(lambda size=size: decode_on_gpu(files[:size], bench.device), size)
        bench.results.add(f"jpeg: decoded on the device, batch {size}, pictures/s", decoded)
        both = bench.rate(lambda size=size: resize_on_gpu(decode_on_gpu(files[:size], bench.device), preprocess), size)
        bench.results.add(f"jpeg: decoded and resized, batch {size}, pictures/s", both)
    large = [large_picture(rng) for _ in range(2 if bench.args.tiny else 16)]
    decoded = bench.rate(lambda: decode_on_gpu(large, bench.device), len(large))
    bench.results.add("jpeg: 12 megapixels, decoded on the device, pictures/s", decoded)
    pixels = resize_on_gpu(decode_on_gpu(files[: len(exact)], bench.device), preprocess).cpu().numpy()
    difference = np.abs(pixels.astype(int) - exact)
    bench.results.add("jpeg: difference of values, mean", float(difference.mean()))
    bench.results.add("jpeg: difference of values, largest", int(difference.max()))
    for name in ("demo", "random:ViT-B-32"):
        encoder = open_engine_of(name, bench.device if name != "demo" else "cpu")
        shrink = small if name == "demo" else np.asarray
        wanted = encoder.encode_images(shrink(exact))
        for way, values in {"the device": pixels, "--decode fast": fast}.items():
            cosines = (encoder.encode_images(shrink(values)) * wanted).sum(axis=1)
            bench.results.add(
                f"jpeg: cosine to exact of {way}, {name}, 1st percentile", float(np.percentile(cosines, 1))
            )


def large_picture(rng: np.random.Generator) -> bytes:
    file = io.BytesIO()
    image = Image.open(io.BytesIO(picture(rng, 256))).resize((4000, 3000), Image.Resampling.BICUBIC)
    image.save(file, "JPEG", quality=88)
    return file.getvalue()


def small(pixels: np.ndarray) -> np.ndarray:
    """Return what the demo model takes: 64 x 64."""
    return np.stack([np.asarray(Image.fromarray(one).resize((64, 64), Image.Resampling.BICUBIC)) for one in pixels])


def open_engine_of(name: str, device: str = "cpu", precision: str = "auto") -> Any:
    return open_engine(parse_uri(name), EncoderConfig(clip_model=name, device=device, precision=precision))


def alone(bench: Bench, architecture: str) -> None:
    """Time the image tower on tensors that are ready on the device, one change at a time."""
    encoder = bench.encoder(architecture)
    add, side, tower = bench.results.add, encoder.info.preprocess.size, encoder.model.encode_image
    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16}
    ready = torch.randn((max(bench.batches), 3, side, side), device=bench.device).to(encoder.dtype)
    with torch.inference_mode():
        for batch in bench.batches:
            add(f"{architecture}: alone, batch {batch}, images/s", bench.rate(lambda b=batch: tower(ready[:b]), batch))
        ready, size = ready[: bench.usual].clone(), bench.usual
        strided = ready.to(memory_format=torch.channels_last)
        add(f"{architecture}: alone, channels_last, images/s", bench.rate(lambda: tower(strided), size))
        if bench.device != "cpu":
            stream = torch.cuda.Stream()
            graph = Recorded(tower, ready, stream)
            add(f"{architecture}: alone, CUDA graph, images/s", bench.rate(graph.run, size))
            profile(bench, architecture, lambda: tower(ready))
            encoder.model.to(dtypes["bf16"])
            half = ready.to(dtypes["bf16"])
            add(f"{architecture}: alone, bf16, images/s", bench.rate(lambda: tower(half), size))
            encoder.model.to(encoder.dtype)
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
                add(f"{architecture}: alone, cuDNN attention, images/s", bench.rate(lambda: tower(ready), size))


class Recorded:
    """A CUDA graph of the tower alone."""

    def __init__(self, tower: Callable[[torch.Tensor], torch.Tensor], ready: torch.Tensor, stream: Any) -> None:
        with torch.cuda.stream(stream):
            tower(ready)
        stream.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            self.out = tower(ready)
        self.run = self.graph.replay


def profile(bench: Bench, architecture: str, run: Callable[[], object]) -> None:
    """Note the kernels that take most of the time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(3):
            run()
        bench.sync()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    for event in events[:10]:
        share = event.self_device_time_total / total
        print(f"    {share:6.1%} {event.count // 3:4} x {event.key[:110]}", flush=True)
    bench.results.add(f"{architecture}: kernels, ms for a batch", total / 3e3)


def compiled(bench: Bench, architecture: str) -> None:
    """Time the tower when torch.compile has made it, and how long that takes."""
    encoder, size = bench.encoder(architecture), bench.usual
    side = encoder.info.preprocess.size
    ready = torch.randn((size, 3, side, side), device=bench.device).to(encoder.dtype)
    start = time.perf_counter()
    with torch.inference_mode():
        tower = torch.compile(encoder.model.encode_image, dynamic=False)
        tower(ready)
        bench.sync()
        bench.results.add(f"{architecture}: compiled, s to the first batch", time.perf_counter() - start)
        bench.results.add(f"{architecture}: alone, compiled, images/s", bench.rate(lambda: tower(ready), size))


def engine(bench: Bench, architecture: str) -> None:
    """Time the engine as the pipeline uses it: two batches under way, uint8 in, float32 out."""
    encoder, size, add = bench.encoder(architecture), bench.usual, bench.results.add
    side = encoder.info.preprocess.size
    buffers = [allocate_pixels((size, side, side, 3), bench.device) for _ in range(3)]
    for number, buffer in enumerate(buffers):
        buffer[:] = np.random.default_rng(number).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    begun: list[Callable[[], object]] = []

    def step() -> None:
        buffers.append(buffers.pop(0))
        begun.append(encoder.start_images(buffers[0]))
        if len(begun) > 1:
            begun.pop(0)()

    def one_after_the_other() -> None:
        encoder.encode_images(buffers[0])

    add(f"{architecture}: engine, one batch after the other, images/s", bench.rate(one_after_the_other, size))
    add(f"{architecture}: engine, two under way, images/s", bench.rate(step, size))
    begun.clear()
    start = time.perf_counter()
    encoder.expect_batches(size)
    add(f"{architecture}: engine, s to record graphs", time.perf_counter() - start)
    add(f"{architecture}: engine, graphs, two under way, images/s", bench.rate(step, size))
    begun.clear()
    captions(bench, architecture, encoder)


@torch.inference_mode()
def captions(bench: Bench, architecture: str, encoder: OpenClipEncoder) -> None:
    words = "a picture of red green old small wooden house bridge river boat".split()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, rng.integers(3, 14))) for _ in range(64 if bench.args.tiny else 1024)]
    start = time.perf_counter()
    tokens = encoder.tokenizer(texts).numpy()
    bench.results.add(f"{architecture}: captions, tokenizer alone, texts/s", len(texts) / (time.perf_counter() - start))
    tower = find_causal_tower(encoder.model)
    assert tower is not None
    on_device = torch.from_numpy(np.asarray(tokens, dtype=np.int64)).to(bench.device)
    for group in (32, 128, 512):
        rate = bench.rate(lambda group=group: encode_in_groups(tower, on_device, group), len(texts))
        bench.results.add(f"{architecture}: captions, groups of {group}, texts/s", rate)


def exactness(bench: Bench, architecture: str) -> None:
    """Note the least cosine of each number format to fp32 on the CPU, over pictures and captions."""
    count = 4 if bench.args.tiny else 32
    rng = np.random.default_rng(1)
    cpu = open_engine_of(f"random:{architecture}", "cpu", "fp32")
    pixels = np.stack([read_pixels(picture(rng, 256), cpu.info.preprocess, EXACT) for _ in range(count)])
    texts = [f"a picture of {number} red boats" for number in range(count)]
    wanted = cpu.encode_images(pixels), cpu.encode_texts(texts)
    for precision in ("fp32", "fp16", "bf16"):
        encoder = open_engine_of(f"random:{architecture}", bench.device, precision)
        found = encoder.encode_images(pixels), encoder.encode_texts(texts)
        least = [float((a * b).sum(axis=1).min()) for a, b in zip(wanted, found, strict=True)]
        bench.results.add(f"{architecture}: least cosine to fp32 on the CPU, {precision}", [round(v, 6) for v in least])


def pipeline(bench: Bench, architecture: str) -> None:
    """Run the whole; each model after the first takes a third of the tars."""
    tars = write_tars(bench, bench.unique, bench.args.samples)
    if architecture != bench.args.models[0]:
        for tar in sorted(tars.glob("*.tar"))[len(list(tars.glob("*.tar"))) // 3 + 1 :]:
            tar.unlink()
    results, name = bench.results, f"random:{architecture}"
    start = time.monotonic()
    account, cpu = run_inference(bench, name, tars, architecture, "--device", bench.device, "--enable_text", "False")
    results.add(f"{architecture}: pipeline, pictures/s", account["rate"])
    best = max((v for k, v in results.found.items() if k.startswith(f"{architecture}: alone, batch")), default=None)
    if best:
        results.add(f"{architecture}: pipeline, share of the model alone (eager)", account["rate"] / best)
    results.add(f"{architecture}: pipeline, CPU share of the main process", cpu / account["wall_seconds"])
    results.add(f"{architecture}: pipeline, s of the start", time.monotonic() - start - account["wall_seconds"])
    results.add(f"{architecture}: pipeline, shares", account["shares"])
    results.add(f"{architecture}: pipeline, diagnosis", account["diagnosis"])


def pipeline_with_captions(bench: Bench, architecture: str) -> None:
    tars = write_tars(bench, bench.unique, bench.args.samples)
    account, cpu = run_inference(bench, f"random:{architecture}", tars, "captions", "--device", bench.device)
    bench.results.add(f"{architecture}: pipeline with captions, pairs/s", account["rate"])
    bench.results.add(f"{architecture}: with captions, CPU share of the main process", cpu / account["wall_seconds"])


def run_inference(bench: Bench, model: str, tars: Path, out: str, *options: str) -> tuple[dict[str, Any], float]:
    """Return what `inference --json` prints, and the CPU seconds of its main process since its embedding began."""
    command = [sys.executable, "-m", "clip_retrieval", "inference", str(tars), str(bench.scratch / out), "--json"]
    command += ["--input_format", "webdataset", "--clip_model", model, *options, *bench.args.options]
    if bench.args.tiny:
        command += ["--num_prepro_workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ticks: list[float] = []
    try:
        while process.poll() is None:
            begun = bool(ticks) or any((bench.scratch / out / "stats").glob("wip_*"))
            if begun and (used := cpu_seconds(process.pid)) is not None:
                ticks.append(used)
            time.sleep(0.2)
        printed, errors = process.communicate()
    finally:
        process.kill()
        shutil.rmtree(bench.scratch / out, ignore_errors=True)
    if process.returncode:
        raise RuntimeError(errors[-300:])
    return json.loads(printed), ticks[-1] - ticks[0] if ticks else float("nan")


def cpu_seconds(pid: int) -> float | None:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def describe_machine(bench: Bench) -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    gpu = torch.cuda.get_device_name(0) if bench.device != "cpu" else "no GPU"
    bench.results.add("machine", f"{gpu}, {len(os.sched_getaffinity(0))} cores of {cpu}, torch {torch.__version__}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ViT-B-32", "ViT-L-14"])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--samples", type=int, default=60_000, help="for ViT-B/32; larger models take a third")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--options", nargs="*", default=[], help="more options for `inference`")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.device != "cpu" and not torch.cuda.is_available():
        sys.exit("there is no GPU that torch can use on this machine")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        run_stages(Bench(args, Path(scratch)))


def run_stages(bench: Bench) -> None:
    """Run the chosen stages, models one after the other; what takes longest comes last."""
    describe_machine(bench)
    chosen = bench.args.stages
    steps: list[tuple[str, str, float, Callable[[], object]]] = [
        ("readers", "readers", 90, partial(readers, bench)),
        ("jpeg", "jpeg", 60, partial(jpeg, bench)),
    ]
    for model in bench.args.models:
        steps += [
            ("alone", f"{model}: alone", 50, partial(alone, bench, model)),
            ("alone", f"{model}: engine", 40, partial(engine, bench, model)),
            ("pipeline", f"{model}: pipeline", 90, partial(pipeline, bench, model)),
        ]
    first = bench.args.models[0]
    steps += [("pipeline", f"{first}: with captions", 90, partial(pipeline_with_captions, bench, first))]
    steps += [("exact", f"{model}: exact", 60, partial(exactness, bench, model)) for model in bench.args.models]
    steps += [("compiled", f"{model}: compiled", 90, partial(compiled, bench, model)) for model in bench.args.models]
    for stage, name, seconds, step in steps:
        if stage in chosen:
            with bench.results.stage(name, seconds):
                step()


if __name__ == "__main__":
    main()
