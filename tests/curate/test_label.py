"""Columns of labels, scores and clusters: right by row, and usable at once where rows are searched."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from safetensors.numpy import save_file

from clip_retrieval.cli import cli
from clip_retrieval.curate import label as label_module
from clip_retrieval.curate.config import LabelConfig
from clip_retrieval.curate.heads import read_head
from clip_retrieval.curate.label import LabelResult, run_label
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.index.build import build_indices
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.layout import EmbeddingsFolder, IndexFolder
from clip_retrieval.metadata import open_metadata
from clip_retrieval.options import build_config
from clip_retrieval.query.predicates import rows_where

Rows = NDArray[np.float32]
WriteRun = Callable[..., Path]
LABELS = ("dog", "cat", "fish")


def label(folder: Path, **options: Any) -> LabelResult:
    return run_label(build_config(LabelConfig, options, (str(folder),)))


def columns_of(folder: Path, name: str = "label") -> pd.DataFrame:
    parts = [pd.read_parquet(path) for path in sorted((folder / "columns" / name).glob("*.parquet"))]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def run(write_run: WriteRun, tmp_path: Path) -> Path:
    """Return a folder whose rows are the labels' own embeddings, in two files, the fourth without a picture."""
    rows = load_encoder("hash:16?size=32").encode_texts(["dog", "fish", "cat", "cat", "dog"])
    images = rows.copy()
    images[3] = 0
    return write_run(tmp_path / "run", [images[:2], images[2:]], [rows[:2], rows[2:]])


def test_labels_are_those_of_each_row_and_null_without_a_picture(run: Path) -> None:
    label(run, label=LABELS, each=True)
    found = columns_of(run)
    assert found["label"].tolist() == ["dog", "fish", "cat", None, "dog"]
    assert found["label_probability"].isna().tolist() == [False, False, False, True, False]
    np.testing.assert_allclose(found[[f"label.{name}" for name in LABELS]].sum(axis=1)[[0, 1, 2, 4]], 1, atol=1e-5)
    np.testing.assert_allclose(found["label_probability"][0], found["label.dog"][0])
    assert len(list((run / "columns/label").glob("*.parquet"))) == 2


def test_columns_are_at_once_usable_in_conditions(run: Path) -> None:
    label(run, label=LABELS, name="kind", template=("a photo of a {}", "{}"))
    metadata = open_metadata(EmbeddingsFolder(str(run)))
    assert metadata is not None
    assert rows_where(metadata, "kind = 'dog' and caption <> 'row 0'").tolist() == [4]
    assert metadata.rows(np.array([2, 0]), ["kind", "caption"]).to_pylist() == [
        {"kind": "cat", "caption": "row 2"},
        {"kind": "dog", "caption": "row 0"},
    ]
    assert [field.name for field, _ in metadata.values(np.array([1]))] == ["caption", "kind", "kind_probability"]


def test_an_index_gets_columns_with_its_build_and_later_without_one(run: Path, tmp_path: Path) -> None:
    config = build_config(IndexConfig, {"index_key": "Flat"}, (str(run), str(tmp_path / "index")))
    label(run, label=LABELS)
    build_indices(config)
    before = (tmp_path / "index/image.index").read_bytes()
    label(run, similarity=True, name="pairs", index_folder=str(tmp_path / "index"))
    metadata = open_metadata(IndexFolder(str(tmp_path / "index")))
    assert metadata is not None
    assert rows_where(metadata, "label = 'dog' and image_text_similarity > 0.99").tolist() == [0, 4]
    assert (tmp_path / "index/image.index").read_bytes() == before
    found = columns_of(tmp_path / "index", "pairs")["image_text_similarity"]
    assert found.isna().tolist() == [False, False, False, True, False]


