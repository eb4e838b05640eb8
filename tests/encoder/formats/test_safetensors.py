"""safetensors files: the same arrays as the safetensors library's, mapped and not copied; one sentence if broken."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clip_retrieval.encoder.formats.safetensors import read_safetensors, strip_wrappers
from clip_retrieval.errors import EncoderError

DTYPES = (
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    floats = torch.randn(3, 5, generator=generator)
    return {
        "single": floats,
        "double": floats.double(),
        "half": floats.half(),
        "brain": floats.bfloat16(),
        "long": torch.arange(7),
        "int": torch.arange(6, dtype=torch.int32).reshape(2, 3),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(4.6),
        "empty": torch.zeros(0, 4),
        **{f"{dtype} scalar": torch.tensor(1).to(dtype) for dtype in DTYPES},
        **{f"{dtype} empty": torch.zeros(3, 0, dtype=dtype) for dtype in DTYPES},
    }


def write_raw(path: Path, header: Any, data: bytes) -> Path:
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def test_every_dtype_is_read_as_torch_wrote_it(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = read_safetensors(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_array_equal(found[name], expected.numpy(), err_msg=name, strict=True)


def test_tensors_are_views_of_the_mapped_file_and_cannot_be_written(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    found = read_safetensors(tmp_path / "model.safetensors")
    assert isinstance(found["single"], np.memmap)
    assert not found["half"].flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        found["single"][0, 0] = 1


def test_a_folder_is_read_with_all_its_shards(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-00002-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert {name: array.shape for name, array in read_safetensors(tmp_path).items()} == {"a": (2,), "b": (3,)}


@pytest.mark.parametrize("shard", ["missing.safetensors", "../elsewhere.safetensors"])
def test_a_shard_that_is_not_in_the_folder_is_refused(tmp_path: Path, shard: object) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "elsewhere.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(EncoderError, match=r"names the shard .* which is not in"):
        read_safetensors(folder)


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_a_file_that_is_cut_off_is_one_sentence_with_its_name(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(64, 3)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(EncoderError, match=r"model\.safetensors") as caught:
        read_safetensors(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "has 4 bytes, its shape .2,. needs 8"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}, r"shape\[0\]: expected `int` >= 0"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, r"data_offsets\[0\]: expected `int` >= 0"),
        ({"dtype": "F32", "shape": [1024], "data_offsets": [0, 4096]}, "is cut off: weight ends past the end"),
        ({"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}, "as F8_E4M3, which is not supported"),
        ({"dtype": "F32", "shape": [2]}, "entry for weight .*missing required field `data_offsets`"),
        ([], "entry for weight cannot be used: expected `object`, got `array`"),
    ],
)
def test_a_header_that_does_not_fit_its_bytes_is_refused(tmp_path: Path, entry: object, message: str) -> None:
    path = write_raw(tmp_path / "model.safetensors", {"weight": entry}, bytes(8))
    with pytest.raises(EncoderError, match=message):
        read_safetensors(path)


@pytest.mark.parametrize("weight_map", [{"a": 3}, [], None])
def test_an_index_of_another_shape_is_refused(tmp_path: Path, weight_map: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(EncoderError, match=r"weight_map.* expected"):
        read_safetensors(tmp_path)


def test_a_header_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    raw = b'{"a":' * 50_000
    (tmp_path / "deep").write_bytes(struct.pack("<Q", len(raw)) + raw)
    with pytest.raises(EncoderError, match="nested too deeply"):
        read_safetensors(tmp_path / "deep")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_stripped_where_all_names_have_them(prefix: str) -> None:
    one = np.ones(1)
    assert strip_wrappers({f"{prefix}a": one, f"{prefix}b.c": one}).keys() == {"a", "b.c"}
    assert strip_wrappers({f"{prefix}a": one, "b": one}).keys() == {f"{prefix}a", "b"}
    assert strip_wrappers({}) == {}


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("<html>this is a page that says no such file</html>")
    with pytest.raises(EncoderError, match="is not a safetensors file"):
        read_safetensors(tmp_path / "text")
    with pytest.raises(EncoderError, match="the header cannot be used: expected `object`, got `array`"):
        read_safetensors(write_raw(tmp_path / "list", ["a"], b""))
    with pytest.raises(EncoderError, match="cannot be read"):
        read_safetensors(tmp_path / "missing")
