"""OpenAI's archives without torch: the original module's embeddings, and no code of the file's choice."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.openai_pt import read_openai, read_torch_zip, read_weights
from clip_retrieval.errors import EncoderError

TEXT = {"context_length": 16, "vocab_size": 300, "width": 128, "heads": 2, "layers": 2}
TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"image_size": 48, "layers": 3, "width": 128, "patch_size": 16},
    "resnet": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8},
}
EXTRA = {"input_resolution": 48, "context_length": 16, "vocab_size": 300}  # OpenAI's integers among the weights


@pytest.fixture(scope="module", params=TOWERS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    """Return a tiny CLIP whose every tensor is random, in half precision if OpenAI's is."""
    torch.manual_seed(0)
    model: nn.Module = open_clip.CLIP(32, TOWERS[request.param], TEXT, quick_gelu=True).eval()
    for name, tensor in model.state_dict().items():
        if "running_var" in name or (name.endswith("weight") and tensor.ndim == 1):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        elif tensor.is_floating_point() and tensor.ndim < 2:
            tensor.normal_(std=0.1)
        if tensor.ndim > 1:
            tensor.copy_(tensor.half())
    return model


class Holder(nn.Module):
    """A module tree with the weights of a state dict, under the same names, that can be scripted."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        children: dict[str, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            first, _, rest = name.partition(".")
            if rest:
                children.setdefault(first, {})[rest] = tensor
            elif tensor.is_floating_point():
                self.register_parameter(first, nn.Parameter(tensor))
            else:
                self.register_buffer(first, tensor)
        for first, inner in children.items():
            self.add_module(first, Holder(inner))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture
def quiet_script() -> Iterator[None]:
    with warnings.catch_warnings():  # torch.jit is deprecated; the files it wrote are not
        warnings.simplefilter("ignore")
        yield


def openai_state(model: nn.Module) -> dict[str, Tensor]:
    state = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in model.state_dict().items()}
    return state | {name: torch.tensor(value) for name, value in EXTRA.items()}


def load(checkpoint: Checkpoint) -> nn.Module:
    model: nn.Module = open_clip.CLIP(**checkpoint.model_config).eval()
    model.load_state_dict({name: torch.tensor(np.array(array)) for name, array in checkpoint.tensors.items()})
    return model


def image_side(model: Any) -> int:
    return int(np.max(model.visual.image_size))  # a number or a pair


@torch.inference_mode()
def embed(model: Any) -> NDArray[np.float32]:
    generator = torch.Generator().manual_seed(1)
    side = image_side(model)
    images = model.encode_image(torch.randn(2, 3, side, side, generator=generator))
    texts = model.encode_text(torch.randint(1, 300, (3, 16), generator=generator))
    found: NDArray[np.float32] = torch.cat([images, texts]).numpy()
    return found


def assert_same_embeddings(checkpoint: Checkpoint, model: nn.Module) -> None:
    wanted, found = embed(model), embed(load(checkpoint))
    assert np.abs(found - wanted).max() / np.abs(wanted).max() <= 1e-6


@pytest.mark.usefixtures("quiet_script")
def test_a_scripted_archive_gives_the_embeddings_of_its_module(tmp_path: Path, model: nn.Module) -> None:
    torch.jit.save(torch.jit.script(Holder(openai_state(model))), tmp_path / "tiny.pt")
    checkpoint = read_openai(tmp_path / "tiny.pt")
    assert (checkpoint.has_image, checkpoint.has_text) == (True, True)
    assert not EXTRA.keys() & checkpoint.tensors.keys()
    assert checkpoint.tensors["text_projection"].dtype == np.float16
    assert_same_embeddings(checkpoint, model)


@pytest.mark.usefixtures("quiet_script")
def test_a_traced_archive_gives_the_embeddings_of_its_module(tmp_path: Path, model: Any) -> None:
    side = image_side(model)
    example = (torch.zeros(2, 3, side, side), torch.ones(2, 16, dtype=torch.int64))
    torch.jit.save(torch.jit.trace(model, example, check_trace=False), tmp_path / "tiny.pt")  # type: ignore[no-untyped-call]
    assert_same_embeddings(read_openai(tmp_path / "tiny.pt"), model)


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "module", "parameters"])
def test_a_saved_state_dict_gives_the_embeddings_of_its_model(tmp_path: Path, model: nn.Module, wrap: str) -> None:
    state: Any = model.state_dict()
    if wrap == "parameters":
        state = {**state, **dict(model.named_parameters())}
    if wrap == "module":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    if wrap in ("state_dict", "module"):
        state = {"epoch": 3, "name": "tiny", "state_dict": state}
    torch.save(state, tmp_path / "tiny.pt")
    assert_same_embeddings(read_openai(tmp_path / "tiny.pt"), model)


def test_the_architecture_and_preprocessing_are_openais(tmp_path: Path, model: Any) -> None:
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    checkpoint = read_openai(tmp_path / "tiny.pt")
    tower = TOWERS["vit" if hasattr(model.visual, "proj") else "resnet"]
    assert checkpoint.family == "clip"
    assert checkpoint.model_config == {"embed_dim": 32, "quick_gelu": True, "vision_cfg": tower, "text_cfg": TEXT}
    assert checkpoint.preprocess.size == tower["image_size"]
    assert (checkpoint.preprocess.interpolation, checkpoint.preprocess.resize_mode) == ("bicubic", "shortest")
    assert checkpoint.preprocess.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert checkpoint.preprocess.std == pytest.approx(open_clip.OPENAI_DATASET_STD)


def test_tensors_are_views_of_the_file_with_the_strides_they_were_saved_with(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {"t": base.t(), "part": base[1:3, 2:4], "tied": base, "brain": base.bfloat16(), "none": torch.zeros(0, 3)}
    state |= {"brain none": torch.zeros(0, 3).bfloat16(), "brain scalar": torch.tensor(4.6).bfloat16()}
    torch.save(state, tmp_path / "tiny.pt")
    found = read_torch_zip(tmp_path / "tiny.pt")
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name], tensor.float().numpy(), err_msg=name, strict=True)
    assert isinstance(found["tied"], np.memmap)
    assert np.shares_memory(found["t"], found["part"])
    assert found["t"].strides == (4, 24)
    assert not found["part"].flags.writeable


def test_a_compressed_archive_is_read_too(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(100)}, tmp_path / "stored.pt")
    with zipfile.ZipFile(tmp_path / "stored.pt") as old, zipfile.ZipFile(tmp_path / "small.pt", "w", 8) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    np.testing.assert_array_equal(read_torch_zip(tmp_path / "small.pt")["a"], np.arange(100))


class Command:
    """The content of a malicious file: it asks to call a function while it is loaded."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.call


