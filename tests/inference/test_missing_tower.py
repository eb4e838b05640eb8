"""A model that cannot encode a part of the input is refused before anything is embedded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_retrieval import clip_inference
from clip_retrieval.encoder.uri import DEMO_MODEL
from clip_retrieval.errors import EncoderError

Members = list[tuple[str, bytes]]
REASON = "the tokenizer of this model is not on this machine"


@pytest.fixture
def image_model(tmp_path: Path) -> Path:
    """Return the embedded model as it is converted where its tokenizer is missing."""
    folder = shutil.copytree(DEMO_MODEL, tmp_path / "image", ignore=shutil.ignore_patterns("open_clip_config.json"))
    about = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(about | {"towers": ["image"], "no_text_reason": REASON}))
    return folder


def write_files(folder: Path, members: Members) -> Path:
    folder.mkdir()
    for name, payload in members:
        (folder / name).write_bytes(payload)
    return folder


def test_captions_without_a_tokenizer_are_told_of_at_the_start(
    tmp_path: Path, image_model: Path, make_sample: Callable[[int], Members]
) -> None:
    members = [member for i in range(3) for member in make_sample(i) if i == 2 or member[0].endswith(".jpg")]
    source, output = write_files(tmp_path / "in", members), tmp_path / "out"
    with pytest.raises(EncoderError, match=f"{REASON}; pictures do not need it: --enable_text False"):
        clip_inference(str(source), str(output), clip_model=str(image_model), write_batch_size=1, num_prepro_workers=0)
    assert not [path for path in output.rglob("*") if path.is_file()]  # of the pictures before the caption, too
    summary = clip_inference(
        str(source), str(output), clip_model=str(image_model), enable_text=False, num_prepro_workers=0
    )
    assert summary.stats.sample_count == 3


def test_tars_are_looked_into(
    tmp_path: Path,
    image_model: Path,
    make_sample: Callable[[int], Members],
    write_tar: Callable[[Path, Members], Path],
) -> None:
    pairs = [member for i in range(2) for member in make_sample(i)]
    plain = write_tar(tmp_path / "plain.tar", [member for member in pairs if member[0].endswith(".jpg")])
    options = {"input_format": "webdataset", "clip_model": str(image_model)}
    assert clip_inference(str(plain), str(tmp_path / "out"), **options).stats.sample_count == 2
    with pytest.raises(EncoderError, match=REASON):
        clip_inference(str(write_tar(tmp_path / "pairs.tar", pairs)), str(tmp_path / "other"), **options)
    assert not [path for path in (tmp_path / "other").rglob("*") if path.is_file()]
