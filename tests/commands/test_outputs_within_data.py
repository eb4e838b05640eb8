"""Outputs inside the embeddings or the metadata of a folder: every command refuses them before it writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from clip_retrieval import clip_index
from clip_retrieval.cli import cli

COMMANDS = {
    "index": "index {emb} {out}",
    "combine": "index combine {parts} {out}",
    "combiner of clip-retrieval 2": "index_combiner {parts}/0 {out}",
    "filter": "filter --like 1 --output_folder {out} --index_folder {parts}/0",
    "dedup": "dedup {emb} {out}",
    "select": "select {emb} {out} --count 5",
    "inference": "inference {pictures} {out} --clip_model hash:16",
    "export": "export {emb} --to parquet --target {out}",
    "end2end": "end2end {pictures} {out} --run_back False --clip_model hash:16",
    "extract": "extract --image {pictures}/a.png --output_folder {out} --clip_model hash:16",
}


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    write_run: Callable[..., Path],
    unit_rows: Callable[..., NDArray[np.float32]],
) -> Path:
    root = tmp_path_factory.mktemp("outputs")
    emb = write_run(root / "emb", [unit_rows(20)], [unit_rows(20, seed=1)])
    for name in "01":
        clip_index(str(emb), str(root / "parts" / name), nb_cores=1)
    (root / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(root / "pictures" / "a.png")
    return root


@pytest.mark.parametrize("inner", ["emb/img_emb", "emb/text_emb/new", "emb/metadata", "parts/0/metadata/new/one"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_among_embeddings_or_metadata_is_refused(command: str, inner: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    words = [
        word.format(emb=folder / "emb", parts=folder / "parts", pictures=folder / "pictures", out=folder / inner)
        for word in COMMANDS[command].split()
    ]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 1, result.output
    said = result.output.replace("\n", " ")
    assert "which holds " in said or "emb, which is read; name another output folder" in said
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("inner", ["clip_images", "clip_images/ix", "a/../clip_images/ix"])
@pytest.mark.parametrize("more", [[], ["--dry_run", "True"]])
def test_an_index_among_embeddings_of_a_named_subfolder_is_refused(
    more: list[str], inner: str, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "emb" / "img_emb", tmp_path / "clip_images")
    before = sorted(tmp_path.rglob("*"))
    options = ["--image_subfolder", "clip_images", *more]
    result = CliRunner().invoke(cli, ["index", str(tmp_path), f"{tmp_path}/{inner}", *options])
    assert result.exit_code == 1, result.output
    assert "clip_images, which holds embeddings; name a folder elsewhere" in result.output.replace("\n", " ")
    assert sorted(tmp_path.rglob("*")) == before
    beside = CliRunner().invoke(cli, ["index", str(tmp_path), f"{tmp_path}/clip_images_index", *options])
    assert beside.exit_code == 0, beside.output


def test_a_folder_of_such_a_name_without_such_files_may_be_written(folder: Path) -> None:
    (folder / "other" / "metadata").mkdir(parents=True)
    (folder / "other" / "metadata" / "results.parquet").write_bytes(b"")
    result = CliRunner().invoke(cli, ["index", str(folder / "emb"), str(folder / "other" / "metadata" / "ix")])
    assert result.exit_code == 0, result.output
