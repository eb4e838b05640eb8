"""--subset_size: the first samples of every kind of input, and what can be done with such a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_inference
from clip_retrieval.errors import ConfigError
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.dry_run.measure import estimate_inference
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.options import build_config

MODEL = "hash:16?size=32"

ReadEmbeddings = Callable[[Path, str], NDArray[np.float16]]
Embed = Callable[..., RunSummary]


def embed(source: Path, output: Path, **options: object) -> RunSummary:
    options = {"clip_model": MODEL, "num_prepro_workers": 0, **options}
    return clip_inference(source, output, **options)


@pytest.mark.parametrize("size", [1, 5, 6, 7, 100])
def test_the_first_samples_of_tars_are_those_of_the_whole(
    tmp_path: Path,
    write_shards: Callable[[Path, int, int], Path],
    read_embeddings: ReadEmbeddings,
    read_table: Callable[[Path, str], pd.DataFrame],
    size: int,
) -> None:
    source = write_shards(tmp_path / "in", 4, 3)
    embed(source, tmp_path / "all", input_format="webdataset")
    embed(source, tmp_path / "some", input_format="webdataset", subset_size=size)
    rows = min(size, 12)
    for folder in ("img_emb", "text_emb"):
        some, whole = (read_embeddings(tmp_path / name, folder) for name in ("some", "all"))
        assert np.array_equal(some, whole[:rows])
    assert read_table(tmp_path / "some", "metadata").equals(read_table(tmp_path / "all", "metadata")[:rows])


def test_the_first_pictures_of_a_folder(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path], read_table: Callable[[Path, str], pd.DataFrame]
) -> None:
    source = write_pictures(tmp_path / "in", 8)
    summary = embed(source, tmp_path / "some", subset_size=3)
    assert summary.stats.sample_count == 3
    names = read_table(tmp_path / "some", "metadata")["image_path"]
    assert [Path(name).name for name in names] == ["00000.jpg", "00001.jpg", "00002.jpg"]


def test_what_cannot_be_used_counts_and_is_named(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path], read_table: Callable[[Path, str], pd.DataFrame]
) -> None:
    source = write_pictures(tmp_path / "in", 8)
    (source / "00001.jpg").write_bytes(b"no picture")
    embed(source, tmp_path / "some", subset_size=3)
    assert len(read_table(tmp_path / "some", "metadata")) == 3
    assert read_table(tmp_path / "some", "failures")["key"].tolist() == ["00001.jpg"]


def test_a_subset_goes_on_and_is_no_other_one(tmp_path: Path, write_shards: Callable[[Path, int, int], Path]) -> None:
    source = write_shards(tmp_path / "in", 2, 3)
    embed(source, tmp_path / "some", input_format="webdataset", subset_size=4)
    assert embed(source, tmp_path / "some", input_format="webdataset", subset_size=4).already_done == 1
    for other in ({"subset_size": 5}, {}):
        with pytest.raises(ConfigError, match="subset_size 4 -> "):
            embed(source, tmp_path / "some", input_format="webdataset", **other)


@pytest.mark.parametrize("kind", ["files", "webdataset"])
def test_what_failed_is_tried_again_within_the_subset(
    tmp_path: Path,
    write_pictures: Callable[[Path, int], Path],
    write_tar: Callable[..., Path],
    make_sample: Callable[[int], list[tuple[str, bytes]]],
    read_embeddings: ReadEmbeddings,
    kind: str,
) -> None:
    def write(*, is_damaged: bool) -> Path:
        if kind == "files":
            source = write_pictures(tmp_path / "in", 6)
            if is_damaged:
                (source / "00001.jpg").write_bytes(b"no picture")
            return source
        members = [member for number in range(6) for member in make_sample(number)]
        if is_damaged:
            members = [(name, b"no picture" if name == "00001.jpg" else data) for name, data in members]
        write_tar(tmp_path / "in" / "0.tar", members)
        return tmp_path / "in"

    source = write(is_damaged=True)
    embed(source, tmp_path / "some", input_format=kind, subset_size=4)
    assert not read_embeddings(tmp_path / "some", "img_emb")[1].any()
    write(is_damaged=False)
    embed(source, tmp_path / "some", input_format=kind, subset_size=4, retry_failed=True)
    rows = read_embeddings(tmp_path / "some", "img_emb")
    assert len(rows) == 4
    assert rows.any(axis=1).all()


def test_an_estimate_is_that_of_the_subset(tmp_path: Path, write_shards: Callable[[Path, int, int], Path]) -> None:
    source = write_shards(tmp_path / "in", 4, 3)
    estimate = estimate_inference(
        source, tmp_path / "out", clip_model=MODEL, input_format="webdataset", subset_size=5, num_prepro_workers=0
    )
    assert estimate.task.samples == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [({"subset_size": 0}, "subset_size must be at least 1"), ({"subset_size": 2, "update": True}, "leave subset_size")],
)
def test_what_is_no_subset_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_config(InferenceConfig, {"input_dataset": "in", "output_folder": "out", **options})
