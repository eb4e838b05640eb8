"""The container GGUF: typed key-values, and tensors that are views of the mapped file. Knows nothing of CLIP.

Little-endian: the magic GGUF, u32 version, u64 counts of tensors and of key-values, the key-values (name, u32 kind,
value), the tensors' names, shapes (fastest dimension first), types and offsets, and from the next multiple of the
alignment on their bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from clip_retrieval.encoder.formats.gguf_blocks import (
    CODES,
    Bytes,
    GgufTensor,
    Quantized,
    count_bytes,
    fits,
    is_blocked,
    pack_later,
)
from clip_retrieval.errors import EncoderError, StorageError

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # identical in little-endian files
QUANTIZATION_VERSION, CLIP_CPP_VERSION = 2, 2  # versions of the block types, and of clip.cpp's container
ALIGNMENT_KEY = "general.alignment"
ALIGNMENT = 32  # bytes; default of the key
MOST_DIMENSIONS = 4
KINDS = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "u64": 10, "i64": 11, "f64": 12}
FORMATS = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f"}
FORMATS |= {"u64": "Q", "i64": "q", "f64": "d", "bool": "?"}
KINDS |= {"bool": 7, "string": 8}
LIST_CODE = 9
KIND_OF = {code: kind for kind, code in KINDS.items()}
TYPE_OF = {code: block_type for block_type, code in CODES.items()}


@dataclass(frozen=True)
class Value:
    """A key's value or list of values, all of `kind`; f32 is the shortest decimal, 1e-05 not 9.99999974e-06."""

    kind: str
    value: Any


@dataclass(frozen=True)
class GgufFile:
    path: Path
    version: int
    key_values: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]  # their bytes are read-only views of the mapped file

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key; raises EncoderError if the key is missing and there is no default."""
        if key in self.key_values:
            return self.key_values[key].value
        if default is None:
            raise EncoderError(f"{self.path} does not say {key}; convert the model again")
        return default


class Cursor:
    """The header's bytes, read from front to back."""

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0
        try:
            self.map = np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise EncoderError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        self.view = self.map.data

    def take(self, length: int) -> memoryview:
        start, self.position = self.position, self.position + length
        if self.position > len(self.view):
            raise EncoderError(f"{self.path} is cut off within its header; fetch it again")
        return self.view[start : self.position]

    def number(self, kind: str) -> Any:
        form = f"<{FORMATS[kind]}"
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        return str(self.take(int.from_bytes(self.take(8), "little")), "utf-8", "surrogateescape")

    def values(self, kind: str, count: int) -> list[Any]:
        if kind == "string":
            return [self.string() for _ in range(count)]
        form = f"<{min(count, len(self.view))}{FORMATS[kind]}"
        found = struct.unpack(form, self.take(struct.calcsize(form)))
        return [float(str(np.float32(value))) for value in found] if kind == "f32" else list(found)

    def kind(self, key: str) -> str:
        code = self.number("u32")
        if code not in KIND_OF:
            raise EncoderError(f"{self.path} is broken: {key} is of the unknown kind {code}")
        return KIND_OF[code]

    def key_value(self) -> tuple[str, Value]:
        key = self.string()
        if int.from_bytes(self.view[self.position : self.position + 4], "little") != LIST_CODE:
            kind = self.kind(key)
            return key, Value(kind, self.values(kind, 1)[0])
        self.take(4)
        kind, count = self.kind(key), self.number("u64")
        return key, Value(kind, self.values(kind, count))


def read_gguf_file(path: Path) -> GgufFile:
    """Read the header; the tensors' bytes stay in the file. Raises EncoderError if it is not a whole GGUF file."""
    cursor = Cursor(path)
    if bytes(cursor.view[:4]) != MAGIC:
        raise EncoderError(f"{path} is not a GGUF file: it does not begin with GGUF")
    cursor.take(4)
    version = cursor.number("u32")
    if version not in VERSIONS:
        raise EncoderError(f"{path} is of GGUF version {version}; versions 2 and 3 (little-endian) can be read")
    tensor_count, key_count = cursor.number("u64"), cursor.number("u64")
    key_values = dict(cursor.key_value() for _ in range(key_count))
    alignment = key_values.get(ALIGNMENT_KEY, Value("u32", ALIGNMENT)).value
    if not isinstance(alignment, int) or alignment < 1:
        raise EncoderError(f"{path} is broken: its alignment is {alignment}")
    infos = [read_info(cursor) for _ in range(tensor_count)]
    data = cursor.map[cursor.position + -cursor.position % alignment :]
    tensors = {name: view_tensor(path, name, info, data) for name, *info in infos}
    return GgufFile(path, version, key_values, tensors)


