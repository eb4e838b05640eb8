"""Torch's zip archives without torch: OpenAI's TorchScript files and saved state dicts, by a restricted unpickler.

An archive holds STEM/data.pkl, a pickle of the module tree or of the state dict, and each storage as raw little-endian
bytes in STEM/data/KEY. The pickle names classes; only the ones that make up tensors are known here, as our own
stand-ins, so no code that the file names ever runs.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from clip_retrieval.encoder.formats.checkpoint import Checkpoint
from clip_retrieval.encoder.formats.safetensors import (
    INDEX_NAME,
    count_blocks,
    list_shards,
    looks_like_safetensors,
    read_safetensors,
    strip_wrappers,
    widen_bfloat16,
)
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import EncoderError, one_line
from clip_retrieval.git_lfs import LARGEST_POINTER, describe_pointer

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
HEAD_WIDTH = 64  # the same in all OpenAI models
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # integers that OpenAI stored as buffers
STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
SCRIPT_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
BROKEN_PICKLE = (  # errors that the unpickler raises on damaged pickles
    *(pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError, ImportError),
    *(MemoryError, ArithmeticError, RecursionError),
)


class TorchArchive:
    """The members of one archive; storages are views of the mapped file if stored uncompressed, as torch does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.zip = open_zip(path)
        pickles = [name for name in self.zip.namelist() if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
        if len(pickles) != 1:
            raise EncoderError(f"{path} is a zip file but not a torch archive: there is no data.pkl in it")
        self.stem = pickles[0].removesuffix("data.pkl")
        self.map = np.memmap(path, dtype=np.uint8, mode="r")
        if self.has("byteorder") and self.read("byteorder") != b"little":
            raise EncoderError(f"{path} was saved on a big-endian machine; save it again on a little-endian one")

    def has(self, name: str) -> bool:
        return self.stem + name in self.zip.NameToInfo

    def read(self, name: str) -> bytes:
        try:
            return self.zip.read(self.stem + name)
        except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, OSError, EOFError, RuntimeError) as error:
            raise EncoderError(f"{self.path} is broken: its member {name} cannot be read") from error

    def storage(self, key: str) -> NDArray[np.uint8]:
        member = self.zip.NameToInfo.get(f"{self.stem}data/{key}")
        if member is None or member.compress_type != zipfile.ZIP_STORED:
            return np.frombuffer(self.read(f"data/{key}"), dtype=np.uint8)
        at = member.header_offset  # local header: 30 bytes, name, padding
        start = at + 30 + sum(int(length) for length in self.map[at + 26 : at + 30].view("<u2"))
        return self.map[start : start + member.file_size]


