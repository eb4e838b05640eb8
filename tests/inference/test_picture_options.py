"""decode, transparency, exif_orientation, max_pixels: what they change, and that folder and index remember them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval import clip_filter, clip_index, clip_inference, load_encoder
from clip_retrieval.encoder.config import MAX_PIXELS
from clip_retrieval.errors import ConfigError
from clip_retrieval.inference.summary import RunSummary

MODEL = "hash:16?size=32"
ReadEmbeddings = Callable[[Path, str], NDArray[np.float16]]
Read = Callable[[Path, str], pd.DataFrame]


def picture(seed: int, width: int = 90, height: int = 60) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height))


def write_picture(path: Path, image: Image.Image, orientation: int | None = None) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    path.parent.mkdir(exist_ok=True)
    image.save(path, exif=exif)
    return path


def run(folder: Path, output: Path, **options: object) -> RunSummary:
    return clip_inference(folder, output, clip_model=MODEL, num_prepro_workers=0, enable_text=False, **options)


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def forget_pictures(manifest: dict[str, Any]) -> None:
    """Make the manifest one of before these options."""
    manifest["encoder"].pop("pictures")
    if "source" in manifest.get("options", {}):  # of a run, not of an index
        manifest["options"]["source"].pop("pictures")


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    """Give a folder of pictures that lie on their side, and say so."""
    for seed in range(5):
        on_its_side = picture(seed).transpose(Image.Transpose.ROTATE_90)
        write_picture(tmp_path / "turned" / f"{seed}.png", on_its_side, orientation=6)
    return tmp_path / "turned"


def test_pictures_are_embedded_upright_where_that_is_wanted(
    turned: Path, tmp_path: Path, read_embeddings: ReadEmbeddings
) -> None:
    for seed in range(5):
        write_picture(tmp_path / "upright" / f"{seed}.png", picture(seed))
    exact = {"decode": "exact"}
    run(tmp_path / "upright", tmp_path / "expected", **exact)

    run(turned, tmp_path / "as_stored", **exact)
    run(turned, tmp_path / "as_shown", exif_orientation=True, **exact)

    expected = read_embeddings(tmp_path / "expected", "img_emb")
    np.testing.assert_array_equal(read_embeddings(tmp_path / "as_shown", "img_emb"), expected)
    assert (read_embeddings(tmp_path / "as_stored", "img_emb") != expected).any(axis=1).all()


@pytest.mark.parametrize("options", [{}, {"decode": "exact"}, {"exif_orientation": True}], ids=str)
def test_a_query_picture_is_read_as_those_of_the_index(
    turned: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    run(turned, tmp_path / "embeddings", **options)
    clip_index(tmp_path / "embeddings", tmp_path / "index")

    hits = clip_filter(str(turned / "3.png"), tmp_path / "hits", tmp_path / "index")

    assert Path(hits["image_path"][0]).name == "3.png"
    assert hits["similarity"][0] > 0.999
    assert hits["similarity"][1] < 0.99


def test_an_index_of_before_these_options_is_asked_as_it_was(turned: Path, tmp_path: Path) -> None:
    run(turned, tmp_path / "embeddings", decode="exact", transparency="white")
    clip_index(tmp_path / "embeddings", tmp_path / "index")
    change_manifest(tmp_path / "index", forget_pictures)

    hits = clip_filter(str(turned / "3.png"), tmp_path / "hits", tmp_path / "index")

    assert hits["similarity"][0] > 0.999


def test_other_picture_options_are_refused_with_both_values(turned: Path, tmp_path: Path) -> None:
    output = tmp_path / "embeddings"
    run(turned, output)

    with pytest.raises(ConfigError, match=r"\(decode fast -> exact; transparency white -> drop\); use a new folder"):
        run(turned, output, decode="exact")
    with pytest.raises(ConfigError, match=r"\(exif_orientation False -> True; max_pixels \d+ -> 9\)"):
        run(turned, output, exif_orientation=True, max_pixels=9)


def test_a_folder_of_before_these_options_goes_on_as_it_was(turned: Path, tmp_path: Path) -> None:
    output = tmp_path / "embeddings"
    run(turned, output, decode="exact", transparency="white")
    change_manifest(output, forget_pictures)

    assert run(turned, output, decode="exact", transparency="white").already_done == 1
    with pytest.raises(ConfigError, match=r"\(decode exact -> fast\)"):
        run(turned, output)


def forget_transparency(manifest: dict[str, Any]) -> None:
    manifest["encoder"]["pictures"].pop("transparency")
    if "source" in manifest.get("options", {}):
        manifest["options"]["source"]["pictures"].pop("transparency")


@pytest.fixture
def cutouts(tmp_path: Path) -> Path:
    """Give a folder of pictures whose alpha hides half of them."""
    for seed in range(5):
        image = picture(seed).convert("RGBA")
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        write_picture(tmp_path / "cutouts" / f"{seed}.png", image)
    return tmp_path / "cutouts"


@pytest.mark.parametrize("decode", ["fast", "exact"])
def test_a_folder_of_before_the_switch_was_laid_on_white(cutouts: Path, tmp_path: Path, decode: str) -> None:
    output = tmp_path / "embeddings"
    run(cutouts, output, decode=decode, transparency="white")
    clip_index(output, tmp_path / "index")
    for folder in (output, tmp_path / "index"):
        change_manifest(folder, forget_transparency)

    hits = clip_filter(str(cutouts / "3.png"), tmp_path / "hits", tmp_path / "index")

    assert hits["similarity"][0] > 0.999
    assert run(cutouts, output, decode=decode, transparency="white").already_done == 1
    with pytest.raises(ConfigError, match=r"\(transparency white -> drop\)"):
        run(cutouts, output, decode=decode, transparency="drop")


def test_an_index_of_clip_retrieval_2_is_asked_with_the_models_own_transform(cutouts: Path, tmp_path: Path) -> None:
    run(cutouts, tmp_path / "embeddings", decode="exact")
    clip_index(tmp_path / "embeddings", tmp_path / "index")
    (tmp_path / "index" / "manifest.json").unlink()

    hits = clip_filter(str(cutouts / "3.png"), tmp_path / "hits", tmp_path / "index", clip_model=MODEL)

    assert hits["similarity"][0] > 0.999


@pytest.mark.parametrize(("transparency", "same"), [("drop", True), ("white", False), ("auto", True)])
def test_embeddings_are_those_of_the_models_own_transform_where_alpha_is_dropped(
    cutouts: Path, tmp_path: Path, read_embeddings: ReadEmbeddings, transparency: str, same: bool
) -> None:
    encoder = load_encoder(MODEL)
    transform = open_clip.image_transform(32, is_train=False, mean=(0,) * 3, std=(1,) * 3)
    pixels = [(transform(Image.open(cutouts / f"{seed}.png")).numpy() * 255).round() for seed in range(5)]
    expected = encoder.encode_images(np.stack(pixels).astype(np.uint8).transpose(0, 2, 3, 1))

    run(cutouts, tmp_path / "embeddings", decode="exact", transparency=transparency)

    cosines = (read_embeddings(tmp_path / "embeddings", "img_emb").astype(np.float32) * expected).sum(axis=1)
    assert (cosines > 0.999).all() == same


def test_a_picture_of_too_many_pixels_is_named(turned: Path, tmp_path: Path, read_table: Read) -> None:
    write_picture(turned / "large.png", picture(9, 100, 61))

    run(turned, tmp_path / "embeddings", max_pixels=100 * 60)

    failures = read_table(tmp_path / "embeddings", "failures")
    assert failures[["reason", "detail"]].values.tolist() == [
        ["too_large", "more than 6000 pixels, the limit of max_pixels"]
    ]
    assert MAX_PIXELS > 100 * 61


def test_heic_is_named_with_what_to_install_and_read_by_the_next_run(
    turned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_table: Read
) -> None:
    pytest.importorskip("pillow_heif").register_heif_opener()
    file = io.BytesIO()
    picture(9).save(file, "HEIF")
    (turned / "photo.heic").write_bytes(file.getvalue())
    output = tmp_path / "embeddings"

    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pillow_heif", None)
        run(turned, output)
    failures = read_table(output, "failures")
    run(turned, output)

    assert failures[["reason", "detail"]].values.tolist() == [
        ["needs_plugin", "HEIC pictures are read by a package: pip install pillow-heif"]
    ]
    assert read_table(output, "failures").empty
    assert len(read_table(output, "metadata")) == 6