def write_archive(path: Path, data_pkl: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("evil/data.pkl", data_pkl)
        archive.writestr("evil/data/0", bytes(16))
    return path


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path: Path, wrapped: bool) -> None:
    trace = tmp_path / "it ran"
    evil = Command(exec, f"open({str(trace)!r}, 'w')")
    path = write_archive(tmp_path / "evil.pt", pickle.dumps({"state_dict": {"a": evil}} if wrapped else evil))
    with pytest.raises(EncoderError, match=r"asks to run builtins\.exec while loading; refused"):
        read_torch_zip(path)
    assert not trace.exists()


FORBIDDEN = (
    "os system, builtins eval, torch load, torch.hub load, torch._utils _rebuild_tensor, torch.jit._pickle x, "
    "torch.storage _load_from_bytes, collections OrderedDict.fromkeys, __torch__x y"
).split(", ")


@pytest.mark.parametrize("name", FORBIDDEN)
def test_every_name_that_makes_no_tensor_is_refused(tmp_path: Path, name: str) -> None:
    module, _, function = name.partition(" ")
    call = f"c{module}\n{function}\n(S'true'\ntR.".encode()
    with pytest.raises(EncoderError, match=rf"asks to run {module}\.{function} while loading; refused"):
        read_torch_zip(write_archive(tmp_path / "evil.pt", call))


def tensor_pickle(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], key: str = "0") -> bytes:
    storage = b"(S'storage'\nctorch\nFloatStorage\nS'" + key.encode() + b"'\nS'cpu'\nI4\ntQ"
    numbers = [b"(" + b"".join(b"I%d\n" % n for n in values) + b"t" for values in (shape, strides)]
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"I%d\n" % offset + b"".join(numbers) + b"I00\nNtR"
    return b"(dS'a'\n" + tensor + b"s."


def test_a_tensor_within_its_storage_is_read(tmp_path: Path) -> None:
    found = read_torch_zip(write_archive(tmp_path / "fine.pt", tensor_pickle(1, (3,), (1,))))
    assert found["a"].shape == (3,)


@pytest.mark.parametrize(
    "data_pkl",
    [
        tensor_pickle(0, (5,), (1,)),
        tensor_pickle(2, (3,), (1,)),
        tensor_pickle(0, (2, 2), (3, 1)),
        tensor_pickle(-1, (2,), (1,)),
        tensor_pickle(3, (2,), (-1,)),
        tensor_pickle(0, (2,), ()),
        tensor_pickle(0, (2,), (1,), key="7"),
        tensor_pickle(0, (2,), (1,), key="../data.pkl"),
        *(b"", b"(dS'a'\n", b"garbage", b"S'storage'\nQ."),
    ],
)
def test_a_pickle_that_reaches_beyond_its_bytes_is_one_sentence(tmp_path: Path, data_pkl: bytes) -> None:
    with pytest.raises(EncoderError, match=r"evil\.pt is broken: ") as caught:
        read_torch_zip(write_archive(tmp_path / "evil.pt", data_pkl))
    assert "\n" not in str(caught.value)


def test_wrong_and_truncated_files_are_one_sentence(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(999)}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:2000])
    torch.save({"a": torch.ones(3)}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    (tmp_path / "page.pt").write_text("<html>")
    zipfile.ZipFile(tmp_path / "other.pt", "w").close()
    for name, message in {
        "cut.pt": "is cut off or broken; fetch it again",
        "legacy.pt": r"format from before 1\.6; save it again with torch\.save\(torch\.load",
        "empty.pt": "holds no tensors",
        "page.pt": "is not a torch archive: it is not a zip file",
        "other.pt": r"is a zip file but not a torch archive: there is no data\.pkl",
        "missing.pt": "cannot be read",
        "whole.pt": "is not CLIP in OpenAI's layout",
    }.items():
        with pytest.raises(EncoderError, match=rf"{name}.* {message}"):
            read_openai(tmp_path / name)


def test_a_folder_without_weights_says_which_files_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"has no weights, neither model\.safetensors nor pytorch_model\.bin"):
        read_weights(tmp_path)
