"""Clippie's .weights files, to a Checkpoint and from one.

A file is the arrays, float32, each at a multiple of 64 KiB; then a pickle of named tuples in which an array is a
persistent id (offset, shape, dtype); then the pickle's length as u32. A pickle may only name these classes, and gets
our stand-ins for them. The file has no logit scale, and always means QuickGELU and OpenAI's preprocessing.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.formats.checkpoint import Checkpoint, check_attention
from clip_retrieval.encoder.formats.gguf_file import open_whole
from clip_retrieval.encoder.formats.openai_pt import BROKEN_PICKLE, MEAN, STD, infer_config
from clip_retrieval.encoder.formats.safetensors import count_blocks
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import EncoderError, one_line

MODULE, OFFSET_CLASS = "clippie.model", ("weightie.serialiser", "_NDArrayOffset")
ALIGNMENT = 65536
LARGEST_PICKLE = 1 << 24  # bytes; a model of 48 blocks has 100 KB
TEXT, IMAGE = "transformer.resblocks.", "visual.transformer.resblocks."
USUAL_EPSILON = 1e-5
NORM = ("weights", "biases", "eps")
BLOCK = (  # the fields of a block in order; a name of ours, or None for what is not a tensor
    "ln_1", None, "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias", None,
    "ln_2", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip
TEXT_TOWER = ("token_embedding.weight", "positional_embedding", TEXT, "ln_final", "text_projection")
IMAGE_TOWER = (
    "visual.conv1.weight", "visual.class_embedding", "visual.positional_embedding", "visual.ln_pre", IMAGE,
    "visual.ln_post", "visual.proj",
)  # fmt: skip
CLASSES = {  # Clippie's named tuples, and how many fields each has
    "Weights": 2, "TextEncoderWeights": len(TEXT_TOWER), "ImageEncoderWeights": len(IMAGE_TOWER),
    "ResidualAttentionBlockWeights": len(BLOCK), "LayerNormalisationWeights": len(NORM),
}  # fmt: skip
OWN_NORMS = ("ln_1", "ln_2", "ln_final", "visual.ln_pre", "visual.ln_post")


def find_pickle(path: Path) -> bytes | None:
    """Return the pickle at the end of a .weights file; None if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - 4))
            length = int.from_bytes(file.read(4), "little")
            if not 0 < length <= min(LARGEST_PICKLE, size - 4):
                return None
            file.seek(size - 4 - length)
            found = file.read(length)
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror or error}") from error
    return found if found[:1] in (b"\x80", b"c") and MODULE.encode() in found else None


class Fields(tuple[Any, ...]):
    """A named tuple of Clippie's, by position; each name has its own class."""

    name = ""

    def __new__(cls, *values: Any) -> Fields:
        return super().__new__(cls, values)


class Dtype:
    """numpy.dtype in the pickle: only its text is needed."""

    def __init__(self, text: str, *_: Any) -> None:
        self.text = text.lstrip("<=|")

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or state[1] not in ("<", "|", "="):
            raise pickle.UnpicklingError("an array that is not little-endian")


