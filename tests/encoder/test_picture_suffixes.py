"""Which names are pictures: what Pillow and its plug-ins open here, in one list for every command."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from clip_retrieval.encoder.images import FORMATS, decode_image
from clip_retrieval.encoder.picture_suffixes import IMAGE_SUFFIXES, pictures_below
from clip_retrieval.errors import SourceError

WITH_PLUGIN = {".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif"}


def test_the_suffixes_are_those_that_pillow_registers_for_the_formats_that_are_opened() -> None:
    registered = Image.registered_extensions()

    assert {suffix for suffix, kind in registered.items() if kind in {*FORMATS, "MPO"}} == IMAGE_SUFFIXES - WITH_PLUGIN


def test_the_suffixes_of_the_plugins_are_those_that_they_register() -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    registered = Image.registered_extensions()

    assert {suffix for suffix, kind in registered.items() if kind in {"HEIF", "AVIF"}} == WITH_PLUGIN


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - WITH_PLUGIN))
def test_what_pillow_writes_under_each_suffix_is_read(suffix: str) -> None:
    file = io.BytesIO()
    kind = Image.registered_extensions()[suffix]
    Image.new("L" if suffix in {".pgm", ".pfm"} else "RGB", (20, 10)).save(file, kind)

    assert decode_image(file.getvalue()).size == (20, 10)


def test_hidden_pictures_are_left_out_whatever_the_folder_itself_is_called(tmp_path: Path) -> None:
    root = tmp_path / ".hidden" / "photos"
    for name in ("b.JFIF", "a/x.mpo", "a/._x.jpg", ".git/x.jpg", "a/.thumbs/deep/x.png", "notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "folder.jpg").mkdir()

    assert [path.relative_to(root).as_posix() for path in pictures_below(root)] == ["a/x.mpo", "b.JFIF"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"^{tmp_path}/none cannot be listed: No such file or directory$"):
        pictures_below(tmp_path / "none")
