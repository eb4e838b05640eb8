"""Mixer CLIP as ONNX: its padding counts, so a text keeps its 77 ids, and no batch is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.onnx import OnnxEncoder
from clip_retrieval.encoder.engines.open import open_engine
from clip_retrieval.encoder.export.compare import compare_towers
from clip_retrieval.encoder.export.config import ConvertConfig
from clip_retrieval.encoder.export.convert import run_convert
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.uri import parse_uri
from clip_retrieval.errors import EncoderError

PATCHES, PATCH, VISION, TEXT, CONTEXT, DIMENSION = 4, 16, 32, 24, 77, 20


def block(prefix: str, tokens: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}layerNorm1.weight": (width,),
        f"{prefix}layerNorm1.bias": (width,),
        f"{prefix}layerNorm2.weight": (width,),
        f"{prefix}layerNorm2.bias": (width,),
        f"{prefix}token_mix_seq.lin1.weight": (4 * tokens, tokens),
        f"{prefix}token_mix_seq.lin1.bias": (4 * tokens,),
        f"{prefix}token_mix_seq.lin2.weight": (tokens, 4 * tokens),
        f"{prefix}token_mix_seq.lin2.bias": (tokens,),
        f"{prefix}channel_mix_seq.lin3.weight": (4 * width, width),
        f"{prefix}channel_mix_seq.lin3.bias": (4 * width,),
        f"{prefix}channel_mix_seq.lin4.weight": (width, 4 * width),
        f"{prefix}channel_mix_seq.lin4.bias": (width,),
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (VISION,),
        "visual.conv1.weight": (VISION, 3, PATCH, PATCH),
        "visual.proj": (VISION, DIMENSION),
        "token_embedding.weight": (49408, TEXT),
        "text_projection": (TEXT, DIMENSION),
        "logit_scale": (),
    }
    for norm, width in (("visual.ln_pre", VISION), ("visual.ln_post", VISION), ("ln_final", TEXT)):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for i in range(2):
        shapes |= block(f"visual.transformer.mixBlocks.{i}.", PATCHES + 1, VISION)
        shapes |= block(f"transformer.mixBlocks.{i}.", CONTEXT, TEXT)
    rng = np.random.default_rng(0)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape).astype(np.float32)
        is_norm = "ayerNorm" in name or "ln_" in name
        scale = 0.2 if len(shape) < 2 else shape[-1] ** -0.5
        tensors[name] = np.asarray(scale * noise + (1 if is_norm and name.endswith("weight") else 0), dtype=np.float32)
    save_file(tensors, tmp_path / "mixer.safetensors")
    return tmp_path / "mixer.safetensors"


def test_a_mixer_becomes_a_graph_with_its_embeddings(tmp_path: Path, checkpoint: Path) -> None:
    result = run_convert(ConvertConfig(source=f"mixer:{checkpoint}", out=str(tmp_path / "onnx"), to="onnx"))
    assert max(agreement.largest_error for agreement in result.agreement.values()) < 1e-5
    made = load_encoder(str(tmp_path / "onnx"))
    assert made.info.fingerprint == load_encoder(str(checkpoint)).info.fingerprint
    found = compare_towers(open_engine(parse_uri(str(checkpoint)), EncoderConfig(device="cpu")), made)
    assert min(agreement.least_cosine for agreement in found.values()) > 0.999999


def test_its_padding_counts(tmp_path: Path, checkpoint: Path) -> None:
    run_convert(ConvertConfig(source=str(checkpoint), out=str(tmp_path / "onnx"), to="onnx"))
    made = load_encoder(str(tmp_path / "onnx"))
    assert isinstance(made, OnnxEncoder)
    tokens, _ = made.tokenizer.tokenize(["a dog"])
    other = tokens.copy()
    other[0, 50] = 7
    assert (made.encode_tokens(tokens) * made.encode_tokens(other)).sum() < 0.99999


@pytest.mark.parametrize("target", ["open_clip", "hf", "gguf", "clippie"])
def test_other_formats_have_no_form_for_it_and_the_sentence_names_the_one_that_has(
    tmp_path: Path, checkpoint: Path, target: str
) -> None:
    with pytest.raises(EncoderError, match=r"is a Mixer CLIP.*--to onnx") as caught:
        run_convert(ConvertConfig(source=str(checkpoint), out=str(tmp_path / "out"), to=target))  # type: ignore[arg-type]
    assert str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