def test_columns_of_other_rows_are_left_out(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    label(run, label=LABELS)
    next((run / "columns/label").glob("*.parquet")).unlink()
    metadata = open_metadata(EmbeddingsFolder(str(run)))
    assert metadata is not None
    assert metadata.schema.names == ["caption"]
    assert "its columns are left out" in caplog.text


def test_a_stopped_run_goes_on_and_other_options_begin_anew(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label(run, label=LABELS)
    first, second = sorted((run / "columns/label").glob("*.parquet"))
    whole = second.read_bytes()
    second.unlink()
    first.touch()
    stamp = first.stat().st_mtime_ns
    label(run, label=LABELS)
    assert (first.stat().st_mtime_ns, second.read_bytes()) == (stamp, whole)
    with pytest.raises(
        ClipRetrievalError, match=r"label: .* there, dog,bird now\); give another --name, or --overwrite"
    ):
        label(run, label=("dog", "bird"))
    assert (first.stat().st_mtime_ns, second.read_bytes()) == (stamp, whole)
    label(run, label=("dog", "bird"), overwrite=True)
    assert set(columns_of(run)["label"].dropna()) <= {"dog", "bird"}
    monkeypatch.setattr(label_module, "BLOCK_ROWS", 1)
    label(run, label=LABELS, overwrite=True)
    assert columns_of(run)["label"].tolist() == ["dog", "fish", "cat", None, "dog"]


def write_torch(path: Path, arrays: dict[str, Rows]) -> None:
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


def write_safetensors(path: Path, arrays: dict[str, Rows]) -> None:
    save_file(arrays, path)


@pytest.mark.parametrize("suffix", ["npz", "pth", "safetensors"])
def test_heads_of_every_format_give_the_same_scores(
    tmp_path: Path, unit_rows: Callable[..., Rows], suffix: str
) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "layers.2.weight": random.standard_normal((8, 16)).astype(np.float32),
        "layers.2.bias": random.standard_normal(8).astype(np.float32),
        "layers.10.weight": random.standard_normal((2, 8)).astype(np.float32),
        "layers.10.bias": random.standard_normal(2).astype(np.float32),
    }
    path = tmp_path / f"sac+logos-linear.{suffix}"
    if suffix == "npz":
        np.savez(path, **arrays)
    else:
        (write_torch if suffix == "pth" else write_safetensors)(path, arrays)
    rows = unit_rows(6)
    hidden = rows @ arrays["layers.2.weight"].T + arrays["layers.2.bias"]
    for activation, between in (("none", hidden), ("relu", np.maximum(hidden, 0))):
        head = read_head(str(path), 16, activation, "raw")  # type: ignore[arg-type]
        wanted = between @ arrays["layers.10.weight"].T + arrays["layers.10.bias"]
        np.testing.assert_allclose(head.score(rows), wanted, atol=1e-5)
    assert head.columns == ["sac_logos_linear_0", "sac_logos_linear_1"]


def test_a_head_of_sklearn_is_a_column(run: Path, tmp_path: Path) -> None:
    weights = load_encoder("hash:16?size=32").encode_texts(["fish"])
    np.savez(tmp_path / "fishy.npz", coef_=weights, intercept_=np.array([0.5]))
    label(run, head=str(tmp_path / "fishy.npz"))
    scores = columns_of(run)["fishy"]
    assert scores[1] == pytest.approx(1.5, abs=1e-5)
    assert np.isnan(scores[3])


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    with zipfile.ZipFile(tmp_path / "head.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"weight": Evil()}, protocol=2))
    with pytest.raises(ClipRetrievalError, match="refused"):
        read_head(str(tmp_path / "head.pth"), 16, "none", "raw")
    np.savez(tmp_path / "objects.npz", weight=np.array([Evil()], dtype=object))
    with pytest.raises(ClipRetrievalError, match="cannot be read as a head"):
        read_head(str(tmp_path / "objects.npz"), 16, "none", "raw")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weight": np.ones((1, 8))}, "a head for 8 dimensions, and the embeddings have 16"),
        ({"weight": np.ones((1, 16)), "running_mean": np.ones(16)}, "it holds running_mean"),
        ({"bias": np.ones(16)}, "not a head of linear layers"),
        ({"a.weight": np.ones((4, 16)), "b.weight": np.ones((1, 5))}, "do not fit together"),
        ({"weight": np.full((1, 16), np.nan)}, "not finite"),
    ],
)
def test_what_is_no_head_of_these_rows_is_told(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "head.npz", **arrays)
    with pytest.raises(ClipRetrievalError, match=message):
        read_head(str(tmp_path / "head.npz"), 16, "none", "raw")


def test_an_odd_row_is_an_outlier(write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]) -> None:
    rows = unit_rows(1) + 0.05 * unit_rows(60, seed=1)
    rows[17] = unit_rows(1, seed=5)
    folder = write_run(tmp_path / "run", [rows])
    label(folder, outlier=True)
    found = columns_of(folder)["outlier"]
    assert found.idxmax() == 17
    assert found.drop(17).max() < 0.05 < found[17]


