"""The embeddings of mossblaser-clippie, and, through ONNX, those of clip_cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import clippie
import numpy as np
import open_clip
import pytest
import torch
from clippie import tokeniser
from clippie.scripts.convert_weights_file import extract_weights
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval.encoder.base import Encoder, Pixels, normalize
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.export.config import ConvertConfig
from clip_retrieval.encoder.export.convert import run_convert
from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.gguf import write_gguf
from clip_retrieval.encoder.formats.openai_pt import MEAN, STD
from clip_retrieval.encoder.formats.openclip_folder import write_openclip
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.encoder.tokenizer import BpeTokenizer, clip_vocabulary

SIZE = 64
TEXTS = [  # clean ones: Clippie repairs nothing that wrong decodings left
    "a photo of a dog",
    "Two RED apples, on a wooden table: seen from above!",
    "don't we'll they're 1234 times",
    "",
    "naïve café 日本語 🙂",
    "l'été, &c.; #hashtag @home",
    "x" * 50,
    " ".join(["very"] * 70) + " long",
]
PREPROCESS = Preprocess(SIZE, MEAN, STD)


def make_model(width: int, layers: int, head_width: int) -> tuple[open_clip.CLIP, Checkpoint]:
    """Return a CLIP whose every tensor is random, with OpenAI's activation and vocabulary."""
    text = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": width // head_width, "layers": layers}
    vision = {"image_size": SIZE, "patch_size": 32, "width": 128, "head_width": head_width, "layers": layers}
    config: dict[str, Any] = {"embed_dim": 64, "text_cfg": text, "vision_cfg": vision, "quick_gelu": True}
    model = open_clip.CLIP(**config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.ndim:
            noise = torch.randn(tensor.shape, generator=generator)
            spread = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
            tensor.copy_(noise * spread + ("ln_" in name and name.endswith("weight")))
    kernel = model.visual.conv1.weight.data
    kernel.copy_(kernel.half())  # as GGUF has it
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return model, Checkpoint("tiny", "clip", config, tensors, PREPROCESS)


def make_pixels(count: int) -> Pixels:
    """Return noise and smooth pictures."""
    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)) for _ in range(count // 2)]
    smooth = [np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for image in coarse]
    return np.stack([*smooth, *rng.integers(0, 256, (count - len(smooth), SIZE, SIZE, 3), dtype=np.uint8)])


def open_onnx(source: Path, out: Path) -> Encoder:
    run_convert(ConvertConfig(source=str(source), out=str(out), to="onnx"))
    return load_encoder(EncoderConfig(clip_model=f"onnx:{out}?runtime=onnxruntime", device="cpu", precision="fp32"))


def relative_error(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_texts_have_the_ids_of_clippie() -> None:
    ours = BpeTokenizer()
    assert [ours.encode(text) for text in TEXTS] == [list(tokeniser.encode(text)) for text in TEXTS]


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_embeddings_are_those_of_clippie(tmp_path: Path, engine: str) -> None:
    model, checkpoint = make_model(width=128, layers=3, head_width=64)  # the only width of heads that Clippie knows
    weights = extract_weights(model)
    write_openclip(checkpoint, tmp_path / "model", dtype="f32", towers="both")
    name = EncoderConfig(clip_model=str(tmp_path / "model"), device="cpu", precision="fp32")
    ours = load_encoder(name) if engine == "torch" else open_onnx(tmp_path / "model", tmp_path / "onnx")
    pixels = make_pixels(8)
    images = clippie.encode_image([Image.fromarray(row) for row in pixels], weights.image_encoder)  # of the right size
    assert relative_error(ours.encode_images(pixels), normalize(images)) <= 1e-5
    assert relative_error(ours.encode_texts(TEXTS), normalize(clippie.encode_text(TEXTS, weights.text_encoder))) <= 1e-5


def test_the_onnx_conversion_of_a_gguf_file_has_the_embeddings_of_clip_cpp(
    tmp_path: Path, run_clip_cpp: Callable[..., NDArray[np.float32]]
) -> None:
    _, checkpoint = make_model(width=64, layers=12, head_width=32)  # clip.cpp has room for no fewer layers
    source = tmp_path / "model.gguf"
    write_gguf(checkpoint, source, clip_vocabulary(), dtype="f32")
    ours = open_onnx(source, tmp_path / "onnx")
    pixels, tokens = make_pixels(6), BpeTokenizer()(TEXTS)
    floats = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    images = normalize(run_clip_cpp(source, "image", floats.astype(np.float32), 64))
    texts = normalize(run_clip_cpp(source, "text", tokens, 64))
    assert (ours.encode_images(pixels) * images).sum(axis=1).min() >= 0.99999
    assert (ours.encode_tokens(tokens) * texts).sum(axis=1).min() >= 0.99999
