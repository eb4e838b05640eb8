"""Mixer CLIP: the numpy towers equal a torch module written here, and checkpoints in all their wrappings are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from clip_retrieval.encoder.formats.mixer import MixerTowers, read_mixer
from clip_retrieval.errors import EncoderError

GRID, PATCH, VISION, TEXT, VOCAB, CONTEXT, DIMENSION = 3, 8, 24, 16, 100, 77, 12
END = VOCAB - 1


class Block(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.layerNorm1, self.layerNorm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        seq = {"lin1": nn.Linear(tokens, 4 * tokens), "lin2": nn.Linear(4 * tokens, tokens)}
        self.token_mix_seq = nn.ModuleDict(seq)
        self.channel_mix_seq = nn.ModuleDict({"lin3": nn.Linear(width, 4 * width), "lin4": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.token_mix_seq["lin1"](self.layerNorm1(x).mT)
        x = x + self.token_mix_seq["lin2"](mixed * torch.sigmoid(1.702 * mixed)).mT
        mixed = self.channel_mix_seq["lin3"](self.layerNorm2(x))
        found: Tensor = x + self.channel_mix_seq["lin4"](mixed * torch.sigmoid(1.702 * mixed))
        return found


class Blocks(nn.Module):
    def __init__(self, layers: int, tokens: int, width: int) -> None:
        super().__init__()
        self.mixBlocks = nn.Sequential(*(Block(tokens, width) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.mixBlocks(x)
        return found


class Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(VISION))
        self.conv1 = nn.Conv2d(3, VISION, PATCH, PATCH, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(VISION), nn.LayerNorm(VISION)
        self.transformer = Blocks(3, GRID * GRID + 1, VISION)
        self.proj = nn.Parameter(torch.zeros(VISION, DIMENSION))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], dim=1)
        x = self.transformer(self.ln_pre(x))
        found: Tensor = self.ln_post(x[:, 0]) @ self.proj
        return found


class Reference(nn.Module):
    """The published architecture, by its description, with its names."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = Visual()
        self.token_embedding = nn.Embedding(VOCAB, TEXT)
        self.transformer = Blocks(2, CONTEXT, TEXT)
        self.ln_final = nn.LayerNorm(TEXT)
        self.text_projection = nn.Parameter(torch.zeros(TEXT, DIMENSION))
        self.logit_scale = nn.Parameter(torch.tensor(2.7))

    def encode_text(self, tokens: Tensor) -> Tensor:
        x = self.ln_final(self.transformer(self.token_embedding(tokens)))
        found: Tensor = x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ self.text_projection
        return found


@pytest.fixture(scope="module")
def model() -> Reference:
    torch.manual_seed(0)
    model = Reference().eval()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, 1.0 if "ln_" in name or "layerNorm" in name else 0.0, 0.3)
    return model


@pytest.fixture
def saved(tmp_path: Path, model: Reference) -> Path:
    torch.save(model.state_dict(), tmp_path / "mixer.bin")
    return tmp_path / "mixer.bin"


def make_tokens() -> NDArray[np.int64]:
    """Return texts of 1, 5 and all 75 words, padded with 0."""
    tokens = np.zeros((3, CONTEXT), dtype=np.int64)
    for row, count in enumerate((1, 5, CONTEXT - 2)):
        tokens[row, : count + 2] = [END - 1, *np.random.default_rng(row).integers(1, 90, count), END]
    return tokens


@torch.inference_mode()
def test_the_numpy_towers_equal_the_torch_module(saved: Path, model: Reference) -> None:
    towers = MixerTowers(read_mixer(saved))
    pixels = torch.randn(4, 3, GRID * PATCH, GRID * PATCH, generator=torch.Generator().manual_seed(1))
    for found, wanted in (
        (towers.encode_image(pixels.numpy()), model.visual(pixels).numpy()),
        (towers.encode_text(make_tokens()), model.encode_text(torch.from_numpy(make_tokens())).numpy()),
    ):
        assert found.dtype == np.float32
        assert np.abs(found - wanted).max() / np.abs(wanted).max() <= 1e-5


def test_the_architecture_is_told_by_the_shapes(saved: Path) -> None:
    checkpoint = read_mixer(saved)
    assert (checkpoint.family, checkpoint.has_image, checkpoint.has_text) == ("mixer", True, True)
    assert checkpoint.preprocess.size == GRID * PATCH
    assert checkpoint.model_config == {
        "embed_dim": DIMENSION,
        "image_size": GRID * PATCH,
        "patch_size": PATCH,
        "vision_width": VISION,
        "vision_layers": 3,
        "text_width": TEXT,
        "text_layers": 2,
        "context_length": CONTEXT,
        "vocab_size": VOCAB,
        "quick_gelu": True,
    }


def test_other_padding_is_another_text_and_a_shorter_one_is_refused(saved: Path) -> None:
    towers = MixerTowers(read_mixer(saved))
    tokens = make_tokens()[:2]
    repeated = np.where(tokens == 0, END, tokens)  # as transformers pads
    assert np.abs(towers.encode_text(tokens) - towers.encode_text(repeated)).max() > 1e-2
    with pytest.raises(EncoderError, match=r"takes tokens of shape \(77,\) a row, not \(7,\)"):
        towers.encode_text(tokens[:, :7])


def test_pixels_of_another_size_are_refused(saved: Path) -> None:
    with pytest.raises(EncoderError, match=r"takes pixels of shape \(3, 24, 24\) a row, not \(3, 32, 32\)"):
        MixerTowers(read_mixer(saved)).encode_image(np.zeros((1, 3, 32, 32), dtype=np.float32))


def test_extreme_pixels_stay_finite(saved: Path) -> None:
    pixels = np.full((1, 3, GRID * PATCH, GRID * PATCH), 1e4, dtype=np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(MixerTowers(read_mixer(saved)).encode_image(pixels)).all()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_folders_of_accelerate_are_read_with_and_without_prefix(
    tmp_path: Path, model: Reference, name: str, prefix: str
) -> None:
    state = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    (tmp_path / "epoch.json").write_text("{}")
    torch.save({"anything": 1}, tmp_path / "optimizer.bin")
    if name.endswith(".bin"):
        torch.save(state, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    found = read_mixer(tmp_path).tensors
    assert found.keys() == model.state_dict().keys()
    np.testing.assert_array_equal(found["visual.conv1.weight"], model.visual.conv1.weight.detach().numpy())


def test_weights_of_something_else_are_refused(tmp_path: Path, model: Reference) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.bin")
    with pytest.raises(EncoderError, match=r"other\.bin is not a Mixer CLIP: none of its tensors is named mixBlocks"):
        read_mixer(tmp_path / "other.bin")
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "text_projection"}
    torch.save(state, tmp_path / "part.bin")
    with pytest.raises(EncoderError, match=r"part\.bin is an incomplete Mixer CLIP: 'text_projection' is missing"):
        read_mixer(tmp_path / "part.bin")
