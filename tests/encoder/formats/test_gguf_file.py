"""The container: files are read back as written, and broken ones refused in one sentence."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf.gguf_reader import GGUFReader
from numpy.typing import NDArray

from clip_retrieval.encoder.formats.gguf_blocks import GgufTensor, quantize
from clip_retrieval.encoder.formats.gguf_file import Value, read_gguf_file, write_gguf_file
from clip_retrieval.errors import EncoderError, StorageError

ROWS: NDArray[np.float32] = np.arange(96, dtype=np.float32).reshape(3, 32)
KEYS = {
    "general.architecture": Value("string", "clip"),
    "yes": Value("bool", True),
    "byte": Value("u8", 255),
    "negative": Value("i64", -5),
    "small": Value("f32", 1e-05),
    "double": Value("f64", 1 / 3),
    "numbers": Value("f32", [0.1, -1.5]),
    "words": Value("string", ["a</w>", "Ġ", ""]),
    "flags": Value("bool", [True, False]),
    "none": Value("u32", []),
}
# A file of one key and one tensor of three float32 numbers, written out by hand.
GOLDEN = b"".join(
    [
        *(b"GGUF", struct.pack("<IQQ", 3, 1, 1)),
        *(struct.pack("<Q", 1), b"k", struct.pack("<I", 4), struct.pack("<I", 7)),
        *(struct.pack("<Q", 1), b"t", struct.pack("<I", 2), struct.pack("<QQ", 3, 1), struct.pack("<IQ", 0, 0)),
    ]
)
GOLDEN += bytes(-len(GOLDEN) % 32) + struct.pack("<3f", 1, 2, 3) + bytes(20)


def tensor_of(array: NDArray[np.float32]) -> GgufTensor:
    return GgufTensor("f32", array.shape, lambda: quantize(array, "f32"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tensors = {"one": tensor_of(ROWS[:, :3]), "two": GgufTensor("q8_0", (3, 32), lambda: quantize(ROWS, "q8_0"))}
    write_gguf_file(tmp_path / "file.gguf", KEYS, tensors)
    return tmp_path / "file.gguf"


def refuse(path: Path, message: str) -> None:
    with pytest.raises(EncoderError, match=message) as caught:
        read_gguf_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_has_the_bytes_of_the_definition(tmp_path: Path) -> None:
    array = np.array([[1, 2, 3]], np.float32)
    write_gguf_file(tmp_path / "ours.gguf", {"k": Value("u32", 7)}, {"t": tensor_of(array)})
    assert (tmp_path / "ours.gguf").read_bytes() == GOLDEN


def test_keys_and_tensors_come_back_as_views_of_the_mapped_file(path: Path) -> None:
    file = read_gguf_file(path)
    assert file.version == 3
    assert file.key_values == KEYS
    assert list(file.tensors) == ["one", "two"]
    np.testing.assert_array_equal(file.tensors["one"].array(), ROWS[:, :3])
    assert file.tensors["two"].load().tobytes() == quantize(ROWS, "q8_0").tobytes()
    view = file.tensors["one"].load()
    assert isinstance(view, np.memmap)
    assert not view.flags.writeable


def test_version_2_and_other_alignments_are_read(tmp_path: Path) -> None:
    keys = {"general.alignment": Value("u32", 128)}
    tensors = {"one": tensor_of(ROWS[:, :3]), "two": tensor_of(ROWS)}
    write_gguf_file(tmp_path / "file.gguf", keys, tensors, 2)
    file = read_gguf_file(tmp_path / "file.gguf")
    assert file.version == 2
    assert (tmp_path / "file.gguf").stat().st_size % 128 == 0
    np.testing.assert_array_equal(file.tensors["two"].array(), ROWS)


def test_rewriting_a_file_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    file = read_gguf_file(path)
    write_gguf_file(tmp_path / "again.gguf", file.key_values, file.tensors)
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()


def test_a_file_may_be_rewritten_in_place(path: Path) -> None:
    before, file = path.read_bytes(), read_gguf_file(path)
    write_gguf_file(path, file.key_values, file.tensors)
    assert path.read_bytes() == before


def test_gguf_py_reads_our_files(path: Path) -> None:
    reader = GGUFReader(path)
    assert [tensor.name for tensor in reader.tensors] == ["one", "two"]
    np.testing.assert_array_equal(np.asarray(reader.tensors[0].data), ROWS[:, :3])
    assert [field for field in reader.fields if not field.startswith("GGUF.")] == list(KEYS)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    end = GOLDEN.index(struct.pack("<3f", 1, 2, 3)) + 12
    for length in range(4, end):
        (tmp_path / "cut.gguf").write_bytes(GOLDEN[:length])
        refuse(tmp_path / "cut.gguf", "is cut off")
    (tmp_path / "cut.gguf").write_bytes(GOLDEN[:end])
    assert read_gguf_file(tmp_path / "cut.gguf").tensors["t"].array().tolist() == [[1, 2, 3]]


def altered(at: bytes, new: bytes) -> bytes:
    start = GOLDEN.index(at)
    return GOLDEN[:start] + new + GOLDEN[start + len(new) :]


def altered_type(new: bytes) -> bytes:
    """Change the tensor's type and what follows it."""
    shape = struct.pack("<QQ", 3, 1)
    return altered(shape + struct.pack("<IQ", 0, 0), shape + new)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"GGML" + GOLDEN[4:], "is not a GGUF file"),
        (altered(struct.pack("<I", 3), struct.pack("<I", 1)), "is of GGUF version 1; versions 2 and 3"),
        (altered(struct.pack("<I", 3), struct.pack(">I", 3)), "is of GGUF version 50331648"),
        (altered_type(struct.pack("<I", 12)), "holds t in ggml's type 12; known are f32"),
        (altered_type(struct.pack("<I", 2)), "its rows .* are not whole blocks"),
        (altered_type(struct.pack("<IQ", 0, 2**63)), "is cut off: t ends past the end"),
        (altered(struct.pack("<QQ", 3, 1), struct.pack("<Q", 2**63)), "is cut off: t ends past the end"),
        (altered(b"t" + struct.pack("<I", 2), b"t" + struct.pack("<I", 9)), "t has 9 dimensions"),
        (altered(b"k" + struct.pack("<I", 4), b"k" + struct.pack("<I", 99)), "k is of the unknown kind 99"),
        (altered(struct.pack("<IQQ", 3, 1, 1), struct.pack("<IQQ", 3, 1, 2**63)), "is "),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "broken.gguf").write_bytes(content)
    refuse(tmp_path / "broken.gguf", message)


