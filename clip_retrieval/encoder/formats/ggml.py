"""clip.cpp's files of 2023 (ggml-model-f16.bin, before GGUF): read as the equivalent GGUF file.

Little-endian: the magic, seven i32 for each tower, whether GELU is used, the file's type, the vocabulary (count, and
length and bytes of each token), then the tensors until the end: dimensions, length of the name, type, shape (fastest
dimension first), transformers' name, bytes without alignment.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clip_retrieval.encoder.formats.gguf_blocks import GgufTensor, count_bytes, fits
from clip_retrieval.encoder.formats.gguf_file import MOST_DIMENSIONS, TYPE_OF, Cursor, GgufFile, Value
from clip_retrieval.encoder.formats.openai_pt import MEAN, STD
from clip_retrieval.errors import EncoderError

MAGIC = b"lmgg"
TEXT_SIZES = (
    "vocab_size context_length embedding_length feed_forward_length projection_dim attention.head_count block_count"
).split()
IMAGE_SIZES = ["image_size", "patch_size", *TEXT_SIZES[2:]]
EPSILON = 1e-5  # LayerNorm's epsilon, which these files do not store
RENAMED = (  # parts of transformers' names, and their names in clip.cpp's GGUF, in this order
    ("text_model.", "t."), ("vision_model.", "v."), ("encoder.layers", "blk"), ("embeddings.", ""),
    ("self_attn.", "attn_"), ("_proj.", "."), ("layer_norm", "ln"), ("layernorm", "ln"), ("layrnorm", "ln"),
    ("mlp.fc1", "ffn_down"), ("mlp.fc2", "ffn_up"), ("embedding", "embd"), ("final_ln", "post_ln"),
)  # fmt: skip


def read_ggml_file(path: Path) -> GgufFile:
    """Read the header and find the tensors; raises EncoderError if it is not a whole file."""
    cursor = Cursor(path)
    if bytes(cursor.take(4)) != MAGIC:
        raise EncoderError(f"{path} is not a ggml file of clip.cpp's: its magic number differs")
    keys = {
        "general.architecture": Value("string", "clip"),
        "clip.has_text_encoder": Value("bool", value=True),
        "clip.has_vision_encoder": Value("bool", value=True),
        "clip.vision.image_mean": Value("f32", list(MEAN)),
        "clip.vision.image_std": Value("f32", list(STD)),
    }
    for tower, sizes in (("text", TEXT_SIZES), ("vision", IMAGE_SIZES)):
        keys |= {f"clip.{tower}.{name}": Value("u32", count(cursor, name)) for name in sizes}
        keys[f"clip.{tower}.attention.layer_norm_epsilon"] = Value("f32", EPSILON)
    keys["clip.use_gelu"] = Value("bool", value=cursor.number("i32") == 1)
    cursor.number("i32")  # the file's type; each tensor has its own
    for _ in range(count(cursor, "vocabulary")):
        cursor.take(count(cursor, "token"))
    tensors = dict(read_tensor(cursor) for _ in rest(cursor))
    return GgufFile(path, 0, keys, tensors)


def rest(cursor: Cursor) -> Iterator[None]:
    while cursor.position < len(cursor.view):
        yield


def count(cursor: Cursor, what: str) -> int:
    found = int(cursor.number("i32"))
    if found < 0:
        raise EncoderError(f"{cursor.path} is broken: its {what} is {found}")
    return found


def read_tensor(cursor: Cursor) -> tuple[str, GgufTensor]:
    dimensions, length, code = (count(cursor, what) for what in ("dimensions", "name", "type"))
    if dimensions > MOST_DIMENSIONS or code not in TYPE_OF:
        raise EncoderError(f"{cursor.path} is broken: a tensor has {dimensions} dimensions and the type {code}")
    shape = tuple(reversed([count(cursor, "shape") for _ in range(dimensions)]))
    name, block_type = rename(str(cursor.take(length), "utf-8", "replace")), TYPE_OF[code]
    if not fits(shape, block_type):
        raise EncoderError(f"{cursor.path} is broken: {name} is {block_type}, its rows {shape} are not whole blocks")
    start = cursor.position
    cursor.take(count_bytes(shape, block_type))
    data = cursor.map[start : cursor.position]
    return name, GgufTensor(block_type, shape, lambda: data)


def rename(name: str) -> str:
    """Return clip.cpp's name in GGUF files; the two projections keep transformers' names there."""
    if name.startswith(("text_projection", "visual_projection")):
        return name
    for theirs, ours in RENAMED:
        name = name.replace(theirs, ours)
    return name
