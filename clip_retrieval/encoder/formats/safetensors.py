"""safetensors files and sharded folders to named arrays: memory-mapped, nothing copied but bfloat16.

The format: eight bytes (little-endian length of the header), a JSON header that gives each tensor its dtype, shape and
byte range, and the raw bytes. A folder may hold shards, told by model.safetensors.index.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import EncoderError

LARGEST_HEADER = 100_000_000  # bytes; the format's own bound
INDEX_NAME = "model.safetensors.index.json"
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # widened to float32 below
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "<u1",
    "BOOL": "?",
}


def read_safetensors(path: Path) -> Mapping[str, NDArray[Any]]:
    """Return the tensors of a file, or of a folder that holds model.safetensors or its shards.

    The arrays are read-only views of the mapped file; bfloat16 becomes float32, by copy.
    """
    if not path.is_dir():
        return read_one(path)
    if not (path / INDEX_NAME).exists():
        return read_one(path / "model.safetensors")
    return {name: array for shard in list_shards(path / INDEX_NAME) for name, array in read_one(shard).items()}


def list_shards(index: Path) -> list[Path]:
    """Return the files that an index names, in order; they lie beside it."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EncoderError(f"{index} is no index of shards: it must be JSON with a weight_map") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not (index.parent / name).exists():
            raise EncoderError(
                f"{index} names the shard {one_line(name)}, which is not in {index.parent}; fetch the folder again"
            )
    return [index.parent / name for name in names]


def read_one(path: Path) -> dict[str, NDArray[Any]]:
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise EncoderError(f"{path} cannot be read: {error}") from error
    header, start = read_header(path)
    return {name: view_tensor(path, name, entry, data[start:]) for name, entry in header.items()}


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header without its metadata, and where the tensors' bytes begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(LARGEST_HEADER, path.stat().st_size - 8):
            raise EncoderError(f"{path} is no safetensors file, or is cut off within its header")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise EncoderError(f"{path} is no safetensors file: its header is no JSON") from error
    if not isinstance(header, dict):
        raise EncoderError(f"{path} is no safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)
    return header, 8 + length


def view_tensor(path: Path, name: str, entry: Any, data: NDArray[np.uint8]) -> NDArray[Any]:
    name = one_line(name)
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
        start, stop = (int(offset) for offset in entry["data_offsets"])
    except (TypeError, KeyError, ValueError) as error:
        raise EncoderError(f"{path} is broken: the header's entry for {name} is incomplete") from error
    if dtype not in DTYPES:
        raise EncoderError(
            f"{path} holds {name} as {one_line(dtype)}, which is not supported; save it as F32, F16 or BF16"
        )
    if stop > len(data):
        raise EncoderError(f"{path} is cut off: {name} ends past the end of the file; fetch it again")
    wanted = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if min(shape, default=0) < 0 or start < 0 or stop - start != wanted:
        raise EncoderError(f"{path} is broken: {name} has {stop - start} bytes, its shape {shape} needs {wanted}")
    array = data[start:stop].view(DTYPES[dtype]).reshape(shape)
    return widen_bfloat16(array) if dtype == "BF16" else array


def one_line(text: object) -> str:
    """Return what a file says of itself so that it fits into one printable sentence."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text)[:200]).strip()


def widen_bfloat16(halves: NDArray[Any]) -> NDArray[np.float32]:
    """Return float32 for bfloat16 given as uint16: it is the upper half of the same number."""
    return (np.asarray(halves).astype(np.uint32) << 16).view(np.float32)


def looks_like_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error}") from error


def strip_module(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the tensors without the `module.` that distributed training puts before every name."""
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    return {name.removeprefix(prefix): array for name, array in tensors.items()}


def count_blocks(tensors: Mapping[str, NDArray[Any]], prefix: str) -> int:
    """Count the numbered blocks below a prefix such as `transformer.resblocks.`."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})
