"""safetensors files and sharded folders to named arrays: memory-mapped; only bfloat16 is copied.

The format: eight bytes (little-endian length of the header), a JSON header that gives each tensor its dtype, shape and
byte range, and the raw bytes. A folder may hold shards, listed in model.safetensors.index.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from clip_retrieval.errors import EncoderError, one_line
from clip_retrieval.git_lfs import LARGEST_POINTER, describe_pointer
from clip_retrieval.json_files import check_shape, parse_json, read_json

Tensor = TypeVar("Tensor")

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
WRAPPERS = ("module.", "_orig_mod.")  # prefixes of distributed training and of torch.compile


class DamagedError(EncoderError):
    """A file is not whole, so no other reader can read it either."""


@dataclass(frozen=True)
class Shards:
    """model.safetensors.index.json: the file of each tensor."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class Entry:
    """What a header says about one tensor."""

    dtype: str
    shape: list[Annotated[int, Meta(ge=0)]]
    data_offsets: tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)]]


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
    """Return the files that an index names, in order; they are next to it."""
    names = sorted(set(read_json(index, Shards, EncoderError).weight_map.values()))
    for name in names:
        if Path(name).name != name or not (index.parent / name).exists():
            raise EncoderError(
                f"{index} names the shard {one_line(name)}, which is not in {index.parent}; fetch the folder again"
            )
    return [index.parent / name for name in names]


def read_one(path: Path) -> dict[str, NDArray[Any]]:
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise EncoderError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    header, start = read_header(path)
    return {name: view_tensor(path, name, entry, data[start:]) for name, entry in header.items()}


def check_whole(path: Path) -> None:
    """Raise DamagedError if a file has no header, or ends before its last tensor. Reads only the header."""
    try:
        header, start = read_header(path)
    except EncoderError as error:
        raise DamagedError(str(error)) from error
    size = path.stat().st_size - start
    for name, entry in header.items():
        said = check_shape(entry, Entry, f"{path}: the header's entry for {one_line(name)}", DamagedError)
        check_end(path, name, said, size)


def check_end(path: Path, name: str, entry: Entry, size: int) -> None:
    if entry.data_offsets[1] > size:
        raise DamagedError(f"{path} is cut off: {one_line(name)} ends past the end of the file; fetch it again")


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header without its metadata, and where the tensors' bytes begin."""
    with path.open("rb") as file:
        start = file.read(LARGEST_POINTER)
        length = int.from_bytes(start[:8], "little")
        if not 2 <= length <= min(LARGEST_HEADER, path.stat().st_size - 8):
            what = describe_pointer(start) or "not a safetensors file, or is cut off within its header"
            raise EncoderError(f"{path} is {what}")
        file.seek(8)
        header = parse_json(file.read(length), dict[str, Any], f"{path}: the header", EncoderError)
    header.pop("__metadata__", None)
    return header, 8 + length


def view_tensor(path: Path, name: str, entry: Any, data: NDArray[np.uint8]) -> NDArray[Any]:
    name = one_line(name)
    said = check_shape(entry, Entry, f"{path}: the header's entry for {name}", EncoderError)
    dtype, shape, (start, stop) = said.dtype, tuple(said.shape), said.data_offsets
    if dtype not in DTYPES:
        raise EncoderError(
            f"{path} holds {name} as {one_line(dtype)}, which is not supported; save it as F32, F16 or BF16"
        )
    check_end(path, name, said, len(data))
    wanted = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if stop - start != wanted:
        raise EncoderError(f"{path} is broken: {name} has {stop - start} bytes, its shape {shape} needs {wanted}")
    array = data[start:stop].view(DTYPES[dtype]).reshape(shape)
    return widen_bfloat16(array) if dtype == "BF16" else array


def widen_bfloat16(halves: NDArray[Any]) -> NDArray[np.float32]:
    """Return float32 for bfloat16 given as uint16: it is the upper half of the same number."""
    wide = np.array(halves, dtype=np.uint32)
    np.left_shift(wide, np.uint32(16), out=wide)  # in place: NumPy 1 makes int64 of a shifted array without axes
    return wide.view(np.float32)


def looks_like_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror or error}") from error


def strip_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the prefixes that distributed training and torch.compile put before every name."""
    found = dict(tensors)
    while prefix := next((prefix for prefix in WRAPPERS if found and all(n.startswith(prefix) for n in found)), None):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def count_blocks(tensors: Mapping[str, NDArray[Any]], prefix: str) -> int:
    """Count the numbered blocks below a prefix such as `transformer.resblocks.`."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})
