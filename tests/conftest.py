"""Generated inputs and readers of outputs, for all tests: small, seeded, without network."""

from __future__ import annotations

import gc
import io
import json
import math
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import faiss
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray
from PIL import Image, ImageColor

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.openai_pt import MEAN, STD
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.process.resources import memory_limit
from clip_retrieval.storage import Folder
from clip_retrieval.words import SURROGATES, clean

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Before any test module imports open_clip: huggingface_hub looks at it once, and retries for a minute without it.
os.environ["HF_HUB_OFFLINE"] = "1"

# Files that take longest, longest first: pytest-xdist hands files out in this order, and the last ones must be short.
SLOW_FILES = (
    "inference/test_kill",
    "encoder/export/test_convert",
    "front/test_page",
    "index/planning/test_plan",
    "sources/test_s3",
    "inference/test_update",
    "inference/test_retry",
    "encoder/export/test_quantize",
    "index/engines/test_autofaiss",
    "inference/test_full_disk",
    "inference/test_invariants",
    "index/test_update",
    "index/test_build",
    "inference/test_readers",
    "inference/test_dry_run",
    "encoder/test_conversion_cache",
    "search/test_index",
    "embeddings/test_local_copy",
    "pages/test_sheet_page",
    "pages/test_map_page",
    "index/building/test_training",
    "encoder/test_pictures",
    "demo/test_demo",
    "encoder/formats/test_huggingface_writer",
    "encoder/test_openclip_tokenizer",
    "encoder/test_causal_text",
    "test_metadata",
    "encoder/test_onnx_engine",
    "curate/test_dedup",
    "encoder/test_peers",
    "inference/test_loader",
    "inference/test_rerun",
    "inference/test_precision",
)
MEMORY_FOLDER = Path("/dev/shm")  # a file system in memory
LEAST_MEMORY, LEAST_ROOM = 12 * 2**30, 4 * 2**30  # bytes of the machine and of the folder, which the tests fill in part
Members = Iterable[tuple[str, bytes]]
OUTPUTS = ("img_emb", "text_emb", "metadata", "failures")
PAGE_TIMEOUT = 60_000  # ms; only a hang takes so long
STEPS = ("publish", "move", "remove")
RUN_ENCODER: dict[str, Any] = {
    "clip_model": "hash:16?size=32",
    "fingerprint": "hash-16-0",
    "dimension": 16,
    "precision": "fp32",
}