def open_gguf(architecture: str, path: Path) -> GgufFile:
    """Read a file that must hold a model of this architecture."""
    file = read_gguf_file(path)
    if file.get("general.architecture") != architecture:
        found = file.get("general.architecture")
        raise EncoderError(f"{path} is a GGUF model of the architecture {found}, not {architecture}")
    return file


def read_info(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Return name, shape, type code and offset of a tensor."""
    name, dimensions = cursor.string(), cursor.number("u32")
    if dimensions > MOST_DIMENSIONS:
        raise EncoderError(f"{cursor.path} is broken: {name} has {dimensions} dimensions")
    shape = tuple(reversed([cursor.number("u64") for _ in range(dimensions)]))
    return name, shape, cursor.number("u32"), cursor.number("u64")


def view_tensor(path: Path, name: str, info: list[Any], data: Bytes) -> GgufTensor:
    shape, code, offset = info
    if code not in TYPE_OF:
        raise EncoderError(f"{path} holds {name} in ggml's type {code}; known are {', '.join(CODES)}")
    block_type = TYPE_OF[code]
    if not fits(shape, block_type):
        raise EncoderError(f"{path} is broken: {name} is {block_type}, but its rows {shape} are not whole blocks")
    stop = offset + count_bytes(shape, block_type)
    if stop > len(data):
        raise EncoderError(f"{path} is cut off: {name} ends past the end of the file; fetch it again")
    view = data[offset:stop]
    return GgufTensor(block_type, shape, lambda: view)


def write_gguf_file(
    path: Path, key_values: Mapping[str, Value], tensors: Mapping[str, GgufTensor], version: int = 3
) -> None:
    """Write a file that is whole or absent; each tensor's bytes are loaded only for as long as they are written."""
    alignment = key_values.get(ALIGNMENT_KEY, Value("u32", ALIGNMENT)).value
    header = [MAGIC, struct.pack("<IQQ", version, len(tensors), len(key_values))]
    header += [pack_string(key) + pack_value(value) for key, value in key_values.items()]
    offset = 0
    for name, tensor in tensors.items():
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        header.append(pack_string(name) + shape + struct.pack("<IQ", CODES[tensor.block_type], offset))
        size = count_bytes(tensor.shape, tensor.block_type)
        offset += size + -size % alignment
    with open_whole(path) as file:
        write_padded(file, b"".join(header), alignment)
        for tensor in tensors.values():
            write_padded(file, tensor.load(), alignment)


def pack_string(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(encoded)) + encoded


def pack_value(value: Value) -> bytes:
    if not isinstance(value.value, list):
        return struct.pack("<I", KINDS[value.kind]) + pack_one(value.kind, value.value)
    head = struct.pack("<IIQ", LIST_CODE, KINDS[value.kind], len(value.value))
    return head + b"".join(pack_one(value.kind, one) for one in value.value)


def pack_one(kind: str, value: Any) -> bytes:
    return pack_string(value) if kind == "string" else struct.pack(f"<{FORMATS[kind]}", value)


def write_padded(file: IO[bytes], data: bytes | Bytes, alignment: int) -> None:
    length = len(data)
    file.write(data if isinstance(data, bytes) else data.data)
    file.write(bytes(-length % alignment))


@contextmanager
def open_whole(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write to; it gets its name only if the block succeeds."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def quantize_matrices(file: GgufFile, path: Path, block_type: Quantized) -> None:
    """Quantize all weight matrices and copy the rest, with the same choice, bytes and container version as clip.cpp."""
    tensors = dict(file.tensors)
    for name, tensor in file.tensors.items():
        if not name.endswith("weight") or len(tensor.shape) != 2:
            continue
        if is_blocked(tensor.block_type):
            raise EncoderError(
                f"{file.path} is quantized already ({tensor.block_type}); start from its f32 or f16 file"
            )
        if not fits(tensor.shape, block_type):
            raise EncoderError(f"{file.path} cannot be quantized: {name} has rows of {tensor.shape[1]}, not of 32s")
        tensors[name] = pack_later(tensor.array, tensor.shape, block_type)
    keys = dict(file.key_values)
    keys["general.quantization_version"] = Value("u32", QUANTIZATION_VERSION)
    keys["general.file_type"] = Value("u32", CODES[block_type])
    write_gguf_file(path, keys, tensors, CLIP_CPP_VERSION)