class WeightsUnpickler(pickle.Unpickler):
    def __init__(self, path: Path, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.path = path
        self.map = np.memmap(path, dtype=np.uint8, mode="r")

    def find_class(self, module: str, name: str) -> Any:
        if module == MODULE and name in CLASSES:
            return type("Fields", (Fields,), {"name": name})
        if (module, name) == OFFSET_CLASS:
            return type("Fields", (Fields,), {"name": name})
        if (module, name) == ("numpy", "dtype"):
            return Dtype
        raise EncoderError(f"{self.path} asks to run {one_line(f'{module}.{name}')} while loading; refused")

    def persistent_load(self, pid: Any) -> NDArray[Any]:
        offset, shape, dtype = pid
        if dtype.text not in ("f4", "f8", "f2"):
            raise pickle.UnpicklingError(f"arrays of {dtype.text}")
        kind, shape = np.dtype(f"<{dtype.text}"), tuple(map(int, shape))
        stop = int(offset) + int(np.prod(shape, dtype=object)) * kind.itemsize
        if min((offset, *shape)) < 0 or stop > len(self.map):
            raise pickle.UnpicklingError("an array past the end of the file")
        return self.map[offset:stop].view(kind).reshape(shape)


def read_clippie(path: Path) -> Checkpoint:
    """Read a file; the tensors are views of it, transposed to open_clip's layout."""
    data = find_pickle(path)
    if data is None:
        raise EncoderError(f"{path} is not a .weights file of Clippie's, or is cut off; fetch it again")
    try:
        root = expect(WeightsUnpickler(path, data).load(), "Weights")
        tensors: dict[str, NDArray[Any]] = {}
        settings: dict[str, set[Any]] = {"eps": set(), TEXT: set(), IMAGE: set()}
        read_tower(expect(root[0], "TextEncoderWeights"), TEXT_TOWER, tensors, settings)
        read_tower(expect(root[1], "ImageEncoderWeights"), IMAGE_TOWER, tensors, settings)
        return make_checkpoint(path, tensors, settings)
    except BROKEN_PICKLE as error:
        raise EncoderError(f"{path} is broken: its description cannot be read ({one_line(error)})") from error


def make_checkpoint(path: Path, tensors: Mapping[str, NDArray[Any]], settings: Mapping[str, set[Any]]) -> Checkpoint:
    config = infer_config(tensors)
    (heads,), (image_heads,), (epsilon,) = settings[TEXT], settings[IMAGE], settings["eps"]
    if min(heads, image_heads) < 1:
        raise ValueError("blocks without heads of attention")
    config["text_cfg"]["heads"] = heads
    config["vision_cfg"]["head_width"] = config["vision_cfg"]["width"] // image_heads
    if epsilon != USUAL_EPSILON:
        config["text_cfg"]["norm_kwargs"] = config["vision_cfg"]["norm_kwargs"] = {"eps": epsilon}
    return Checkpoint(str(path), "clip", config, tensors, Preprocess(config["vision_cfg"]["image_size"], MEAN, STD))


def expect(value: Any, name: str) -> Fields:
    if not isinstance(value, Fields) or value.name != name or len(value) != CLASSES[name]:
        raise pickle.UnpicklingError(f"no {name} where one belongs")
    return value


def read_tower(fields: Fields, names: tuple[str, ...], out: dict[str, Any], settings: Mapping[str, set[Any]]) -> None:
    for name, value in zip(names, fields, strict=True):
        if name in (TEXT, IMAGE):
            for number, block in enumerate(value):
                parts = expect(block, "ResidualAttentionBlockWeights")
                settings[name].add(int(parts[1]))
                if bool(parts[6]) != (name == TEXT):
                    raise pickle.UnpicklingError("an attention mask where none belongs, or none where one does")
                for part, values in zip(BLOCK, parts, strict=True):
                    if part is not None:
                        read_part(f"{name}{number}.{part}", values, out, settings)
        else:
            read_part(name, value, out, settings)


def read_part(name: str, value: Any, out: dict[str, Any], settings: Mapping[str, set[Any]]) -> None:
    if name.endswith(OWN_NORMS):
        out[f"{name}.weight"], out[f"{name}.bias"], epsilon = expect(value, "LayerNormalisationWeights")
        settings["eps"].add(float(epsilon))
        return
    if not isinstance(value, np.ndarray):
        raise pickle.UnpicklingError(f"no array for {name}")
    out[name] = turn(name, value, to_clippie=False)


def turn(name: str, array: NDArray[Any], *, to_clippie: bool) -> NDArray[Any]:
    """Return a tensor in the other project's layout: weights of blocks are [in, out] there, kernels [n, h, w, 3]."""
    if name == "visual.conv1.weight":
        return array.transpose(0, 2, 3, 1) if to_clippie else array.transpose(0, 3, 1, 2)
    return array.T if ".resblocks." in name and array.ndim == 2 else array


def write_clippie(checkpoint: Checkpoint, path: Path) -> None:
    """Write both towers, so that Clippie loads them; raises EncoderError for what Clippie would compute differently."""
    check_sayable(checkpoint)
    with open_whole(path) as file:
        try:
            description = b"\x80\x04" + Writer(file, checkpoint).weights() + b"."
        except KeyError as error:
            raise EncoderError(f"{checkpoint.source} does not hold {error}, which Clippie's .weights need") from error
        file.write(description + struct.pack("<I", len(description)))


def check_sayable(checkpoint: Checkpoint) -> None:
    check_attention(checkpoint, "Clippie's .weights")
    config, preprocess = checkpoint.model_config, checkpoint.preprocess
    odd = None
    if not (checkpoint.has_image and checkpoint.has_text):
        odd = "one encoder only"
    elif checkpoint.family != "clip" or not config.get("quick_gelu") or "visual.proj" not in checkpoint.tensors:
        odd = "another architecture than a vision transformer with QuickGELU"
    elif config["text_cfg"].get("pool_type", "argmax") != "argmax":
        odd = "another pooling of texts"
    elif (preprocess.mean, preprocess.std, preprocess.resize_mode) != (MEAN, STD, "shortest"):
        odd = "another preprocessing than OpenAI's"
    if odd is not None:
        raise EncoderError(f"{checkpoint.source} has {odd}, for which Clippie's .weights have no place")


class Writer:
    """Writes arrays into the file, and makes the pickle that describes them, opcode by opcode, without Clippie."""

    def __init__(self, file: IO[bytes], checkpoint: Checkpoint) -> None:
        self.file, self.tensors, self.config = file, checkpoint.tensors, checkpoint.model_config

    def weights(self) -> bytes:
        text = self.named("TextEncoderWeights", *(self.part(name) for name in TEXT_TOWER))
        image = self.named("ImageEncoderWeights", *(self.part(name) for name in IMAGE_TOWER))
        return self.named("Weights", text, image)

    def part(self, name: str) -> bytes:
        if name in (TEXT, IMAGE):
            blocks = (self.block(name, i) for i in range(count_blocks(self.tensors, name)))
            return b"](" + b"".join(blocks) + b"e"
        if name.endswith(OWN_NORMS):
            tower = self.config["vision_cfg" if name.startswith("visual.") else "text_cfg"]
            epsilon = (tower.get("norm_kwargs") or {}).get("eps", USUAL_EPSILON)
            arrays = (self.array(f"{name}.{kind}") for kind in ("weight", "bias"))
            return self.named("LayerNormalisationWeights", *arrays, b"G" + struct.pack(">d", epsilon))
        return self.array(name)

    def block(self, tower: str, number: int) -> bytes:
        text, vision = self.config["text_cfg"], self.config["vision_cfg"]
        heads = text.get("heads", 8) if tower == TEXT else vision["width"] // vision.get("head_width", 64)
        others = iter((number_code(heads), b"\x88" if tower == TEXT else b"\x89"))
        parts = (next(others) if part is None else self.part(f"{tower}{number}.{part}") for part in BLOCK)
        return self.named("ResidualAttentionBlockWeights", *parts)

    def array(self, name: str) -> bytes:
        array = np.ascontiguousarray(turn(name, self.tensors[name], to_clippie=True), dtype="<f4")
        self.file.write(bytes(-self.file.tell() % ALIGNMENT))
        offset = number_code(self.file.tell())
        self.file.write(array.data)
        shape = b"(" + b"".join(map(number_code, array.shape)) + b"t"
        dtype = b"cnumpy\ndtype\n(V<f4\ntR"
        return make(OFFSET_CLASS, offset, shape, dtype) + b"Q"

    def named(self, name: str, *fields: bytes) -> bytes:
        return make((MODULE, name), *fields)


def make(class_name: tuple[str, str], *fields: bytes) -> bytes:
    """Return the opcodes that call a class's __new__ with these fields."""
    return f"c{class_name[0]}\n{class_name[1]}\n(".encode() + b"".join(fields) + b"t\x81"


def number_code(number: int) -> bytes:
    return f"I{number}\n".encode()