# no time limits: a loaded machine makes values slowly
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_configure() -> None:
    """Put files of tests into memory where it has room for them: a folder of ext4 takes ten times as long.

    TMPDIR says otherwise, and hands the place on to the processes of pytest-xdist, and to those that tests start.
    """
    if "TMPDIR" in os.environ or not os.access(MEMORY_FOLDER, os.W_OK):
        return
    if (memory_limit() or 0) >= LEAST_MEMORY and shutil.disk_usage(MEMORY_FOLDER).free >= LEAST_ROOM:
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY_FOLDER)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import all tests without a search for garbage, which leaves out what is there now from then on.

    That is 800,000 objects of torch and its like: each search takes half a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their parameter: some hold the time, and pytest-xdist wants the same names in each process."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow files first."""
    places = {Path(__file__).parent / f"{name}.py": place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show names that are no UTF-8 as U+FFFD in reports: pytest-xdist cannot send them from one process to another."""
    report = yield
    report.sections = [(clean(name), clean(text)) for name, text in report.sections]
    if report.longrepr is not None and SURROGATES.search(str(report.longrepr)):
        report.longrepr = clean(str(report.longrepr))
    return report


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Give a headless Chromium to the tests of a file.

    Not longer: while Playwright runs, it cannot be started again in this process, and no asyncio.run works here.
    """
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("pages are tested in Chromium, which is not installed: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pages are tested through playwright: pip install playwright"
    )
    playwright.expect.set_options(timeout=PAGE_TIMEOUT)
    with playwright.sync_playwright() as started:
        # fewer processes and threads that paint: machines of tests have no GPU
        args = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--num-raster-threads=1"]
        opened = started.chromium.launch(executable_path=program, args=args, timeout=3 * PAGE_TIMEOUT)
        yield opened
        opened.close()


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep every test, and the processes that it starts, off the network, and give it a cache of its own.

    Pillow's limit of pixels, which reading a picture sets, is that of Pillow again after it.
    """
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("CLIP_RETRIEVAL_CACHE", str(tmp_path_factory.getbasetemp() / f"cache-{uuid4().hex[:8]}"))


def jpeg_bytes(seed: int, width: int = 24, height: int = 20) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(file, "JPEG", quality=90)
    return file.getvalue()


def pdf_bytes(*texts: str, box: str = "0 0 200 300", trailer: str = "") -> bytes:
    """Return a PDF of a page for each text; one without text has a rectangle, another on each page."""
    kids = " ".join(f"{4 + 2 * place} 0 R" for place in range(len(texts)))
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {len(texts)}>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for place, text in enumerate(texts):
        drawn = (
            f"BT /F 24 Tf 20 150 Td ({text}) Tj ET" if text else f"0.{place} 0.5 0.2 rg 20 20 100 {50 + place * 9} re f"
        )
        about = f"/MediaBox[{box}]/Resources<</Font<</F 3 0 R>>>>/Contents {5 + 2 * place} 0 R"
        objects += [f"<</Type/Page/Parent 2 0 R{about}>>", f"<</Length {len(drawn)}>>stream\n{drawn}\nendstream"]
    data, starts = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        starts.append(len(data))
        data += f"{number} 0 obj\n{content}\nendobj\n".encode()
    table = "".join(f"{start:010d} 00000 n \n" for start in starts)
    size = len(objects) + 1
    end = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer<</Size {size}/Root 1 0 R{trailer}>>"
    return data + f"{end}\nstartxref\n{len(data)}\n%%EOF\n".encode()


def video_bytes(*colors: str, container: str = "mp4", codec: str = "mpeg4", **about: Any) -> bytes:
    """Return a video of a second for each color, 64 x 64 pixels, 5 frames a second, with a key frame each 2 seconds.

    `about`: `ratio` of a pixel's sides, degrees to `turn` by, `options` of the container, the `times` of the frames in
    fifths of a second or, if given, of `rate`, `key_frames_apart` in frames, and `noise`, so that each frame takes more
    than a kilobyte.
    """
    av = pytest.importorskip("av", reason="videos are read by PyAV: pip install av")
    times, rate = about.get("times") or range(5 * len(colors)), about.get("rate", 5)
    random, folder = np.random.default_rng(0), tempfile.TemporaryDirectory()
    path = Path(folder.name, "a")
    with folder, av.open(str(path), "w", format=container, options=about.get("options", {})) as opened:
        quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        if "key_frames_apart" in about and codec == "libx264":
            quiet = {"x264-params": "scenecut=0"}
        stream = opened.add_stream(codec, rate=rate, options=quiet)
        stream.width, stream.height = about.get("size", (64, 64))
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = about.get("key_frames_apart", 10)
        stream.bit_rate = 1_000_000
        if "ratio" in about:
            stream.codec_context.sample_aspect_ratio = about["ratio"]
        if "turn" in about:
            stream.set_display_rotation(about["turn"])
        for number, moment in enumerate(times):
            color = np.array(ImageColor.getrgb(colors[number // 5 % len(colors)]), np.int16)
            pixels = np.broadcast_to(color, (stream.height, stream.width, 3))
            if about.get("noise"):
                pixels = (pixels * 0.8 + random.integers(0, 40, pixels.shape)).astype(np.int16)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels, np.uint8), "rgb24")
            frame.pts, frame.time_base = moment, Fraction(1, rate)
            opened.mux(stream.encode(frame))
        opened.mux(stream.encode(None))
        opened.close()
        return path.read_bytes()


def add_members(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    return path


def sample_members(number: int) -> list[tuple[str, bytes]]:
    """Return picture, caption and json of one sample; every number gives another one."""
    key = f"{number:05d}"
    about = {"key": key, "width": 24, "source": {"site": "generated"}}
    return [
        (f"{key}.jpg", jpeg_bytes(number)),
        (f"{key}.txt", f"picture number {number}".encode()),
        (f"{key}.json", json.dumps(about).encode()),
    ]


@pytest.fixture
def make_jpeg() -> Callable[[int], bytes]:
    """Give a function from a seed to the bytes of a small jpeg."""
    return jpeg_bytes


@pytest.fixture(scope="session")
def make_pdf() -> Callable[..., bytes]:
    """Give a function from the texts of pages to the bytes of a small PDF."""
    return pdf_bytes


@pytest.fixture(scope="session")
def make_video() -> Callable[..., bytes]:
    """Give a function from the colors of seconds to the bytes of a small video."""
    return video_bytes


@pytest.fixture(scope="session")
def make_sample() -> Callable[[int], list[tuple[str, bytes]]]:
    """Give a function from a number to the named files of a sample: 00000.jpg, .txt and .json."""
    return sample_members


@pytest.fixture
def write_pictures() -> Callable[[Path, int], Path]:
    """Give a function that fills a folder with `count` pictures, each with a caption and a json beside it."""

    def write(folder: Path, count: int) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            for name, payload in sample_members(number):
                (folder / name).write_bytes(payload)
        return folder

    return write


@pytest.fixture(scope="session")
def write_tar() -> Callable[[Path, Members], Path]:
    """Give a function that writes (name, bytes) members into a tar."""
    return add_members


@pytest.fixture(scope="session")
def write_shards() -> Callable[[Path, int, int], Path]:
    """Give a function that writes `shard_count` tars 000.tar, 001.tar, ... with `size` samples each."""

    def write(folder: Path, shard_count: int, size: int) -> Path:
        for shard in range(shard_count):
            members = [member for i in range(size) for member in sample_members(shard * size + i)]
            add_members(folder / f"{shard:03d}.tar", members)
        return folder

    return write


@pytest.fixture
def read_embeddings() -> Callable[[Path, str], NDArray[np.float16]]:
    """Give a function that reads all partitions of `img_emb` or `text_emb`, in row order."""

    def read(output: Path, folder: str) -> NDArray[np.float16]:
        parts = [np.load(path) for path in sorted((output / folder).glob("*.npy"))]
        return np.concatenate(parts) if parts else np.zeros((0, 0), np.float16)

    return read


@pytest.fixture
def read_table() -> Callable[[Path, str], pd.DataFrame]:
    """Give a function that reads all partitions of `metadata` or `failures`, in row order."""

    def read(output: Path, folder: str) -> pd.DataFrame:
        parts = [pd.read_parquet(path) for path in sorted((output / folder).glob("*.parquet"))]
        full = [part for part in parts if len(part)]
        return pd.concat(full, ignore_index=True) if full else parts[0]

    return read


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Give a function that reads every byte that must not depend on time, machine or process."""

    def read(output: Path) -> dict[str, bytes]:
        paths = [path for folder in OUTPUTS for path in sorted((output / folder).rglob("*")) if path.is_file()]
        return {str(path.relative_to(output)): path.read_bytes() for path in paths}

    return read


class StoppedError(BaseException):
    """Ends a run like a kill: nothing may catch it."""


@pytest.fixture
def run_until() -> Callable[[int | None, Callable[[], object]], list[str]]:
    """Give a function that runs something up to a step, or wholly with None, and returns the steps that it did."""

    def run(last: int | None, action: Callable[[], object]) -> list[str]:
        steps: list[str] = []

        def counted(name: str) -> Callable[..., Any]:
            real = getattr(Folder, name)

            def step(folder: Folder, *arguments: Any) -> Any:
                if name == "remove" and not folder.exists(*arguments):
                    return None  # no step: there is nothing to remove
                if last is not None and len(steps) >= last:
                    raise StoppedError
                steps.append(name)
                return real(folder, *arguments)

            return step

        with pytest.MonkeyPatch.context() as patch:
            for name in STEPS:
                patch.setattr(Folder, name, counted(name))
            if last is None:
                action()
            else:
                with pytest.raises(StoppedError):
                    action()
        return steps

    return run


def make_unit_rows(count: int, dim: int = 16, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def write_parts(folder: Path, name: str, parts: Sequence[NDArray[Any]]) -> None:
    width = len(str(len(parts)))
    (folder / name).mkdir(parents=True, exist_ok=True)
    for i, part in enumerate(parts):
        np.save(folder / name / f"{name}_{i:0{width}d}.npy", part)


@pytest.fixture(scope="session")
def unit_rows() -> Callable[..., NDArray[np.float32]]:
    """Give a function from count, dimension and seed to rows of length 1."""
    return make_unit_rows


@pytest.fixture(scope="session")
def write_run() -> Callable[..., Path]:
    """Give a function that writes an embeddings folder of images and texts, lists of arrays, and their metadata."""

    def write(
        folder: Path,
        images: Sequence[NDArray[Any]] = (),
        texts: Sequence[NDArray[Any]] = (),
        *,
        label: str = "row",
        manifest: bool = True,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, parts in (("img_emb", images), ("text_emb", texts)):
            if parts:
                write_parts(folder, name, parts)
        start, parts = 0, images or texts
        (folder / "metadata").mkdir(exist_ok=True)
        for i, part in enumerate(parts):
            captions = [f"{label} {row}" for row in range(start, start + len(part))]
            name = f"metadata_{i:0{len(str(len(parts)))}d}.parquet"
            pd.DataFrame({"caption": captions}).to_parquet(folder / "metadata" / name)
            start += len(part)
        if manifest:
            (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "encoder": RUN_ENCODER}))
        return folder

    return write


@pytest.fixture(scope="session")
def write_typed() -> Callable[..., Path]:
    """Give a function that writes an embeddings folder of two files, whose metadata have a column of each kind.

    Rows 5 and 40 have no picture.
    """

    def write(folder: Path, rows: int = 300, dim: int = 16) -> Path:
        random = np.random.default_rng(rows)
        vectors = random.standard_normal((rows, dim))
        vectors[[5, 40]] = 0
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        (folder / "metadata").mkdir(parents=True)
        for number, ids in enumerate(np.array_split(np.arange(rows), [2 * rows // 3])):
            write_parts(folder / str(number), "img_emb", [vectors[ids].astype(np.float16)])
            (folder / "img_emb").mkdir(exist_ok=True)
            next((folder / str(number) / "img_emb").iterdir()).rename(folder / "img_emb" / f"img_emb_{number}.npy")
            shutil.rmtree(folder / str(number))
            pq.write_table(typed_table(ids.tolist()), folder / "metadata" / f"metadata_{number}.parquet")
        return folder

    return write


def typed_table(rows: list[int]) -> pa.Table:
    """Return metadata of these rows: nulls, NaN, NUL, large and exact numbers, times, bytes, lists and structs."""
    moment = datetime(2024, 2, 29, 12, 30, 15, 250, UTC)
    return pa.table(
        {
            "caption": [None if row % 7 == 0 else f"row {row} \u2603" for row in rows],
            "width": pa.array([None if row % 5 == 0 else row for row in rows], pa.int32()),
            "score": [math.nan if row % 11 == 0 else row / 3 for row in rows],
            "half": pa.array([row / 7 for row in rows], pa.float32()),
            "big": pa.array([2**64 - 1 - row for row in rows], pa.uint64()),
            "price": pa.array([Decimal(row) / 100 for row in rows], pa.decimal128(12, 2)),
            "day": [date(1969, 12, 1) + timedelta(days=row) for row in rows],
            "at": pa.array([moment + timedelta(seconds=row) for row in rows], pa.timestamp("us", "UTC")),
            "nested.flag": [row % 2 == 0 for row in rows],
            "tags": [None if row % 3 == 0 else ["a", None, str(row)] for row in rows],
            "box": [{"x": row, "of": [0.5, math.inf]} for row in rows],
            "raw": [bytes([row % 256, 65]) for row in rows],
            "with_nul": [f"a\0{row}" for row in rows],
            "nothing": pa.nulls(len(rows)),
            "id": [f"sample-{row}" for row in rows],
        }
    )


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Keep faiss's threads from waiting for each other, which takes longer than work on small indices."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture(scope="session")
def write_index() -> Callable[..., Path]:
    """Give a function that writes an index folder whose row r is the hash of its caption r, with any metadata."""

    def write(
        folder: Path,
        metadata: pd.DataFrame | Sequence[pd.DataFrame],
        *,
        rows: NDArray[np.float32] | None = None,
        manifest: dict[str, Any] | None = RUN_ENCODER,
    ) -> Path:
        parts = [metadata] if isinstance(metadata, pd.DataFrame) else metadata
        (folder / "metadata").mkdir(parents=True, exist_ok=True)
        for i, part in enumerate(parts):
            part.to_parquet(folder / "metadata" / f"metadata_{i}.parquet")
        captions = [str(caption) for part in parts for caption in part["caption"]]
        vectors = load_encoder(RUN_ENCODER["clip_model"]).encode_texts(captions) if rows is None else rows
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        faiss.write_index(index, str(folder / "image.index"))
        if manifest is not None:
            (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "encoder": manifest}))
        return folder

    return write


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Checkpoint]:
    """Give a function from a seed to a small CLIP with OpenAI's vocabulary, every tensor of it random; no torch."""

    def make(seed: int = 0, *, width: int = 64, side: int = 64) -> Checkpoint:
        vision = {"image_size": side, "patch_size": 32, "width": width, "head_width": 32, "layers": 2}
        text = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": width // 32, "layers": 2}
        config = {"embed_dim": 32, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
        shapes: dict[str, tuple[int, ...]] = {
            "visual.class_embedding": (width,),
            "visual.conv1.weight": (width, 3, 32, 32),
            "visual.positional_embedding": ((side // 32) ** 2 + 1, width),
            "visual.proj": (width, 32),
            "token_embedding.weight": (49408, width),
            "positional_embedding": (77, width),
            "text_projection": (width, 32),
        }
        norms = ["visual.ln_pre", "visual.ln_post", "ln_final"]
        for block in (f"{tower}transformer.resblocks.{i}." for tower in ("visual.", "") for i in range(2)):
            parts = {"attn.in_proj_": 3 * width, "attn.out_proj.": width}
            shapes |= {f"{block}{part}weight": (rows, width) for part, rows in parts.items()}
            shapes |= {f"{block}{part}bias": (rows,) for part, rows in parts.items()}
            shapes |= {f"{block}mlp.c_fc.weight": (4 * width, width), f"{block}mlp.c_fc.bias": (4 * width,)}
            shapes |= {f"{block}mlp.c_proj.weight": (width, 4 * width), f"{block}mlp.c_proj.bias": (width,)}
            norms += [f"{block}ln_1", f"{block}ln_2"]
        shapes |= {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
        random = np.random.default_rng(seed)
        tensors: dict[str, NDArray[Any]] = {"logit_scale": np.array(3.5, np.float32)}
        for name, shape in shapes.items():
            spread = 0.2 if len(shape) == 1 else shape[-1] ** -0.5
            around = 1 if ".ln_" in f".{name}" and name.endswith("weight") else 0
            tensors[name] = (around + spread * random.standard_normal(shape)).astype(np.float32)
        kernel = "visual.conv1.weight"
        tensors[kernel] = tensors[kernel].astype(np.float16).astype(np.float32)  # as GGUF has it
        return Checkpoint("tiny", "clip", config, tensors, Preprocess(side, MEAN, STD))

    return make


Hits = tuple[NDArray[np.float32], NDArray[np.int64]]  # scores and ids [q, k], as faiss gives them


def check_same_hits(found: Hits, wanted: Hits, tolerance: float = 1e-6) -> None:
    """Assert that hits are the same ones, as far as rounding lets anyone tell.

    Sums in another order (other block sizes, threads, BLAS kernels) move a score by the tolerance. Two rows that are
    nearer than that may change places, and at the end of the hits one may stand for the other.
    """
    np.testing.assert_allclose(found[0], wanted[0], atol=tolerance, rtol=0)
    for scores, ids, other_scores, other_ids in zip(*found, *wanted, strict=True):
        known = dict(zip(other_ids.tolist(), other_scores.tolist(), strict=True))
        for row, score in zip(ids.tolist(), scores.tolist(), strict=True):
            assert abs(score - known.get(row, other_scores[-1])) <= 2 * tolerance, f"row {row} is no hit"
        assert len(set(ids[ids >= 0].tolist())) == (ids >= 0).sum()


@pytest.fixture(scope="session")
def same_hits() -> Callable[..., None]:
    """Give what compares hits as far as rounding lets anyone tell."""
    return check_same_hits