def test_clusters_are_named_by_captions_and_by_labels(write_run: WriteRun, tmp_path: Path) -> None:
    encoder = load_encoder("hash:16?size=32")
    animals = ["dog", "cat", "fish"]
    own = np.arange(60) % 3
    noise = np.random.default_rng(0).standard_normal((60, 16)).astype(np.float32)
    folder = write_run(tmp_path / "run", [encoder.encode_texts(animals)[own] + 0.02 * noise])
    captions = [f"A photo of a {animals[i]} number {n}" for n, i in enumerate(own)]
    pd.DataFrame({"caption": captions}).to_parquet(folder / "metadata/metadata_0.parquet")
    label(folder, clusters=3)
    found = columns_of(folder)
    assert [name.split(", ")[0] for name in found["cluster_name"]] == [animals[i] for i in own]
    assert found["cluster_similarity"].min() > 0.9
    assert label(folder, clusters=3, label=animals, overwrite=True).clusters == [
        columns_of(folder).set_index("cluster")["label"].groupby(level=0).first()[number] for number in range(3)
    ]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "nothing to compute"),
    "template": ({"label": ("dog",), "template": ("a photo",)}, "has no {} for the label"),
    "alone": ({"template": ("a {}",)}, "--template is for labels"),
    "one label": ({"label": ("dog",)}, "labels need two or more"),
    "twice": ({"label": ("dog", "cat", "dog ")}, "the label 'dog' is given twice"),
    "empty": ({"label": ("dog", " ")}, "a label is empty"),
    "taken": (
        {"label": ("dog", "cat"), "name": "caption"},
        "has a column caption already, in metadata; give another --name",
    ),
    "path": ({"label": ("dog",), "name": "../x"}, "name consists of letters, digits"),
    "head": ({"head": ("nowhere.npz",)}, "nowhere.npz is not there"),
    "junk": ({"head": ("junk.npz",)}, "is not an npz file with arrays"),
    "index": ({"outlier": True, "index_folder": "nowhere"}, "nowhere has no metadata"),
    "model": ({"label": ("dog", "cat"), "clip_model": "hash:8"}, "is another;"),
    "clusters": ({"clusters": 50}, "clusters is 50, and there are 4 embeddings"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_told_in_a_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("junk.npz").write_bytes(b"junk")
    options, message = BAD[name]
    with pytest.raises(ClipRetrievalError, match=message):
        label(run, **options)
    assert not (run / "columns").exists()


def test_a_folder_of_columns_that_is_not_ours_stays(run: Path) -> None:
    (run / "columns/label").mkdir(parents=True)
    (run / "columns/label/mine.txt").write_text("mine")
    with pytest.raises(ClipRetrievalError, match="no `label` wrote it"):
        label(run, label=LABELS)
    assert (run / "columns/label/mine.txt").exists()


def test_what_helps_where_a_column_is_taken_is_told(run: Path, tmp_path: Path) -> None:
    label(run, name="shape", outlier=True)
    with pytest.raises(ClipRetrievalError, match="in columns/shape; give --name shape --overwrite"):
        label(run, name="other", outlier=True)
    np.savez(tmp_path / "caption.npz", weight=np.zeros((1, 16), np.float32))
    with pytest.raises(ClipRetrievalError, match="in metadata; rename the head's file"):
        label(run, name="other", head=(str(tmp_path / "caption.npz"),))


def test_a_stray_file_beside_the_sets_of_columns_is_none(run: Path) -> None:
    label(run, label=LABELS)
    (run / "columns/mine.parquet").write_text("mine")
    assert list(columns_of(run)) == ["label", "label_probability"]


def test_similarity_without_captions_is_refused(
    write_run: WriteRun, tmp_path: Path, unit_rows: Callable[..., Rows]
) -> None:
    with pytest.raises(ClipRetrievalError, match="has no text embeddings"):
        label(write_run(tmp_path / "run", [unit_rows(4)]), similarity=True)


def test_the_command_prints_json(run: Path) -> None:
    done = CliRunner().invoke(cli, ["label", str(run), "--label", "dog", "--label", "cat", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["columns"] == ["label", "label_probability"]


def test_the_report_counts_the_rows_that_have_a_value(run: Path) -> None:
    made = CliRunner().invoke(cli, ["label", str(run), "--name", "pairs", "--similarity"])
    assert "4 of 5 rows have image_text_similarity" in made.output
    again = label(run, name="pairs", similarity=True)
    assert (again.rows, again.filled) == (5, {"image_text_similarity": 4})


@pytest.mark.parametrize("name", ["id", "ID"])
def test_a_set_that_would_hide_the_ids_of_rows_is_refused(run: Path, name: str) -> None:
    with pytest.raises(ClipRetrievalError, match="give another --name"):
        label(run, name=name, label=LABELS)
    assert not (run / "columns").exists()