@pytest.mark.parametrize("kind", ["u32", "string"])
def test_a_list_longer_than_the_file_is_refused(tmp_path: Path, kind: str) -> None:
    write_gguf_file(tmp_path / "list.gguf", {"k": Value(kind, [])}, {})
    content = (tmp_path / "list.gguf").read_bytes()[:49]
    (tmp_path / "list.gguf").write_bytes(content[:-8] + struct.pack("<Q", 2**62) + bytes(64))
    refuse(tmp_path / "list.gguf", "is cut off within its header")


@pytest.mark.parametrize("alignment", [Value("u32", 0), Value("string", "wide")])
def test_an_alignment_that_is_none_is_refused(path: Path, alignment: Value) -> None:
    write_gguf_file(path, {"general.alignment": Value("u32", 32)}, {})
    content = path.read_bytes()
    packed = struct.pack("<II", 4, 0) if alignment.kind == "u32" else struct.pack("<IQ", 8, 4) + b"wide"
    start = content.index(b"general.alignment") + len("general.alignment")
    path.write_bytes(content[:start] + packed + bytes(32))
    refuse(path, "is broken: its alignment is")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path: Path) -> None:
    before = path.read_bytes()

    def fail() -> NDArray[np.uint8]:
        raise EncoderError("no such weights")

    with pytest.raises(EncoderError, match="no such weights"):
        write_gguf_file(path, KEYS, {"one": replace(tensor_of(ROWS), load=fail)})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_place_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*none/file\.gguf: No such file"):
        write_gguf_file(tmp_path / "none" / "file.gguf", {}, {})
