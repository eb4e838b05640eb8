"""What is exported: rows with an embedding, as they are stored, and codes only if it is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.errors import ClipRetrievalError, SourceError
from clip_retrieval.export.config import ExportConfig, RowsConfig
from clip_retrieval.export.opening import open_source
from clip_retrieval.export.source import Source, on_grid

WriteTyped = Callable[..., Path]


@contextmanager
def opened(folder: Path, **options: Any) -> Iterator[Source]:
    config = ExportConfig(folder=str(folder), to="parquet", target=str(folder / "to"), rows=RowsConfig(**options))
    with open_source(config) as source:
        yield source


def read_all(source: Source, size: int = 100) -> tuple[list[int], NDArray[Any]]:
    blocks = [*source.blocks(0, size, stop=source.row_count)]
    return [row for block in blocks for row in block.ids.tolist()], np.concatenate([b.vectors for b in blocks])


def stored_in(folder: Path) -> NDArray[np.float16]:
    return np.concatenate([np.load(path) for path in sorted((folder / "img_emb").iterdir())])


@pytest.fixture
def embeddings(tmp_path: Path, write_typed: WriteTyped) -> Path:
    return write_typed(tmp_path / "embeddings")


def index_of(embeddings: Path, key: str) -> Path:
    clip_index(str(embeddings), str(embeddings.parent / "index"), index_key=key, nb_cores=1)
    return embeddings.parent / "index"


@pytest.mark.parametrize("start", [0, 3, 10, 24])
@pytest.mark.parametrize("sizes", [[24], [1, 9, 14], [10, 10, 4]])
def test_rows_are_cut_at_the_same_places_wherever_their_files_end(sizes: list[int], start: int) -> None:
    rows = np.arange(24)[:, None]
    pieces = iter(np.split(rows, np.cumsum(sizes)[:-1]))
    left = (piece[piece[:, 0] >= start] for piece in pieces)
    cut = [(first, part[:, 0].tolist()) for first, part in on_grid(left, start, 10)]
    assert [row for _, part in cut for row in part] == list(range(start, 24))
    assert all(first == part[0] and part[-1] // 10 == first // 10 for first, part in cut)


def test_rows_without_an_embedding_are_left_out_and_the_others_are_as_they_are_stored(embeddings: Path) -> None:
    with opened(embeddings) as source:
        ids, vectors = read_all(source)
        assert source.kind == "embeddings"
    assert ids == [row for row in range(300) if row not in (5, 40)]
    assert vectors.dtype == np.float16
    assert np.array_equal(vectors, stored_in(embeddings)[ids])


def test_an_index_knows_its_embeddings_also_where_both_were_moved(embeddings: Path) -> None:
    index_of(embeddings, "SQ8")
    moved = embeddings.parent.rename(embeddings.parent.with_name("moved"))
    with opened(moved / "index") as source:
        ids, vectors = read_all(source)
        assert (source.kind, source.notes) == ("embeddings", ["id is called metadata_id there"])
    assert np.array_equal(vectors, stored_in(moved / "embeddings")[ids])


def test_codes_are_said_to_be_none_of_the_embeddings(embeddings: Path) -> None:
    index = index_of(embeddings, "SQ8")
    rows = stored_in(embeddings).astype(np.float32)
    shutil.rmtree(embeddings)
    with opened(index) as source:
        ids, vectors = read_all(source)
        assert source.kind == "codes"
        assert "decoded from the codes of the index" in source.notes[0]
        assert f"({embeddings.resolve()} no longer holds them)" in source.notes[0]
    assert 0 < np.abs(vectors - rows[ids]).max() < 0.02


def test_an_index_that_holds_the_embeddings_bit_by_bit_gives_them_without_their_folder(embeddings: Path) -> None:
    index = index_of(embeddings, "Flat")
    rows = stored_in(embeddings)
    shutil.rmtree(embeddings)
    with opened(index) as source:
        ids, vectors = read_all(source)
        assert source.kind == "embeddings"
    assert len(ids) == 298
    assert np.array_equal(vectors, rows[ids])


def test_embeddings_of_another_run_are_refused(embeddings: Path) -> None:
    index = index_of(embeddings, "Flat")
    changed = np.load(embeddings / "img_emb" / "img_emb_1.npy")
    changed[50] = changed[51]
    np.save(embeddings / "img_emb" / "img_emb_1.npy", changed)
    with (
        opened(index) as source,
        pytest.raises(SourceError, match=r"from row 200 on, the index was built from other embeddings"),
    ):
        read_all(source)


def test_a_condition_keeps_rows_and_columns_may_be_chosen(embeddings: Path) -> None:
    with opened(embeddings, where="width < 20 and caption is not null", columns=("caption",)) as source:
        blocks = [*source.blocks(0, 100, stop=300)]
        assert [block.ids.tolist() for block in blocks] == [[r for r in range(20) if r % 5 and r % 7], [], []]
        assert blocks[0].metadata.column_names == ["caption"]
        assert source.is_exported(np.array([1, 5, 7, 21])).tolist() == [True, False, False, False]


def test_rows_that_are_no_numbers_are_named(embeddings: Path) -> None:
    path = embeddings / "img_emb" / "img_emb_1.npy"
    rows = np.load(path)
    rows[7, 3] = np.nan
    np.save(path, rows)
    with opened(embeddings) as source, pytest.raises(SourceError, match=r"row 207 of .* is not finite"):
        read_all(source)


@pytest.mark.parametrize(
    ("modality", "folder", "said"),
    [("text", "embeddings", "it has image embeddings"), ("image", "none", "there is no folder")],
)
def test_a_folder_without_such_embeddings_is_one_sentence(
    embeddings: Path, modality: Any, folder: str, said: str
) -> None:
    with pytest.raises(ClipRetrievalError, match=said), opened(embeddings.parent / folder, modality=modality):
        pass


def test_metadata_of_other_rows_are_refused(embeddings: Path) -> None:
    (embeddings / "metadata" / "metadata_1.parquet").unlink()
    with pytest.raises(SourceError, match="300 embeddings and 200 rows of metadata"), opened(embeddings):
        pass


def test_the_manifest_of_an_index_names_its_embeddings(embeddings: Path) -> None:
    manifest = json.loads((index_of(embeddings, "Flat") / "manifest.json").read_text())
    assert manifest["embeddings_folder"] == "../embeddings"
