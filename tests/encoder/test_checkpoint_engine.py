from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from clip_retrieval.encoder.formats.gguf import Towers, write_gguf
from clip_retrieval.encoder.formats.recognize import read_checkpoint
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.errors import EncoderError

CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
TEXTS = ["a photo of a dog", "fire"]


def random_clip() -> open_clip.CLIP:
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return model


def save_openai(model: nn.Module, path: Path) -> Path:
    numbers = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}
    torch.save({**model.state_dict(), **{name: torch.tensor(value) for name, value in numbers.items()}}, path)
    return path


@torch.inference_mode()
def reference_texts(model: Any) -> np.ndarray[Any, Any]:
    rows = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(TEXTS), normalize=True)
    return np.asarray(rows)


@pytest.mark.parametrize("prefix", ["", "openai_clip:"])
def test_an_openai_file_gives_the_embeddings_of_its_model(tmp_path: Path, prefix: str) -> None:
    model = random_clip()
    encoder = load_encoder(prefix + str(save_openai(model, tmp_path / "model.pt")))
    assert encoder.info.dimension == 32
    assert encoder.info.preprocess.size == 64
    assert encoder.encode_texts(TEXTS) == pytest.approx(reference_texts(model), abs=1e-5)


def test_pictures_go_through_the_image_tower(tmp_path: Path) -> None:
    model = random_clip()
    encoder = load_encoder(str(save_openai(model, tmp_path / "model.pt")))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    mean, std = (np.array(v, dtype=np.float32) for v in (encoder.info.preprocess.mean, encoder.info.preprocess.std))
    scaled = torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = np.asarray(model.encode_image(scaled, normalize=True))
    assert encoder.encode_images(pixels) == pytest.approx(expected, abs=1e-5)


def test_equal_weights_have_equal_fingerprints_and_others_have_not(tmp_path: Path) -> None:
    model = random_clip()
    first = load_encoder(str(save_openai(model, tmp_path / "a.pt"))).info.fingerprint
    again = load_encoder(str(save_openai(model, tmp_path / "b.pt"))).info.fingerprint
    with torch.no_grad():
        model.ln_final.bias.add_(0.1)
    other = load_encoder(str(save_openai(model, tmp_path / "c.pt"))).info.fingerprint
    assert first == again != other


@pytest.mark.parametrize(("kept", "missing"), [("text", "image"), ("image", "text")])
def test_a_file_with_one_tower_says_so_when_the_other_is_asked(tmp_path: Path, kept: Towers, missing: str) -> None:
    checkpoint = read_checkpoint(save_openai(random_clip(), tmp_path / "model.pt"))
    write_gguf(checkpoint, tmp_path / "one.gguf", ["x"] * 49408, dtype="f32", towers=kept)
    encoder = load_encoder(f"gguf:{tmp_path / 'one.gguf'}")
    pixels = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    calls = {"text": lambda: encoder.encode_texts(TEXTS), "image": lambda: encoder.encode_images(pixels)}
    assert np.linalg.norm(calls[kept](), axis=1) == pytest.approx(1, abs=1e-5)
    with pytest.raises(EncoderError, match=f"has no {missing} encoder"):
        calls[missing]()


def test_a_gguf_file_gives_the_embeddings_of_its_model(tmp_path: Path) -> None:
    model = random_clip()
    checkpoint = read_checkpoint(save_openai(model, tmp_path / "model.pt"))
    write_gguf(checkpoint, tmp_path / "model.gguf", ["x"] * 49408, dtype="f32")
    rows = load_encoder(str(tmp_path / "model.gguf")).encode_texts(TEXTS)
    assert rows == pytest.approx(reference_texts(model), abs=1e-3)


def mixer_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (16,),
        "visual.conv1.weight": (16, 3, 8, 8),
        "visual.proj": (16, 12),
        "token_embedding.weight": (49408, 8),
        "text_projection": (8, 12),
        "logit_scale": (),
        **{f"{norm}.{part}": (16,) for norm in ("visual.ln_pre", "visual.ln_post") for part in ("weight", "bias")},
        **{f"ln_final.{part}": (8,) for part in ("weight", "bias")},
    }
    for prefix, tokens, width in (("visual.transformer.", 17, 16), ("transformer.", 77, 8)):
        block = f"{prefix}mixBlocks.0."
        shapes |= {f"{block}layerNorm{i}.{part}": (width,) for i in (1, 2) for part in ("weight", "bias")}
        layers = {"token_mix_seq.lin1": (20, tokens), "token_mix_seq.lin2": (tokens, 20)}
        layers |= {"channel_mix_seq.lin3": (24, width), "channel_mix_seq.lin4": (width, 24)}
        for name, shape in layers.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def test_a_mixer_file_embeds_texts_and_pictures_in_unit_rows(tmp_path: Path) -> None:
    torch.save(mixer_tensors(), tmp_path / "mixer.bin")
    encoder = load_encoder(f"mixer:{tmp_path / 'mixer.bin'}")
    rows = [encoder.encode_texts(TEXTS), encoder.encode_images(np.zeros((2, 32, 32, 3), dtype=np.uint8))]
    assert all(np.linalg.norm(row, axis=1) == pytest.approx(1, abs=1e-5) for row in rows)
    assert rows[0].shape == (2, 12)


def test_a_path_that_is_not_there_is_named() -> None:
    with pytest.raises(EncoderError, match="there is no file or folder /no/such/model"):
        load_encoder("hf_clip:/no/such/model")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("hello")
    with pytest.raises(EncoderError, match=r"notes\.pt"):
        load_encoder(str(tmp_path / "notes.pt"))
