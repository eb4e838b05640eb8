"""The examples that the READMEs of OpenAI's clip and NumPyCLIP print, in programs with torch and without it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from clip_retrieval import clip
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.encoder.engines.open import open_engine
from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.gguf import write_gguf
from clip_retrieval.encoder.tokenizer import clip_vocabulary
from clip_retrieval.encoder.uri import parse_uri
from clip_retrieval.faces.arrays import Array, wrap

ROOT = Path(__file__).parents[2]
TEXTS = ["a dog", "a cat", "fire"]


@pytest.fixture
def picture(tmp_path: Path, make_jpeg: Callable[[int], bytes]) -> Path:
    (tmp_path / "picture.jpg").write_bytes(make_jpeg(0))
    return tmp_path / "picture.jpg"


def test_openais_example_gives_tensors_to_a_program_that_uses_torch(picture: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, preprocess = clip.load("demo", device="cpu")
    image = preprocess(Image.open(picture)).unsqueeze(0).to(device)
    text = clip.tokenize(TEXTS).to(device)
    with torch.no_grad():
        image_features = model.encode_image(image)
        text_features = model.encode_text(text)
        logits_per_image, logits_per_text = model(image, text)
        probs = logits_per_image.softmax(dim=-1).cpu().numpy()
    for found, shape in ((image_features, (1, 128)), (text_features, (3, 128)), (logits_per_text, (3, 1))):
        assert isinstance(found, torch.Tensor)
        assert tuple(found.shape) == shape
    image_features /= image_features.norm(dim=-1, keepdim=True)
    text_features /= text_features.norm(dim=-1, keepdim=True)
    expected = model.logit_scale.exp() * image_features @ text_features.t()
    torch.testing.assert_close(logits_per_image, expected, rtol=1e-4, atol=1e-4)
    assert probs.shape == (1, 3)


def test_openais_other_examples_join_and_load_what_it_gives(picture: Path) -> None:
    model, preprocess = clip.load("demo", "cpu")
    model.to("cpu").eval()
    inputs = torch.cat([clip.tokenize(f"a photo of a {name}") for name in TEXTS])  # type: ignore[misc]
    assert inputs.dtype == torch.int32
    np.testing.assert_allclose(model.encode_text(inputs), model.encode_text([f"a photo of a {name}" for name in TEXTS]))
    ready: list[Any] = [preprocess(Image.open(picture)) for _ in range(3)]
    batch = next(iter(DataLoader(ready, batch_size=3)))  # type: ignore[arg-type]
    for images in (torch.stack(ready), torch.tensor(np.stack(ready)), batch):
        rows = model.encode_image(images)
        np.testing.assert_allclose(rows, np.repeat(model.encode_image(picture)[None], 3, axis=0), atol=1e-6)
    values, indices = (100.0 * rows @ model.encode_text(inputs).T).softmax(dim=-1)[0].topk(2)
    assert (tuple(values.shape), tuple(indices.shape)) == ((2,), (2,))
    assert (model.visual.input_resolution, model.context_length, model.vocab_size) == (64, 77, 49408)


WITHOUT_TORCH = """
import sys; sys.modules.update(torch=None)
import numpy as np
from PIL import Image
from clip_retrieval import clip
import clip_retrieval.faces.numpyclip as numpyclip

model, preprocess = clip.load("demo", "cpu", False)
image = preprocess(Image.open(sys.argv[1])).unsqueeze(0).to("cpu")
text = clip.tokenize(["a dog", "a cat", "fire"]).to("cpu")
image_features = model.encode_image(image)
image_features /= image_features.norm(dim=-1, keepdim=True)
logits_per_image, logits_per_text = model(image, text)
first = logits_per_image.softmax(dim=-1).cpu().numpy()

