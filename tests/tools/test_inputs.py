from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clip_retrieval.encoder.config import PictureConfig
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import SourceError
from clip_retrieval.tools.inputs import (
    Failure,
    in_batches,
    list_classes,
    list_pictures,
    read_lines,
    read_picture,
    shown,
)

Write = Callable[[Path, int], Path]
PREPROCESS = Preprocess(8, (0.5,) * 3, (0.5,) * 3)


def test_pictures_of_a_folder_are_sorted_and_those_of_all_below(tmp_path: Path) -> None:
    names = [
        "b.JPG",
        "a/z.png",
        "a/y.Tiff",
        "c.webp",
        "d.gif",
        "e.bmp",
        "f.jpeg",
        "g.tif",
        "notes.txt",
        "h.heic",
        ".z.jpg",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in list_pictures([str(tmp_path)])]
    assert found == ["a/y.Tiff", "a/z.png", "b.JPG", "c.webp", "d.gif", "e.bmp", "f.jpeg", "g.tif", "h.heic"]


def test_files_keep_their_order_whatever_their_suffix(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("z.jpg", "a.data")]
    for path in paths:
        path.touch()
    paths.append(tmp_path / "link.jpg")
    paths[-1].symlink_to("nothing")  # named with its reason, next to others that cannot be read
    assert list_pictures([str(path) for path in paths]) == paths


def test_a_place_that_is_not_there_or_holds_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"^there is no file or folder {tmp_path}/none$"):
        list_pictures([f"{tmp_path}/none"])
    with pytest.raises(SourceError, match=f"^{tmp_path} holds no picture: no file with a suffix such as .jpg"):
        list_pictures([str(tmp_path)])


def test_lines_are_stripped_and_empty_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("﻿a dog, small\r\n\n  ein Hündchen \n".encode())
    assert read_lines(str(tmp_path / "a.txt")) == ["a dog, small", "ein Hündchen"]


def test_a_file_of_lines_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    with pytest.raises(SourceError, match=r"a.txt is not text in UTF-8: invalid start byte at byte 2"):
        read_lines(str(tmp_path / "a.txt"))
    with pytest.raises(SourceError, match=r"b.txt cannot be read: No such file or directory"):
        read_lines(str(tmp_path / "b.txt"))


def test_classes_are_folders_and_what_is_left_out_is_told(tmp_path: Path, write_jpegs: Write) -> None:
    write_jpegs(tmp_path / "dog", 3)
    write_jpegs(tmp_path / "cat" / "deeper", 2)
    write_jpegs(tmp_path, 1)
    (tmp_path / "bird").mkdir()
    write_jpegs(tmp_path / ".git", 1)
    (tmp_path / "._000.jpg").touch()
    (tmp_path / "dog" / "._000.jpg").touch()
    classes, notes = list_classes(str(tmp_path), 2)
    assert [(found.name, [path.name for path in found.pictures]) for found in classes] == [
        ("cat", ["000.jpg", "001.jpg"]),
        ("dog", ["000.jpg", "001.jpg"]),
    ]
    assert notes == [
        "folders without pictures are not classes: bird",
        "left out, since outside of the class folders: 1 picture",
    ]


def test_fewer_than_two_classes_are_refused(tmp_path: Path, write_jpegs: Write) -> None:
    write_jpegs(tmp_path / "dog", 1)
    with pytest.raises(SourceError, match=r"holds 1 folder with pictures; a benchmark needs two or more"):
        list_classes(str(tmp_path), None)
    with pytest.raises(SourceError, match=r"there is no folder"):
        list_classes(str(tmp_path / "none"), None)


def test_a_picture_becomes_pixels_or_a_failure_with_its_reason(tmp_path: Path, write_jpegs: Write) -> None:
    good = write_jpegs(tmp_path, 1) / "000.jpg"
    pixels = read_picture(good, PREPROCESS, PictureConfig())
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (8, 8, 3)
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    assert read_picture(tmp_path / "bad.jpg", PREPROCESS, PictureConfig()) == Failure(
        (tmp_path / "bad.jpg").as_posix(), "decode", "no picture format recognised: it is a text file"
    )
    gone = read_picture(tmp_path / "gone.jpg", PREPROCESS, PictureConfig())
    assert isinstance(gone, Failure)
    assert (gone.reason, gone.detail) == ("read", "No such file or directory")


def test_a_git_lfs_pointer_is_told_and_a_name_is_only_a_name(
    tmp_path: Path, write_jpegs: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_jpegs(tmp_path, 1))
    for name in ("pipe:touch ran", "~", "s3::x"):
        Path(name).write_bytes(Path("000.jpg").read_bytes())
        assert isinstance(read_picture(Path(name), PREPROCESS, PictureConfig()), np.ndarray)
    assert not Path("ran").exists()
    Path("pointer.jpg").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    found = read_picture(Path("pointer.jpg"), PREPROCESS, PictureConfig())
    assert isinstance(found, Failure)
    assert (found.reason, "run git lfs pull" in found.detail) == ("git_lfs_pointer", True)


def test_a_name_that_is_no_unicode_can_be_printed() -> None:
    assert shown(Path("a\udcff.jpg")) == "a\\udcff.jpg"


def test_batches_lose_no_remainder() -> None:
    assert [list(batch) for batch in in_batches(range(5), 2)] == [[0, 1], [2, 3], [4]]
