"""Embeddings folders to index folders: what appears, what stays, and that row r is id r."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.errors import ClipRetrievalError, ConfigError, IndexBuildError
from clip_retrieval.layout import IndexFolder
from clip_retrieval.search.index import open_index

Rows = Callable[..., NDArray[np.float32]]
WriteRun = Callable[..., Path]
UPSTREAM_KEYS = {
    "index_key", "index_param", "index_path", "size in bytes", "avg_search_speed_ms", "99p_search_speed_ms",
    "reconstruction error %", "nb vectors", "vectors dimension", "compression ratio",
}  # fmt: skip
EMPTY = [3, 17, 30]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def best(folder: Path, query: NDArray[np.float32], modality: Any = "image") -> int:
    return int(open_index(IndexFolder(str(folder)), modality).search(query, 1).ids[0])


@pytest.fixture(scope="module", params=["autofaiss", "faiss"])
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, unit_rows: Rows, write_run: WriteRun
) -> tuple[Path, NDArray[np.float32], NDArray[np.float32]]:
    """Give an index folder of 31 samples in 4 partitions of which 3 lack their picture, and the rows in it."""
    folder = tmp_path_factory.mktemp(request.param)
    images, texts = unit_rows(31), unit_rows(31, seed=1)
    images[EMPTY] = 0
    cuts = [10, 10, 20]
    emb = write_run(folder / "emb", np.split(images.astype(np.float16), cuts), np.split(texts.astype(np.float16), cuts))
    clip_index(str(emb), str(folder / "ix"), engine=request.param, nb_cores=1)
    return folder / "ix", images, texts


Built = tuple[Path, NDArray[np.float32], NDArray[np.float32]]


def test_the_folder_holds_indices_infos_metadata_and_manifest_and_nothing_else(built: Built) -> None:
    names = sorted(str(path.relative_to(built[0])) for path in built[0].rglob("*") if path.is_file())
    assert names == [
        "image.checksums.npy", "image.empty.npy", "image.index", "image.json", "manifest.json", "metadata.arrow",
        "metadata/metadata_0.parquet", "metadata/metadata_1.parquet", "metadata/metadata_2.parquet",
        "metadata/metadata_3.parquet", "text.checksums.npy", "text.index", "text.json",
    ]  # fmt: skip


def test_image_json_has_the_keys_of_clip_retrieval_2(built: Built) -> None:
    info = read_json(built[0] / "image.json")
    of_ours = set() if "autofaiss" in built[0].parent.name else {"plan"}
    assert set(info) == UPSTREAM_KEYS | {"quality"} | of_ours
    assert info["quality"]["image"]["recall@10"] == info["quality"]["text"]["recall@10"] == 1
    assert (info["nb vectors"], info["vectors dimension"]) == (31, 16)
    assert info["index_path"] == str(built[0] / "image.index")
    assert info["size in bytes"] == pytest.approx((built[0] / "image.index").stat().st_size, abs=64)


def test_plain_faiss_opens_the_index_and_ids_are_rows(built: Built) -> None:
    folder, images, _ = built
    index = faiss.read_index(str(folder / "image.index"))
    filled = np.setdiff1d(np.arange(31), EMPTY)
    assert index.ntotal == 31
    assert index.search(images[filled], 1)[1][:, 0].tolist() == filled.tolist()


def test_rows_without_a_picture_are_never_hits_and_still_found_by_their_text(built: Built) -> None:
    folder, images, texts = built
    found = open_index(IndexFolder(str(folder)), "image").search(images[0], 1000)
    assert not np.isin(found.ids, EMPTY).any()
    assert len(found.ids) == 28
    assert best(folder, texts[3], "text") == 3


def test_the_manifest_names_the_encoder_and_the_rows(built: Built) -> None:
    manifest = read_json(built[0] / "manifest.json")
    assert manifest["encoder"]["fingerprint"] == "hash-16-0"
    assert manifest["indices"]["text"]["rows"] == 31
    assert manifest["indices"]["image"]["dimension"] == 16


@pytest.mark.parametrize("engine", ["autofaiss", "faiss"])
def test_ids_are_rows_over_the_many_small_files_that_row_numbers_count(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, engine: str
) -> None:
    rows = unit_rows(60)
    cuts = [1, 1, 2, 5, 6, 9, 9, 10, 20, 33, 59]
    emb = write_run(tmp_path / "emb", np.split(rows.astype(np.float16), cuts), manifest=False)
    (emb / "img_emb" / "backup").mkdir()
    np.save(emb / "img_emb" / "backup" / "a.npy", unit_rows(7, seed=2))  # which is none of them
    clip_index(str(emb), str(tmp_path / "ix"), engine=engine, nb_cores=1)
    assert faiss.read_index(str(tmp_path / "ix" / "image.index")).ntotal == 60
    assert [best(tmp_path / "ix", row) for row in rows] == list(range(60))


@pytest.mark.parametrize("name", ["100% of ünï {0..3}", "run [1] a*b"])
def test_folders_may_have_any_name(tmp_path: Path, unit_rows: Rows, write_run: WriteRun, name: str) -> None:
    emb = write_run(tmp_path / name, [unit_rows(5)])
    clip_index(str(emb), str(tmp_path / f"ix {name}"), engine="autofaiss", nb_cores=1)
    assert best(tmp_path / f"ix {name}", unit_rows(5)[2]) == 2


@pytest.mark.parametrize(
    ("engine", "dtype"),
    [
        *(("faiss", kind) for kind in ("<f2", "<f4", "<f8", ">f4")),
        *(("autofaiss", kind) for kind in ("<f2", "<f8", ">f4")),
    ],
)
def test_every_floating_type_is_indexed(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, engine: str, dtype: str
) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(5).astype(dtype)])
    clip_index(str(emb), str(tmp_path / "ix"), engine=engine, nb_cores=1)
    assert best(tmp_path / "ix", unit_rows(5)[2]) == 2


def test_a_folder_in_upstreams_layout_without_manifest_is_built(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    rows = unit_rows(9)
    emb = write_run(tmp_path / "emb", np.split(rows.astype(np.float16), 3), manifest=False)
    (emb / "stats").mkdir()
    (emb / "stats" / "0.json").write_text("{}")
    clip_index(str(emb), str(tmp_path / "ix"), engine="faiss")
    assert best(tmp_path / "ix", rows[7]) == 7
    assert read_json(tmp_path / "ix" / "manifest.json")["encoder"] is None


def test_other_subfolders_may_be_named(tmp_path: Path, unit_rows: Rows) -> None:
    (tmp_path / "emb" / "clip_images").mkdir(parents=True)
    np.save(tmp_path / "emb" / "clip_images" / "0.npy", unit_rows(4))
    clip_index(str(tmp_path / "emb"), str(tmp_path / "ix"), image_subfolder="clip_images", engine="faiss")
    assert best(tmp_path / "ix", unit_rows(4)[1]) == 1


def test_metadata_is_left_out_when_it_is_not_wanted(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(4)])
    clip_index(str(emb), str(tmp_path / "ix"), copy_metadata=False, engine="faiss")
    assert not (tmp_path / "ix" / "metadata").exists()


def test_embeddings_and_index_may_lie_in_any_store(unit_rows: Rows, tmp_path: Path, write_run: WriteRun) -> None:
    from fsspec.implementations.memory import MemoryFileSystem  # noqa: PLC0415

    emb = write_run(tmp_path / "emb", [unit_rows(4), unit_rows(4, seed=1)])
    MemoryFileSystem().put(str(emb), "/built-emb", recursive=True)
    clip_index("memory://built-emb", "memory://built-ix", engine="faiss")
    found = open_index(IndexFolder("memory://built-ix"), "image").search(unit_rows(4, seed=1)[2], 1)
    assert found.ids.tolist() == [6]


def test_a_rerun_replaces_everything_of_the_older_index(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    old = write_run(tmp_path / "old", np.split(unit_rows(12), 12), label="old")
    new = write_run(tmp_path / "new", [unit_rows(3, seed=1)], label="new")
    clip_index(str(old), str(tmp_path / "ix"), engine="faiss")
    clip_index(str(new), str(tmp_path / "ix"), engine="faiss")
    captions = [pd.read_parquet(path).caption.tolist() for path in sorted((tmp_path / "ix" / "metadata").iterdir())]
    assert captions == [["new 0", "new 1", "new 2"]]
    assert best(tmp_path / "ix", unit_rows(3, seed=1)[2]) == 2


def test_a_rerun_forgets_the_empty_rows_of_the_older_index(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    holed = unit_rows(5)
    holed[2] = 0
    clip_index(str(write_run(tmp_path / "old", [holed])), str(tmp_path / "ix"), engine="faiss")
    clip_index(str(write_run(tmp_path / "new", [unit_rows(5)])), str(tmp_path / "ix"), engine="faiss")
    assert best(tmp_path / "ix", unit_rows(5)[2]) == 2


@pytest.mark.parametrize("texts", ["absent", "zero"])
def test_a_rerun_without_captions_removes_the_older_text_index(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, texts: str
) -> None:
    old = write_run(tmp_path / "old", [unit_rows(5)], [unit_rows(5)])
    new = write_run(tmp_path / "new", [unit_rows(3)], [np.zeros((3, 16), np.float16)] if texts == "zero" else [])
    clip_index(str(old), str(tmp_path / "ix"), engine="faiss")
    clip_index(str(new), str(tmp_path / "ix"), engine="faiss")
    assert not (tmp_path / "ix" / "text.index").exists()
    assert not (tmp_path / "ix" / "text.json").exists()


def test_captions_that_are_all_missing_give_an_image_index_and_no_text_index(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(5)], [np.zeros((5, 16), np.float16)])
    result = clip_index(str(emb), str(tmp_path / "ix"), engine="faiss")
    assert list(result.infos) == ["image"]
    assert not (tmp_path / "ix" / "text.index").exists()


def test_a_few_embeddings_among_many_rows_are_indexed_and_found(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    rows = np.zeros((20_000, 512), np.float32)
    rows[5::2_000] = unit_rows(10, 512)
    emb = write_run(tmp_path / "emb", np.split(rows, [7_000]))
    clip_index(str(emb), str(tmp_path / "ix"))
    hits = open_index(IndexFolder(str(tmp_path / "ix")), "image").search(rows[2_005], 20)
    assert hits.ids[0] == 2_005
    assert sorted(hits.ids) == list(range(5, 20_000, 2_000))


def test_an_index_does_not_replace_the_metadata_of_other_embeddings(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    emb, other = write_run(tmp_path / "emb", [unit_rows(30)]), write_run(tmp_path / "other", [unit_rows(50)])
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    with pytest.raises(IndexBuildError, match="other has embeddings in img_emb; give the index its own folder"):
        clip_index(str(emb), str(other))
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before


def test_embeddings_that_are_all_zero_are_refused(tmp_path: Path, write_run: WriteRun) -> None:
    emb = write_run(tmp_path / "emb", [np.zeros((5, 16), np.float16)])
    with pytest.raises(IndexBuildError, match=r"every embedding in .* is zero"):
        clip_index(str(emb), str(tmp_path / "ix"), engine="faiss")


def test_a_build_that_fails_leaves_the_older_index_as_it_was(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    clip_index(str(write_run(tmp_path / "old", [unit_rows(5)])), str(tmp_path / "ix"), engine="faiss")
    before = {path.name: path.read_bytes() for path in (tmp_path / "ix").rglob("*") if path.is_file()}
    new = write_run(tmp_path / "new", [unit_rows(3, seed=1)], [np.full((3, 16), np.nan, np.float16)])
    with pytest.raises(IndexBuildError, match="not finite"):
        clip_index(str(new), str(tmp_path / "ix"), engine="faiss")
    assert {path.name: path.read_bytes() for path in (tmp_path / "ix").rglob("*") if path.is_file()} == before


def test_an_index_built_into_the_embeddings_folder_spoils_no_manifest(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(5)])
    before = (emb / "manifest.json").read_bytes()
    with contextlib.suppress(ClipRetrievalError):  # refusing would be as good
        clip_index(str(emb), str(emb), engine="faiss")
    assert (emb / "manifest.json").read_bytes() == before


def test_copies_of_other_rows_do_not_stay_beside_an_index_without_copies(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (write_run(tmp_path / name, [unit_rows(count)]) for name, count in (("a", 20), ("b", 40)))
    clip_index(str(first), str(tmp_path / "ix"))
    clip_index(str(second), str(tmp_path / "ix"), copy_metadata=False)
    assert not list((tmp_path / "ix" / "metadata").glob("*.parquet"))
    assert "is not of these embeddings" in caplog.text


@pytest.mark.parametrize("key", ["IDMap,Flat", "nonsense"])
def test_a_key_that_makes_no_sense_is_refused_in_a_sentence(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, key: str
) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(20)])
    with pytest.raises(ConfigError, match=key) as refused:
        clip_index(str(emb), str(tmp_path / "ix"), index_key=key)
    assert ".cpp" not in str(refused.value)


def test_an_update_that_asks_for_another_kind_builds_it(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(200)])
    clip_index(str(emb), str(tmp_path / "ix"))
    built = clip_index(str(emb), str(tmp_path / "ix"), index_key="HNSW8", update=True)
    assert built.infos["image"]["index_key"] == "HNSW8"


@pytest.mark.parametrize("key", ["HNSW0", "IVF0,Flat", "OPQ0,IVF4,PQ4"])
def test_a_key_that_faiss_would_die_of_is_refused(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, key: str
) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(20)])
    with pytest.raises(ConfigError, match="has no lists, links or codes"):
        clip_index(str(emb), str(tmp_path / "ix"), index_key=key)


def test_a_folder_that_is_named_must_be_there(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(20)])
    with pytest.raises(IndexBuildError, match=r"holds no nope/\*\.npy, which --text_subfolder names"):
        clip_index(str(emb), str(tmp_path / "ix"), text_subfolder="nope")


def test_vectors_that_are_harder_to_find_than_planned_are_told_of(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, caplog: pytest.LogCaptureFixture
) -> None:
    emb = write_run(tmp_path / "emb", [unit_rows(8000, 64)])  # in no clusters, unlike those of any model
    clip_index(str(emb), str(tmp_path / "ample"))
    assert "finds less than expected" not in caplog.text
    clip_index(str(emb), str(tmp_path / "tight"), max_index_memory_usage="250KB")
    assert "the image index finds less than expected: its recall@10 is 0." in caplog.text
