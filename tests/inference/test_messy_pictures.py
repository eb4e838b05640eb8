"""Every kind of bad picture, caption and json, loose and in a tar: embedded, or named with its reason."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval import clip_inference

MODEL = "hash:16?size=32"
EMBEDDED = "embedded"


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height))


def encoded(image: Image.Image, kind: str, *, transparency: int | None = None) -> bytes:
    file = io.BytesIO()
    if transparency is None:
        image.save(file, kind)
    else:
        image.save(file, kind, transparency=transparency)
    return file.getvalue()


def flipped(payload: bytes) -> bytes:
    middle = len(payload) // 2
    return payload[:middle] + bytes([payload[middle] ^ 0xFF]) + payload[middle + 1 :]


def png_declaring(width: int, height: int) -> bytes:
    """Return a small PNG whose header promises more pixels than it holds."""

    def block(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", zlib.compress(bytes(999))) + block(b"IEND", b"")
    )


def ico_around(png: bytes) -> bytes:
    """Return an icon of 16 x 16 pixels, by its directory, that holds this PNG."""
    return struct.pack("<3H", 0, 1, 1) + struct.pack("<4B2H2I", 16, 16, 0, 0, 1, 32, len(png), 22) + png


JPEG = encoded(picture(200, 200), "JPEG")
WITH_ALPHA = picture().convert("RGBA")
WITH_ALPHA.putalpha(Image.linear_gradient("L").resize(WITH_ALPHA.size))
GRAY_16 = Image.fromarray(np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40))

PICTURES = {
    "plain.jpg": (JPEG, EMBEDDED),
    "plain.png": (encoded(picture(), "PNG"), EMBEDDED),
    "plain.webp": (encoded(picture(), "WEBP"), EMBEDDED),
    "plain.bmp": (encoded(picture(), "BMP"), EMBEDDED),
    "plain.gif": (encoded(picture(), "GIF"), EMBEDDED),
    "plain.tiff": (encoded(picture(), "TIFF"), EMBEDDED),
    "png_inside.jpg": (encoded(picture(), "PNG"), EMBEDDED),
    "gray.jpg": (encoded(picture().convert("L"), "JPEG"), EMBEDDED),
    "cmyk.jpg": (encoded(picture().convert("CMYK"), "JPEG"), EMBEDDED),
    "palette.png": (encoded(picture().quantize(32), "PNG", transparency=3), EMBEDDED),
    "rgba.png": (encoded(WITH_ALPHA, "PNG"), EMBEDDED),
    "la.png": (encoded(WITH_ALPHA.convert("LA"), "PNG"), EMBEDDED),
    "bilevel.png": (encoded(picture().convert("1"), "PNG"), EMBEDDED),
    "gray16.png": (encoded(GRAY_16, "PNG"), EMBEDDED),
    "dot.png": (encoded(picture(1, 1), "PNG"), EMBEDDED),
    "wide.png": (encoded(picture(4000, 10), "PNG"), EMBEDDED),
    "tall.png": (encoded(picture(10, 4000), "PNG"), EMBEDDED),
    "cut.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "header.jpg": (JPEG[:20], "decode"),
    "nothing.jpg": (b"", "empty"),
    "words.jpg": (b"these are words\n", "decode"),
    "page.png": (b"<!DOCTYPE html><html><body>Not found</body></html>", "decode"),
    "flipped.png": (flipped(encoded(picture(), "PNG")), "decode"),
    "bomb.png": (png_declaring(60000, 60000), "too_large"),
    "bomb.jpg": (png_declaring(60000, 60000), "too_large"),
}

LATIN_1 = "un château".encode("latin-1")
CAPTIONS: dict[str, tuple[bytes, str | None, str | None]] = {  # bytes, caption of the row, reason
    "good": (b"a dog", "a dog", None),
    "crlf": (b"a dog\r\n", "a dog", None),
    "mark": (b"\xef\xbb\xbfa dog", "a dog", None),
    "nul": (b"a \0dog", "a dog", None),
    "unicode": ("犬 🐕 château".encode(), "犬 🐕 château", None),
    "long": (b"dog " * 999, " ".join(["dog"] * 999), None),
    "entities": (b"a &lt;b&gt;dog&lt;/b&gt;", "a &lt;b&gt;dog&lt;/b&gt;", None),
    "latin": (LATIN_1, None, "encoding"),
    "blank": (b"", None, "empty"),
    "spaces": (b" \t\r\n ", None, "empty"),
    "only_mark": (b"\xef\xbb\xbf", None, "empty"),
}

HUGE = 10**29 + 7
METADATA: dict[str, tuple[bytes, dict[str, object] | None]] = {  # None: rejected as json
    "ok": (b'{"name": "ok", "tags": ["a", "b"]}', {"name": "ok", "tags": ["a", "b"]}),
    "int": (b'{"score": 1}', {"score": "1"}),
    "float": (b'{"score": 2.5}', {"score": "2.5"}),
    "text": (b'{"score": "high"}', {"score": "high"}),
    "null": (b'{"score": null}', {"score": None}),
    "nan": (b'{"score": NaN}', {"score": "NaN"}),
    "list_value": (b'{"score": [1, "a"]}', {"score": '[1, "a"]'}),
    "nested": (b'{"exif": {"a": {"b": 3}}}', {"exif.a.b": 3}),
    "flat": (b'{"exif": "none"}', {"exif": "none"}),
    "huge": (json.dumps({"id": HUGE}).encode(), {"id": str(HUGE)}),
    "reserved": (b'{"image_path": "/x", "caption": "no"}', {"json.image_path": "/x", "json.caption": "no"}),
    "list": (b"[1, 2]", None),
    "number": (b"7", None),
    "broken": (b'{"name": ', None),
    "nothing": (b"", None),
    "deep": (b"[" * 99_999, None),
    "latin": (b'{"name": "' + LATIN_1 + b'"}', None),
}

NAMES = (
    "a b.jpg", "v.1.jpg", "v.2.jpg", "LOUD.JPG", "Mixed.JpEg", "日本-é-🐕.jpg", "100%_#x?.jpg", "'q\"uoted'.jpg",
    "-dash.jpg", "e\u0301.jpg", "one/same.jpg", "two/same.jpg", "a/b/c/d/leaf.jpg", "{0..3}.jpg", "[ab]*.jpg",
    "a::b.jpg", "a:b@c.jpg",
)  # fmt: skip


@dataclass
class Form:
    """A way to hand the same files to inference: loose, or as members of a tar."""

    folder: Path
    is_tar: bool
    write_tar: Callable[[Path, Iterable[tuple[str, bytes]]], Path]

    def embed(self, files: dict[str, bytes], *, metadata: bool = False) -> Path:
        output = self.folder / "output"
        if self.is_tar:
            source = self.write_tar(self.folder / "input.tar", files.items())
            clip_inference(
                source, output, "webdataset", clip_model=MODEL, num_prepro_workers=0, enable_metadata=metadata
            )
            return output
        for name, payload in files.items():
            path = self.folder / "input" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(payload)
        clip_inference(self.folder / "input", output, clip_model=MODEL, num_prepro_workers=0, enable_metadata=metadata)
        return output

    def key(self, name: str) -> str:
        """Return what failures/ call the sample of a picture."""
        return name.rpartition(".")[0] if self.is_tar else name

    def path(self, name: str) -> str:
        """Return what metadata/ calls the picture."""
        return name.rpartition(".")[0] if self.is_tar else str(self.folder / "input" / name)


@pytest.fixture(params=["files", "webdataset"])
def form(
    request: pytest.FixtureRequest, tmp_path: Path, write_tar: Callable[[Path, Iterable[tuple[str, bytes]]], Path]
) -> Form:
    return Form(tmp_path, request.param == "webdataset", write_tar)


Read = Callable[[Path, str], pd.DataFrame]
ReadEmbeddings = Callable[[Path, str], NDArray[np.float16]]


def numbered(files: Iterable[tuple[str, bytes]]) -> dict[str, bytes]:
    """Give each file a key of its own: tars group by the text before the first dot."""
    return {f"{number:02d}_{name}": payload for number, (name, payload) in enumerate(files)}


def test_each_picture_is_embedded_or_named_with_its_reason(
    form: Form, read_table: Read, read_embeddings: ReadEmbeddings
) -> None:
    files = numbered((name, payload) for name, (payload, _) in PICTURES.items())
    good = [name for name in files if PICTURES[name[3:]][1] == EMBEDDED]

    output = form.embed(files)

    failures = read_table(output, "failures")
    reasons = dict(zip(failures["key"], failures["reason"], strict=True))
    assert list(read_table(output, "metadata")["image_path"]) == [form.path(name) for name in good]
    assert reasons == {form.key(name): PICTURES[name[3:]][1] for name in files if name not in good}
    assert not failures["row_kept"].any()
    assert set(failures["part"]) == {"image"}
    assert (read_embeddings(output, "img_emb") != 0).any(axis=1).all()


def test_a_bad_picture_with_a_caption_keeps_its_row_as_zeros(
    form: Form, read_table: Read, read_embeddings: ReadEmbeddings
) -> None:
    files = {"0.jpg": JPEG, "0.txt": b"first", "1.jpg": JPEG[:20], "1.txt": b"second"}

    output = form.embed(files)

    failures = read_table(output, "failures")
    assert list(read_table(output, "metadata")["caption"]) == ["first", "second"]
    assert (read_embeddings(output, "img_emb") != 0).any(axis=1).tolist() == [True, False]
    assert (read_embeddings(output, "text_emb") != 0).any(axis=1).tolist() == [True, True]
    assert failures[["key", "reason", "row_kept"]].values.tolist() == [[form.key("1.jpg"), "decode", True]]


def test_a_bomb_inside_an_icon_is_too_large(form: Form, read_table: Read) -> None:
    bomb = ico_around(png_declaring(13_400, 13_400))

    output = form.embed({"0.jpg": JPEG, "1.ico": bomb})

    assert list(read_table(output, "failures")["reason"]) == ["too_large"]


def test_odd_names_are_all_embedded_and_told_apart(
    form: Form, read_table: Read, read_embeddings: ReadEmbeddings
) -> None:
    files = {name: encoded(picture(seed=number), "JPEG") for number, name in enumerate(NAMES)}

    output = form.embed(files)

    paths = list(read_table(output, "metadata")["image_path"])
    assert sorted(paths) == sorted(form.path(name) for name in NAMES)
    assert len({row.tobytes() for row in read_embeddings(output, "img_emb")}) == len(NAMES)
    assert read_table(output, "failures").empty


def test_hidden_and_foreign_files_of_a_folder_are_named(tmp_path: Path, read_table: Read) -> None:
    form = Form(tmp_path, False, lambda path, _: path)
    files = {".hidden.jpg": JPEG, ".cache/x.jpg": JPEG, "README": b"hello", "notes.md": b"# notes", "x.jpg": JPEG}

    output = form.embed(files)

    failures = read_table(output, "failures")
    assert dict(zip(failures["key"], failures["reason"], strict=True)) == {
        ".cache/x.jpg": "hidden", ".hidden.jpg": "hidden", "README": "not_an_image", "notes.md": "not_an_image",
    }  # fmt: skip
    assert list(read_table(output, "metadata")["image_path"]) == [form.path("x.jpg")]


def test_each_caption_is_kept_or_named_and_never_removes_its_picture(
    form: Form, read_table: Read, read_embeddings: ReadEmbeddings
) -> None:
    files = {"00_alone.jpg": JPEG}
    for name, (payload, _, _) in CAPTIONS.items():
        files |= {f"{name}.jpg": JPEG, f"{name}.txt": payload}

    output = form.embed(files)

    table, failures = read_table(output, "metadata"), read_table(output, "failures")
    captions = dict(zip(table["image_path"], table["caption"], strict=True))
    assert captions == {form.path("00_alone.jpg"): None} | {
        form.path(f"{name}.jpg"): caption for name, (_, caption, _) in CAPTIONS.items()
    }
    assert dict(zip(failures["key"], failures["reason"], strict=True)) == {
        form.key(f"{name}.jpg"): reason for name, (_, _, reason) in CAPTIONS.items() if reason
    }
    assert (read_embeddings(output, "img_emb") != 0).any(axis=1).all()
    has_text = (read_embeddings(output, "text_emb") != 0).any(axis=1)
    assert has_text.tolist() == table["caption"].notna().tolist()


def test_a_caption_without_a_picture_is_a_row_and_named(
    form: Form, read_table: Read, read_embeddings: ReadEmbeddings
) -> None:
    files = {"0.jpg": JPEG, "1.txt": b"an orphan"}

    output = form.embed(files)

    table, failures = read_table(output, "metadata"), read_table(output, "failures")
    assert list(table["caption"]) == [None, "an orphan"]
    assert list(table["image_path"]) == [form.path("0.jpg"), None]
    assert failures[["part", "reason", "row_kept"]].values.tolist() == [["image", "no_image", True]]
    assert (read_embeddings(output, "img_emb") != 0).any(axis=1).tolist() == [True, False]


def test_each_json_is_kept_without_loss_or_named(form: Form, read_table: Read) -> None:
    files: dict[str, bytes] = {}
    for name, (payload, _) in METADATA.items():
        files |= {f"{name}.jpg": JPEG, f"{name}.txt": b"a dog", f"{name}.json": payload}

    output = form.embed(files, metadata=True)

    table, failures = read_table(output, "metadata"), read_table(output, "failures")
    rows = dict(zip(table["image_path"], table.to_dict("records"), strict=True))
    for name, (_, fields) in METADATA.items():
        row = rows[form.path(f"{name}.jpg")]
        kept = {field: value.tolist() if isinstance(value, np.ndarray) else value for field, value in row.items()}
        assert {field: kept[field] for field in fields or {}} == (fields or {}), name
        assert row["caption"] == "a dog"
    assert dict(zip(failures["key"], failures["reason"], strict=True)) == {
        form.key(f"{name}.jpg"): "json" for name, (_, fields) in METADATA.items() if fields is None
    }


def test_no_json_is_too_deep_to_go_on(form: Form, read_table: Read) -> None:
    files: dict[str, bytes] = {}
    for depth in range(600, 1100, 20):
        lists, objects = b"[" * depth + b"]" * depth, b'{"a": ' * depth + b"1" + b"}" * depth
        files |= {f"{depth}a.jpg": JPEG, f"{depth}a.json": b'{"a": ' + lists + b"}"}
        files |= {f"{depth}b.jpg": JPEG, f"{depth}b.json": objects}

    output = form.embed(files, metadata=True)

    assert len(read_table(output, "metadata")) == 50
    assert set(read_table(output, "failures")["reason"]) == {"json"}


def test_half_a_surrogate_pair_in_a_json_becomes_a_mark(form: Form, read_table: Read) -> None:
    files = {"0.jpg": JPEG, "0.json": b'{"name": "a\\ud83db", "\\ude00": 1, "list": ["\\ud83d"]}'}

    output = form.embed(files, metadata=True)

    row = read_table(output, "metadata").iloc[0]
    assert row["name"] == "a\ufffdb"
    assert row["\ufffd"] == 1
    assert list(row["list"]) == ["\ufffd"]


def test_a_name_that_is_no_unicode_is_embedded(tmp_path: Path, read_table: Read) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/a\xffb.jpg")).write_bytes(JPEG)

    clip_inference(folder, tmp_path / "output", clip_model=MODEL, num_prepro_workers=0)

    assert list(read_table(tmp_path / "output", "metadata")["image_path"]) == [f"{folder}/a\ufffdb.jpg"]


@pytest.mark.parametrize(
    ("payload", "values"),
    [
        (b'{"a": {"b": 1}, "a.b": 2}', [1, 2]),
        (b'{"caption": "x", "json.caption": "y"}', ["x", "y"]),
        (b'{"a": {}, "b": 1}', ["{}", 1]),
    ],
)
def test_json_fields_that_end_in_one_name_lose_no_value(
    form: Form, read_table: Read, payload: bytes, values: list[object]
) -> None:
    files = {"0.jpg": JPEG, "0.txt": b"a dog", "0.json": payload}

    output = form.embed(files, metadata=True)

    kept = read_table(output, "metadata").iloc[0].tolist()
    assert [value for value in values if value not in kept] == []


@pytest.mark.parametrize("readers", [0, 2])
def test_warnings_of_decoders_are_counted_in_the_summary_and_shown_for_no_picture(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], readers: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = tmp_path / "input"
    folder.mkdir()
    for number in range(20):
        file = io.BytesIO()
        picture(seed=number).save(file, "JPEG", exif=exif)
        whole = file.getvalue()
        place = whole.index(b"Exif\0\0") + 6
        (folder / f"{number}.jpg").write_bytes(whole[:place] + b"II*\0\x08\0\0\0\x09\0" + whole[place + 10 :])

    summary = clip_inference(
        folder, tmp_path / "output", clip_model=MODEL, num_prepro_workers=readers, exif_orientation=True
    )

    assert summary.stats.image_count == 20
    assert sum(summary.stats.warnings.values()) >= 20
    assert all("corrupt EXIF data" in reason for reason in summary.stats.warnings)
    assert "EXIF" not in capfd.readouterr().err
