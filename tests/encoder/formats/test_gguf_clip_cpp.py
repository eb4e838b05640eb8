"""Against clip.cpp itself: it runs our files, and quantizes to our bytes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.gguf import Towers, quantize_gguf, read_gguf, write_gguf
from clip_retrieval.encoder.formats.gguf_blocks import CODES, Quantized, quantize
from clip_retrieval.encoder.preprocess import Preprocess

# clip.cpp sizes its buffers by the count of tensors, which must be that of a ViT-B: twelve blocks a tower.
TEXT = {"context_length": 77, "vocab_size": 300, "width": 64, "heads": 2, "layers": 12}
VISION = {"image_size": 64, "patch_size": 32, "width": 128, "head_width": 32, "layers": 12}
CONFIG: dict[str, Any] = {"embed_dim": 64, "text_cfg": TEXT, "vision_cfg": VISION, "quick_gelu": True}
WORDS = [*(f"w{i}</w>" for i in range(298)), "<|startoftext|>", "<|endoftext|>"]
IDS = np.array([298, 5, 17, 200, 33, 299], dtype=np.int32)
PIXELS = np.random.default_rng(1).standard_normal((3, 64, 64), dtype=np.float32)
RunClipCpp = Callable[..., NDArray[np.float32]]
QUANTIZED: tuple[Quantized, ...] = get_args(Quantized)


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


@pytest.fixture(scope="module")
def libraries(clip_cpp: Path) -> tuple[ctypes.CDLL, ctypes.CDLL]:
    ggml = ctypes.CDLL(str(clip_cpp / "libggml.so"), mode=ctypes.RTLD_GLOBAL)  # libclip does not find it by itself
    return ggml, ctypes.CDLL(str(clip_cpp / "libclip.so"))


def make_model(quick_gelu: bool) -> open_clip.CLIP:
    model = open_clip.CLIP(**{**CONFIG, "quick_gelu": quick_gelu}).eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.ndim:
            noise = torch.randn(tensor.shape, generator=generator)
            near_one = "ln_" in name and name.endswith("weight")
            tensor.copy_(
                1 + noise * 0.1 if near_one else noise * (tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 0.1)
            )
    kernel = model.visual.conv1.weight.data
    kernel.copy_((kernel * 0.2).half().float())
    return model


def write(model: open_clip.CLIP, path: Path, quick_gelu: bool = True, towers: Towers = "both") -> None:
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    preprocess = Preprocess(64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    checkpoint = Checkpoint("tiny.pt", "clip", {**CONFIG, "quick_gelu": quick_gelu}, tensors, preprocess)
    write_gguf(checkpoint, path, WORDS, dtype="f32", towers=towers)


@torch.inference_mode()
def embed_image(model: open_clip.CLIP) -> NDArray[Any]:
    found: NDArray[Any] = model.encode_image(torch.from_numpy(PIXELS)[None])[0].numpy()
    return found


@torch.inference_mode()
def embed_text(model: open_clip.CLIP) -> NDArray[Any]:
    ids = torch.zeros(1, 77, dtype=torch.long)
    ids[0, : len(IDS)] = torch.from_numpy(IDS)
    found: NDArray[Any] = model.encode_text(ids)[0].numpy()
    return found


def cosine(one: NDArray[Any], two: NDArray[Any]) -> float:
    return float(one @ two / np.sqrt((one @ one) * (two @ two)))


def check_towers(run_clip_cpp: RunClipCpp, model: open_clip.CLIP, with_image: Path, with_text: Path) -> None:
    image = run_clip_cpp(with_image, "image", PIXELS.transpose(1, 2, 0)[None], 64)[0]
    assert cosine(image, embed_image(model)) >= 0.99999
    assert cosine(run_clip_cpp(with_text, "text", IDS[None], 64)[0], embed_text(model)) >= 0.99999


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_clip_cpp_runs_our_file_and_gives_the_embeddings_of_open_clip(
    tmp_path: Path, run_clip_cpp: RunClipCpp, quick_gelu: bool
) -> None:
    model = make_model(quick_gelu)
    write(model, tmp_path / "model.gguf", quick_gelu)
    check_towers(run_clip_cpp, model, tmp_path / "model.gguf", tmp_path / "model.gguf")


def test_clip_cpp_runs_our_files_of_one_tower(tmp_path: Path, run_clip_cpp: RunClipCpp) -> None:
    model = make_model(True)
    write(model, tmp_path / "text.gguf", towers="text")
    write(model, tmp_path / "image.gguf", towers="image")
    check_towers(run_clip_cpp, model, tmp_path / "image.gguf", tmp_path / "text.gguf")


@pytest.mark.parametrize("block_type", QUANTIZED)
def test_quantized_files_are_those_of_clip_cpp_byte_for_byte(
    tmp_path: Path, libraries: tuple[ctypes.CDLL, ctypes.CDLL], block_type: Quantized
) -> None:
    source, ours, theirs = (tmp_path / f"{name}.gguf" for name in ("source", "ours", "theirs"))
    write(make_model(True), source)
    quantize_gguf(source, ours, block_type)
    libraries[1].clip_model_quantize.restype = ctypes.c_bool
    assert libraries[1].clip_model_quantize(str(source).encode(), str(theirs).encode(), CODES[block_type])
    assert ours.read_bytes() == theirs.read_bytes()
    assert cosine(*(np.asarray(read_gguf(path).tensors["visual.proj"]).ravel() for path in (source, theirs))) > 0.99


@pytest.mark.parametrize("block_type", QUANTIZED)
def test_blocks_are_those_of_ggml_signed_zeros_and_ties_too(
    libraries: tuple[ctypes.CDLL, ctypes.CDLL], block_type: Quantized
) -> None:
    ggml = libraries[0]
    ggml.ggml_init.restype, ggml.ggml_init.argtypes = ctypes.c_void_p, [InitParams]
    assert ggml.ggml_init(InitParams(1 << 20, None, False))  # fills its table of float16 numbers
    random = np.random.default_rng(0)
    signed_zeros = np.copysign(0, random.standard_normal((256, 64)))
    ties = random.integers(-32, 33, (4096, 64)) / 2
    scales = 2.0 ** random.integers(-100, 100, (4096, 1))
    rows = np.concatenate([signed_zeros, ties, random.standard_normal((4096, 64)) * scales]).astype(np.float32)
    found, counts = np.zeros_like(quantize(rows, block_type)), np.zeros(16, np.int64)
    function = ggml[f"ggml_quantize_{block_type}"]
    function.restype = ctypes.c_size_t
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (rows, found, counts)]
    assert function(pointers[0], pointers[1], rows.size, rows.shape[1], pointers[2]) == found.size
    assert quantize(rows, block_type).tobytes() == found.tobytes()