class WeightUnpickler(pickle.Unpickler):
    """Builds tensors as arrays, modules as bare objects, and refuses every other name."""

    def __init__(self, archive: TorchArchive) -> None:
        super().__init__(io.BytesIO(archive.read("data.pkl")))
        self.archive = archive
        self.script_module = type("ScriptModule", (), {})  # only for this file, because a pickle can change a class

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return self.script_module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self.rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self.rebuild_parameter
        if module == "torch.jit._pickle" and name in SCRIPT_LISTS:
            return list
        raise EncoderError(f"{self.archive.path} asks to run {one_line(f'{module}.{name}')} while loading; refused")

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _device, _count = pid
        if kind != "storage" or dtype not in STORAGES.values():
            raise pickle.UnpicklingError("a storage of no known kind")
        data = self.archive.storage(str(key))
        size = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
        return dtype, data[: len(data) // size * size].view("<u2" if dtype == "bfloat16" else dtype)

    def rebuild_tensor(self, storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> NDArray[Any]:
        dtype, data = storage
        shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
        if len(shape) != len(strides) or min((offset, *shape, *strides)) < 0:
            raise pickle.UnpicklingError("a tensor with sizes below zero")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if 0 in shape:
            return np.empty(shape, np.float32 if dtype == "bfloat16" else data.dtype)
        if last >= len(data):
            raise pickle.UnpicklingError("a tensor past the end of its storage")
        steps = [stride * data.itemsize for stride in strides]
        array = as_strided(data[offset:], shape, steps, subok=True, writeable=False)
        return widen_bfloat16(array) if dtype == "bfloat16" else array

    def rebuild_parameter(self, tensor: Any, *_: Any) -> Any:
        return tensor


def open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise EncoderError(f"{path} {explain_no_zip(path)}") from error


def explain_no_zip(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(LARGEST_POINTER)
    if pointer := describe_pointer(start):
        return f"is {pointer}"
    if start[:2] == b"PK":
        return "is cut off or broken; fetch it again"
    if start[:1] == b"\x80":  # a bare pickle
        return (
            "is in torch's format from before 1.6; save it again with "
            "torch.save(torch.load(old, weights_only=True), new), in torch 1.6 or later"
        )
    return "is not a torch archive: it is not a zip file"


def read_torch_zip(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a TorchScript module, a state dict or a dict that has one under `state_dict`.

    The arrays are read-only views of the mapped file, with the strides they were saved with. Raises EncoderError for
    a file that names anything except tensors and plain values.
    """
    unpickler = WeightUnpickler(TorchArchive(path))
    try:
        root = unpickler.load()
        if isinstance(root, dict) and isinstance(root.get("state_dict"), dict):
            root = root["state_dict"]
        tensors = dict(flatten(root, unpickler.script_module))
    except BROKEN_PICKLE as error:
        raise EncoderError(f"{path} is broken: its data.pkl cannot be read ({one_line(error)})") from error
    if not tensors:
        raise EncoderError(f"{path} holds no tensors; a state dict, or a dict with one under state_dict, is wanted")
    return strip_wrappers(tensors)


def flatten(node: Any, script_module: type) -> list[tuple[str, NDArray[Any]]]:
    """Return the tensors of a dict, or of a module tree under dotted names."""
    if not isinstance(node, script_module):
        items = node.items() if isinstance(node, dict) else ()
        return [(name, value) for name, value in items if isinstance(name, str) and isinstance(value, np.ndarray)]
    found: list[tuple[str, NDArray[Any]]] = []
    for name, value in vars(node).items():
        if isinstance(value, np.ndarray):
            found.append((name, value))
        elif isinstance(value, script_module):
            found += [(f"{name}.{inner}", array) for inner, array in flatten(value, script_module)]
    return found


def read_weights(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a torch archive, a safetensors file, or a folder with model weights of either kind."""
    if path.is_dir() and not (path / "model.safetensors").exists() and not (path / INDEX_NAME).exists():
        index = path / "pytorch_model.bin.index.json"
        whole = path / "pytorch_model.bin"
        if not index.exists() and not whole.exists():
            raise EncoderError(f"{path} has no weights, neither model.safetensors nor {whole.name}; fetch them too")
        files = list_shards(index) if index.exists() else [whole]
        return {name: array for file in files for name, array in read_torch_zip(file).items()}
    if path.is_dir() or looks_like_safetensors(path):
        return strip_wrappers(read_safetensors(path))
    return read_torch_zip(path)


def read_openai(path: Path) -> Checkpoint:
    """Read a checkpoint with OpenAI's names; its shapes determine the architecture, and QuickGELU is assumed."""
    tensors = {name: array for name, array in read_weights(path).items() if is_weight(name)}
    try:
        config = infer_config(tensors)
    except (KeyError, ValueError) as error:
        raise EncoderError(f"{path} is not CLIP in OpenAI's layout: {error} is missing or of another shape") from error
    size = config["vision_cfg"]["image_size"]
    return Checkpoint(str(path), "clip", config, tensors, Preprocess(size, MEAN, STD))


def is_weight(name: str) -> bool:
    return name not in NOT_WEIGHTS and not name.endswith("attn_mask")  # the mask of a scripted text tower


def infer_config(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return open_clip's model_cfg from the shapes alone."""
    context_length, width = tensors["positional_embedding"].shape
    text = {
        "context_length": context_length,
        "vocab_size": tensors["token_embedding.weight"].shape[0],
        "width": width,
        "heads": max(1, width // HEAD_WIDTH),
        "layers": count_blocks(tensors, "transformer.resblocks."),
    }
    vision = infer_vit(tensors) if "visual.proj" in tensors else infer_resnet(tensors)
    embed_dim = tensors["text_projection"].shape[1]
    return {"embed_dim": embed_dim, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}


def infer_vit(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    width, _, _, patch_size = tensors["visual.conv1.weight"].shape
    grid = math.isqrt(tensors["visual.positional_embedding"].shape[0] - 1)  # without the class token
    layers = count_blocks(tensors, "visual.transformer.resblocks.")
    return {"width": width, "layers": layers, "patch_size": patch_size, "image_size": grid * patch_size}


def infer_resnet(tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    grid = math.isqrt(tensors["visual.attnpool.positional_embedding"].shape[0] - 1)
    layers = [count_blocks(tensors, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)]
    width = tensors["visual.layer1.0.conv1.weight"].shape[0]
    return {"width": width, "layers": layers, "image_size": grid * 32}  # its convolutions halve the size five times
