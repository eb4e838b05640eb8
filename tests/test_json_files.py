from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from clip_retrieval.errors import EncoderError, StorageError
from clip_retrieval.json_files import check_shape, parse_json, read_json
from clip_retrieval.storage import Folder


@dataclass(frozen=True)
class Picture:
    size: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    mean: tuple[float, float, float] = (0, 0, 0)
    mode: Literal["crop", "squash"] = "crop"


def test_a_dataclass_is_filled_and_other_keys_are_passed_over() -> None:
    assert parse_json('{"size": 3, "mean": [1, 2, 0.5], "new": {}}', Picture, "x.json") == Picture(3, (1, 2, 0.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "x.json cannot be used: expected `object`, got `array`"),
        ("{}", "x.json cannot be used: object missing required field `size`"),
        ('{"size": "a"}', "x.json cannot be used: size: expected `int`, got `str`"),
        ('{"size": 1000000000000}', "x.json cannot be used: size: expected `int` <= 4096"),
        ('{"size": 1, "mean": null}', "x.json cannot be used: mean: expected `array`, got `null`"),
        ('{"size": 1, "mean": [1, 2, "a"]}', "x.json cannot be used: mean[2]: expected `float`, got `str`"),
        ('{"size": 1, "mode": "cut"}', "x.json cannot be used: mode: invalid enum value 'cut'"),
    ],
)
def test_another_shape_names_the_key_and_both_kinds(text: str, message: str) -> None:
    with pytest.raises(StorageError) as caught:
        parse_json(text, Picture, "x.json")
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 5000 + "]" * 5000])
def test_deep_nesting_is_one_sentence(text: str) -> None:
    with pytest.raises(EncoderError, match="is not valid JSON: it is nested too deeply"):
        parse_json(text, dict[str, Any], "x.json", EncoderError)


@pytest.mark.parametrize("data", [b"", b'{"size": 1', b"\xff\xfe\x00", b"9" * 10_000, b"{'size': 1}"])
def test_broken_json_is_one_sentence(data: bytes) -> None:
    with pytest.raises(StorageError, match=r"x\.json is not valid JSON"):
        parse_json(data, dict[str, Any], "x.json")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (bytes(9), "it holds only zeros"),
        ("\0", "it holds only zeros"),
        (b'"\xff"', "it is not UTF-8 text"),
        (b"\0\0\0\0\xff", "it is not UTF-8 text"),
    ],
)
def test_what_is_no_text_is_said_without_the_name_of_a_codec(data: bytes | str, reason: str) -> None:
    with pytest.raises(StorageError) as caught:
        parse_json(data, dict[str, Any], "x.json")
    assert str(caught.value) == f"x.json is not valid JSON ({reason}); fetch or write it again"
    assert caught.value.what == f"x.json is not valid JSON ({reason})"


def test_nan_is_read_as_python_writes_it() -> None:
    assert str(parse_json('{"a": NaN}', dict[str, float], "x.json")["a"]) == "nan"


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(EncoderError, match="is a Git LFS pointer, not the file itself; run git lfs pull"):
        read_json(tmp_path / "config.json", dict[str, Any], EncoderError)


def test_only_regular_files_of_a_sane_size_are_read(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(200_000_000)
    with pytest.raises(StorageError, match="200,000,000 bytes"):
        read_json(tmp_path / "large.json", dict[str, Any])
    with pytest.raises(StorageError, match="not a regular file"):
        read_json(Path("/dev/zero"), dict[str, Any])
    with pytest.raises(StorageError, match="No such file"):
        read_json(tmp_path / "absent.json", dict[str, Any])


def test_a_value_that_was_parsed_elsewhere_is_checked_too() -> None:
    with pytest.raises(EncoderError, match=r"model\.json: tokenizer cannot be used: size: expected"):
        check_shape({"size": []}, Picture, "model.json: tokenizer", EncoderError)


def test_a_folder_reads_json_of_a_shape(tmp_path: Path) -> None:
    (tmp_path / "image.json").write_text('{"index_param": ["a"]}')
    with pytest.raises(StorageError, match=r"image\.json cannot be used: .*expected `str`, got `array`"):
        Folder(str(tmp_path)).read_shaped_json("image.json", dict[str, str])