model, preprocess = numpyclip.load("demo")
image = preprocess(Image.open(sys.argv[1]))[np.newaxis, :, :, :]
text = numpyclip.tokenize(["a dog", "a cat", "fire"])
assert text.dtype == np.int64, text.dtype
assert model.encode_image(image).shape == (1, 128)
logits_per_image, logits_per_text = model(image, text)
second = numpyclip.softmax(logits_per_image, axis=-1)
np.testing.assert_allclose(first, second, rtol=1e-6)
assert abs(second.sum() - 1) < 1e-5 and logits_per_text.shape == (3, 1)
print("done")
"""


def test_both_examples_run_where_torch_cannot_be_imported(picture: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", WITHOUT_TORCH, str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.stdout.strip(), done.stderr) == ("done", "")


def test_tensors_of_any_floats_are_what_torch_makes_of_them(
    tmp_path: Path, make_checkpoint: Callable[..., Checkpoint]
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(make_checkpoint(), path, clip_vocabulary(), dtype="f32")
    model, _ = clip.load(str(path), "cpu")
    noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    reference = open_engine(parse_uri(str(path)), EncoderConfig(clip_model=str(path), device="cpu"))
    with torch.inference_mode():
        expected = reference.model.encode_image(noise)  # type: ignore[attr-defined]
    torch.testing.assert_close(model.encode_image(noise), expected.clone(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pictures_survive_16_bits(picture: Path, dtype: torch.dtype) -> None:
    model, preprocess = clip.load("demo", "cpu")
    tensor = preprocess(picture).unsqueeze(0).to("cpu").to(dtype)
    rows = model.encode_image(tensor)
    assert torch.nn.functional.cosine_similarity(rows, torch.as_tensor(model.encode_image([picture]))).item() > 0.999


def test_prompts_are_averaged_as_in_openais_notebook() -> None:
    model, _ = clip.load("demo", "cpu")
    rows = model.half().encode_text(clip.tokenize(["a photo of a dog", "a drawing of a dog"]))
    rows /= rows.norm(dim=-1, keepdim=True)
    mean = rows.mean(dim=0)
    mean /= mean.norm()
    assert model.dtype == torch.float32
    assert mean.shape == (128,)
    assert float(np.linalg.norm(mean)) == pytest.approx(1, abs=1e-5)


def test_an_array_does_what_a_tensor_does() -> None:
    values = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    array, tensor = wrap(values), torch.from_numpy(values)
    pairs = [
        (array.softmax(dim=0), tensor.softmax(dim=0)),
        (array.norm(dim=-1, keepdim=True), tensor.norm(dim=-1, keepdim=True)),
        (array.topk(2).indices, tensor.topk(2).indices),
        (array.topk(2, dim=0).values, tensor.topk(2, dim=0).values),
        (array.unsqueeze(1), tensor.unsqueeze(1)),
        (array.t(), tensor.t()),
        (array.exp(), tensor.exp()),
        (array.mean(dim=0), tensor.mean(dim=0)),
        (array.mean(1, keepdim=True), tensor.mean(1, keepdim=True)),
        (array.sum(dim=-1), tensor.sum(dim=-1)),
        (array.argmax(dim=-1), tensor.argmax(dim=-1)),
        (array.argmin(), tensor.argmin()),
        (array.max(dim=1).indices, tensor.max(dim=1).indices),
        (array.min(0).values, tensor.min(0).values),
        (array.max(), tensor.max()),
        (array.sort(dim=-1).values, tensor.sort(dim=-1).values),
        (array.sort(descending=True).indices, tensor.sort(descending=True).indices),
        (array.permute(1, 0), tensor.permute(1, 0)),
        (array.half().float(), tensor.half().float()),
    ]
    for ours, theirs in pairs:
        assert isinstance(ours, Array)
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(np.unique(wrap(np.array([3, 1, 3, 2]))), [1, 2, 3])
    np.testing.assert_array_equal(array.max(0, keepdims=True), values.max(0, keepdims=True))
    np.testing.assert_allclose(array.mean(1, keepdims=True), values.mean(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(array.sum(0, dtype=np.float64), values.sum(0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_array_equal(np.sort(array, axis=0), np.sort(values, axis=0))
    np.testing.assert_array_equal(np.max(array, axis=1), np.max(values, axis=1))
    np.testing.assert_array_equal(np.argmax(array, axis=1), np.argmax(values, axis=1))
    np.testing.assert_allclose(np.mean(array, axis=1, keepdims=True), values.mean(axis=1, keepdims=True), rtol=1e-5)
    assert isinstance(array.to("cpu"), torch.Tensor)
    assert isinstance(array[0] * tensor, torch.Tensor)


BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[str(i) for i in range(len(BLOCKS))])
def test_the_examples_of_the_docs_run(block: str, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(picture.parent)
    picture.rename("dog.jpg")
    exec(compile(block, "docs/python.md", "exec"), {})
