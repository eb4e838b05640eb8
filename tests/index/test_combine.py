"""Merging: the merged index finds what one index of all rows finds; what cannot be merged is refused in a sentence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from clip_retrieval import clip_index
from clip_retrieval.cli import cli
from clip_retrieval.errors import ClipRetrievalError, StorageError
from clip_retrieval.index.building.parts import add_rows
from clip_retrieval.index.combine import combine_folder, run_combine
from clip_retrieval.index.config import CombineConfig, ScoreConfig
from clip_retrieval.index.score import run_score
from clip_retrieval.layout import IndexFolder
from clip_retrieval.metadata import count_rows
from clip_retrieval.search.index import Index, open_index
from clip_retrieval.search.settings import Settings, parse_settings, settings_of
from clip_retrieval.search.stored_settings import store_settings

Rows = Callable[..., NDArray[np.float32]]
WriteRun = Callable[..., Path]
SameHits = Callable[..., None]

COUNT, DIM, CUT = 1500, 16, 601
WIDE = {"nprobe": 16, "k_factor_rf": 4}
KEYS = [
    "Flat", "SQ8", "IVF16,Flat", "RR16,IVF16,SQ8", "IVF16,PQ8x4fs", "IVF16,SQ4,Refine(SQ8)",
    "RR16,IVF16,PQ8x4fs,RFlat", "RR16,IVF16,PQ8x4fs,Refine(RR16,PQ16x4np)", "IVF16,RaBitQ", "PQ8x4fs", "PQ8x4fs,RFlat",
]  # fmt: skip


def make_rows() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((COUNT, DIM)).astype(np.float32)


def write_parts(folder: Path, key: str, *, is_global: bool = False) -> Any:
    """Write two parts that were trained together; return the index of all rows."""
    rows = make_rows()
    trained = faiss.index_factory(DIM, key, faiss.METRIC_INNER_PRODUCT)
    trained.train(rows)
    data = faiss.serialize_index(trained)
    folder.mkdir(parents=True, exist_ok=True)
    for name, start, stop in (("part-0.index", 0, CUT), ("part-1.index", CUT, COUNT)):
        part = faiss.deserialize_index(data)
        if is_global:
            part.add_with_ids(rows[start:stop], np.arange(start, stop))
        else:
            part.add(rows[start:stop])
        faiss.write_index(part, str(folder / name))
    whole = faiss.deserialize_index(data)
    whole.add(rows)
    return whole


def check_same(folder: Path, whole: Any, same_hits: SameHits) -> None:
    merged, wanted = open_index(IndexFolder(str(folder)), "image"), Index(whole, np.empty(0, np.int64))
    settings = Settings({name: value for name, value in WIDE.items() if name in wanted.known_settings})
    for query in make_rows()[:20]:
        found, best = (index.search(query, 10, settings) for index in (merged, wanted))
        same_hits((found.scores[None], found.ids[None]), (best.scores[None], best.ids[None]))


@pytest.mark.parametrize("key", KEYS)
def test_merged_in_memory_it_finds_what_one_index_finds(tmp_path: Path, same_hits: SameHits, key: str) -> None:
    whole = write_parts(tmp_path / "parts", key)
    result = run_combine(CombineConfig(input_folder=str(tmp_path / "parts"), output_folder=str(tmp_path / "out")))
    assert result.row_count == COUNT
    assert json.loads((tmp_path / "out" / "image.json").read_text())["nb vectors"] == COUNT
    check_same(tmp_path / "out", whole, same_hits)


def test_it_is_searched_as_well_as_its_parts_were(tmp_path: Path) -> None:
    write_parts(tmp_path / "parts", "IVF16,SQ4,Refine(SQ8)")
    for i, said in enumerate(("k_factor_rf=6,max_codes=0,nprobe=8", "k_factor_rf=3,max_codes=9,nprobe=12")):
        folder = tmp_path / "folders" / str(i)
        folder.mkdir(parents=True)
        (tmp_path / "parts" / f"part-{i}.index").rename(folder / "image.index")
        (folder / "image.json").write_text(json.dumps({"index_param": said, "index_key": "IVF16,SQ4,Refine(SQ8)"}))
    run_combine(CombineConfig(input_folder=str(tmp_path / "folders"), output_folder=str(tmp_path / "out")))
    info = json.loads((tmp_path / "out" / "image.json").read_text())
    assert info["index_param"] == "k_factor_rf=6,max_codes=0,nprobe=12"
    assert info["index_key"] == "IVF16,SQ4,Refine(SQ8)"
    assert settings_of(faiss.read_index(str(tmp_path / "out" / "image.index"))) == parse_settings(info["index_param"])


@pytest.mark.parametrize("on_disk", [True, False])
def test_settings_in_the_files_of_parts_are_taken_and_do_not_set_them_apart(tmp_path: Path, on_disk: bool) -> None:
    write_parts(tmp_path / "parts", "IVF16_HNSW8,SQ8")
    for name, text in (("part-0", "nprobe=3,quantizer_efSearch=20"), ("part-1", "nprobe=5,quantizer_efSearch=9")):
        store_settings(tmp_path / "parts" / f"{name}.index", parse_settings(text))
    parts, out = str(tmp_path / "parts"), str(tmp_path / "out")
    run_combine(CombineConfig(input_folder=parts, output_folder=out, on_disk=on_disk))
    path = tmp_path / "out" / "image.index"
    file = str(path / "populated.index" if on_disk else path)
    found = settings_of(faiss.read_index(file, faiss.IO_FLAG_ONDISK_SAME_DIR))
    assert (found["nprobe"], found["quantizer_efSearch"]) == (5, 20)


def test_an_index_with_lists_on_disk_is_tuned_in_its_file(tmp_path: Path) -> None:
    write_parts(tmp_path / "parts", "IVF16,Flat")
    (tmp_path / "embeddings" / "img_emb").mkdir(parents=True)
    np.save(tmp_path / "embeddings" / "img_emb" / "img_emb_0.npy", make_rows())
    out = tmp_path / "out"
    run_combine(CombineConfig(input_folder=str(tmp_path / "parts"), output_folder=str(out), on_disk=True))
    lists = (out / "image.index" / "merged_index.ivfdata").read_bytes()
    run_score(ScoreConfig(index_folder=str(out), embeddings_folder=str(tmp_path / "embeddings"), tune=True))

    found = faiss.read_index(str(out / "image.index" / "populated.index"), faiss.IO_FLAG_ONDISK_SAME_DIR)
    said = json.loads((out / "image.json").read_text())["index_param"]
    assert found.nprobe == parse_settings(said)["nprobe"] > 1
    assert (out / "image.index" / "merged_index.ivfdata").read_bytes() == lists
    assert not (out / "image.index" / "merged_index.ivfdata").is_symlink()


@pytest.mark.parametrize("is_global", [True, False])
@pytest.mark.parametrize("key", ["IVF16,Flat", "RR16,IVF16,SQ8"])
def test_merged_on_disk_it_finds_the_same_and_may_be_moved(
    tmp_path: Path, same_hits: SameHits, key: str, is_global: bool
) -> None:
    if key.startswith("RR") and is_global:
        pytest.skip("faiss adds no ids below a transformation here")
    whole = write_parts(tmp_path / "parts", key, is_global=is_global)
    out = tmp_path / "out"
    run_combine(CombineConfig(input_folder=str(tmp_path / "parts"), output_folder=str(out), on_disk=True))
    assert sorted(path.name for path in (out / "image.index").iterdir()) == ["merged_index.ivfdata", "populated.index"]
    moved = out.rename(tmp_path / "moved")
    check_same(moved, whole, same_hits)
    assert CliRunner().invoke(cli, ["index", "info", str(moved)]).exit_code == 0


@pytest.mark.parametrize("by_flags", [True, False])
def test_the_command_of_clip_retrieval_2_takes_index_files_only(
    tmp_path: Path, same_hits: SameHits, by_flags: bool
) -> None:
    whole = write_parts(tmp_path / "index-parts", "IVF16,Flat", is_global=True)
    (tmp_path / "index-parts" / "image.json").write_text("{}")
    target = tmp_path / "out" / "image.index"
    flags = ["--input_folder", str(tmp_path / "index-parts"), "--output_folder", str(target)]
    result = CliRunner().invoke(cli, ["index_combiner", *(flags if by_flags else [flags[1], flags[3]])])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in target.iterdir()) == ["merged_index.ivfdata", "populated.index"]
    check_same(tmp_path / "out", whole, same_hits)


def test_a_device_among_the_parts_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "0.index").symlink_to(os.devnull)
    with pytest.raises(StorageError, match=r"0\.index is a pipe, a socket or a device"):
        run_combine(CombineConfig(input_folder=str(tmp_path), output_folder=str(tmp_path / "whole")))


def test_parts_that_were_not_trained_together_are_refused(tmp_path: Path) -> None:
    write_parts(tmp_path / "parts", "IVF16,Flat")
    other = faiss.index_factory(DIM, "IVF16,Flat", faiss.METRIC_INNER_PRODUCT)
    other.train(make_rows()[:700])
    other.add(make_rows())
    faiss.write_index(other, str(tmp_path / "parts" / "part-2.index"))
    with pytest.raises(ClipRetrievalError, match=r"part-2\.index was not trained together with part-0\.index"):
        run_combine(CombineConfig(input_folder=str(tmp_path / "parts"), output_folder=str(tmp_path / "out")))
    assert not (tmp_path / "out" / "image.index").exists()


@pytest.mark.parametrize("key", ["HNSW8", "IVF16,RaBitQfs", "RaBitQfs"])
def test_what_faiss_cannot_merge_is_refused(tmp_path: Path, key: str) -> None:
    write_parts(tmp_path / "parts", key)
    with pytest.raises(ClipRetrievalError, match=r"cannot be merged; put the files into a folder image\.index"):
        run_combine(CombineConfig(input_folder=str(tmp_path / "parts"), output_folder=str(tmp_path / "out")))


def build_two(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> NDArray[np.float32]:
    """Build an index folder of each half of 40 rows, of which three have no embedding; return the rows."""
    rows = unit_rows(40)
    rows[[3, 19, 20]] = 0
    for i, half in enumerate(np.split(rows, 2)):
        emb = write_run(tmp_path / f"emb-{i}", [half], [unit_rows(20, seed=i + 1)])
        clip_index(str(emb), str(tmp_path / "parts" / str(i)), nb_cores=1)
    return rows


def combine(tmp_path: Path, out: str, **options: Any) -> IndexFolder:
    run_combine(CombineConfig(input_folder=str(tmp_path / "parts"), output_folder=str(tmp_path / out), **options))
    return IndexFolder(str(tmp_path / out))


def test_rows_without_an_embedding_stay_no_hits(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    rows = build_two(tmp_path, unit_rows, write_run)
    folder = combine(tmp_path, "out")
    found = open_index(folder, "image").search(rows[0], 100)
    assert sorted(found.ids) == sorted(set(range(40)) - {3, 19, 20})
    assert open_index(folder, "image").row_count == 40
    assert folder.read_json("manifest.json")["encoder"]["fingerprint"] == "hash-16-0"
    combine(tmp_path, "out", modality="text")
    assert len(open_index(folder, "image").search(rows[0], 100).ids) == 37
    assert len(open_index(folder, "text").search(rows[0], 100).ids) == 40


def test_an_output_among_the_parts_is_refused_and_stays(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    build_two(tmp_path, unit_rows, write_run)
    combine(tmp_path, "parts/all")
    taken = sorted(path.parent.name for path in (tmp_path / "parts").glob("*/image.index"))
    before = {name: (tmp_path / "parts" / name / "image.index").read_bytes() for name in taken}
    assert len(taken) == 3
    for name in taken:
        with pytest.raises(ClipRetrievalError, match="is among the parts and already holds an index"):
            combine(tmp_path, f"parts/{name}")
    assert {name: (tmp_path / "parts" / name / "image.index").read_bytes() for name in taken} == before


def test_what_was_merged_before_is_replaced_if_so_wanted(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    build_two(tmp_path, unit_rows, write_run)
    combine(tmp_path, "parts/all")
    write_parts(tmp_path / "other", "Flat")
    config = CombineConfig(input_folder=str(tmp_path / "other"), output_folder=str(tmp_path / "parts" / "all"))
    before = (tmp_path / "parts" / "all" / "image.index").read_bytes()
    with pytest.raises(ClipRetrievalError, match=r"already has an image\.index; .* give --overwrite True"):
        run_combine(config)
    assert (tmp_path / "parts" / "all" / "image.index").read_bytes() == before
    run_combine(replace(config, overwrite=True))
    index = open_index(IndexFolder(str(tmp_path / "parts" / "all")), "image")
    assert (index.row_count, len(index.empty_rows)) == (COUNT, 0)


def test_metadata_that_is_not_there_is_told(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, caplog: pytest.LogCaptureFixture
) -> None:
    build_two(tmp_path, unit_rows, write_run)
    combine(tmp_path, "out")
    assert "out has no metadata, since it is not merged: hits are only ids and scores" in caplog.text
    caplog.clear()
    copy_metadata(tmp_path, "0", "1")
    combine(tmp_path, "out", overwrite=True)
    assert "metadata" not in caplog.text


def copy_metadata(folder: Path, *parts: str) -> None:
    """Put the metadata of some parts beside the merged index."""
    (folder / "out" / "metadata").mkdir(parents=True)
    for part in parts:
        for path in (folder / "parts" / part / "metadata").glob("*.parquet"):
            shutil.copy(path, folder / "out" / "metadata" / f"{part}-{path.name}")


@pytest.mark.parametrize("says_rows", [True, False])
def test_an_index_of_other_rows_than_the_metadata_replaces_nothing(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun, says_rows: bool
) -> None:
    build_two(tmp_path, unit_rows, write_run)
    if not says_rows:
        for path in (tmp_path / "parts").glob("*/manifest.json"):
            path.unlink()
    copy_metadata(tmp_path, "0")
    count = count_rows(IndexFolder(str(tmp_path / "out")))
    path = tmp_path / "out" / "image.index"
    path.write_bytes(b"an earlier index")
    with pytest.raises(ClipRetrievalError, match=rf"has {count} rows of metadata, and the merged index \d+: put the"):
        combine(tmp_path, "out", overwrite=True)
    assert path.read_bytes() == b"an earlier index"
    assert sorted(found.name for found in (tmp_path / "out").iterdir()) == ["image.index", "metadata"]


def test_the_options_of_the_other_index_in_the_folder_are_kept(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    build_two(tmp_path, unit_rows, write_run)
    emb = write_run(tmp_path / "more", texts=[unit_rows(40)])
    clip_index(str(emb), str(tmp_path / "out"), max_index_memory_usage="5MB")
    combine(tmp_path, "out", modality="image")
    manifest = IndexFolder(str(tmp_path / "out")).read_json("manifest.json")
    assert sorted(manifest["indices"]) == ["image", "text"]
    assert manifest["options"]["max_index_memory_usage"] == "5MB"


def test_indices_of_different_models_are_not_merged(tmp_path: Path, unit_rows: Rows, write_run: WriteRun) -> None:
    build_two(tmp_path, unit_rows, write_run)
    path = tmp_path / "parts" / "1" / "manifest.json"
    path.write_text(path.read_text().replace("hash-16-0", "hash-16-1"))
    with pytest.raises(ClipRetrievalError, match=r"parts/1 and .*parts/0 hold embeddings of different models"):
        combine(tmp_path, "out")
    assert not (tmp_path / "out").exists()


def test_pictures_and_captions_of_one_folder_are_not_mixed(
    tmp_path: Path, unit_rows: Rows, write_run: WriteRun
) -> None:
    build_two(tmp_path, unit_rows, write_run)
    (tmp_path / "parts").rename(tmp_path / "both")
    (tmp_path / "both" / "0").rename(tmp_path / "parts")
    assert open_index(combine(tmp_path, "out"), "image").row_count == 20


def test_refined_parts_that_begin_or_end_without_an_embedding_keep_their_ids(tmp_path: Path) -> None:
    rows = make_rows()
    trained = faiss.index_factory(DIM, "IVF16,SQ4,Refine(SQ8)", faiss.METRIC_INNER_PRODUCT)
    trained.train(rows)
    rows[[CUT - 1, CUT]] = 0
    folder = tmp_path / "parts" / "image.index"
    folder.mkdir(parents=True)
    for i, part in enumerate(np.split(rows, [CUT])):
        index = faiss.clone_index(trained)
        add_rows(index, part, 0, np.flatnonzero(part.any(axis=1)))
        faiss.write_index(index, str(folder / f"{i}.index"))
    index = open_index(combine(tmp_path, "out"), "image")
    settings = Settings({"nprobe": 16, "k_factor_rf": 64})
    for row in (0, CUT - 2, CUT + 1, COUNT - 1):
        assert row in index.search(rows[row], 3, settings).ids


@pytest.mark.parametrize("on_disk", [True, False])
def test_files_whose_last_rows_have_no_embedding_begin_where_the_json_file_says(tmp_path: Path, on_disk: bool) -> None:
    write_parts(tmp_path / "parts" / "image.index", "IVF16,Flat")
    starts = [0, CUT + 3]
    parts = [{"file": f"part-{i}.index", "first_row": start} for i, start in enumerate(starts)]
    (tmp_path / "parts" / "image.json").write_text(json.dumps({"parts": parts, "index_param": "nprobe=16"}))
    rows, merged = make_rows(), open_index(combine(tmp_path, "out", on_disk=on_disk), "image")
    parts[1]["first_row"] = CUT - 1
    (tmp_path / "wrong").mkdir()
    shutil.copytree(tmp_path / "parts" / "image.index", tmp_path / "wrong" / "image.index")
    (tmp_path / "wrong" / "image.json").write_text(json.dumps({"parts": parts}))
    with pytest.raises(ClipRetrievalError, match=rf"begin at 0 and those of part-1.index at {CUT - 1:,}: then both"):
        run_combine(CombineConfig(input_folder=str(tmp_path / "wrong"), output_folder=str(tmp_path / "none")))
    apart = open_index(IndexFolder(str(tmp_path / "parts")), "image")
    for index in (apart, merged):
        for row, wanted in ((0, 0), (CUT - 1, CUT - 1), (CUT, CUT + 3), (COUNT - 1, COUNT + 2)):
            hits = index.search(rows[row], 100)
            assert hits.scores[hits.ids == wanted] == pytest.approx(rows[row] @ rows[row], rel=1e-5)


def test_lists_of_fast_scan_are_merged_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(tmp_path / "parts", "RR16,IVF16,PQ8x4fs")
    monkeypatch.setattr("clip_retrieval.search.files.map_file", None)  # which reads them into memory
    monkeypatch.setattr("clip_retrieval.search.outlines.map_file", None)
    monkeypatch.setattr(faiss, "read_index", only_from_a_reader(faiss.read_index))
    assert run_combine(CombineConfig(input_folder=str(tmp_path / "parts"), output_folder=str(tmp_path / "out")))


def only_from_a_reader(read: Callable[..., Any]) -> Callable[..., Any]:
    def read_outline(source: Any) -> Any:
        assert not isinstance(source, str)
        return read(source)

    return read_outline


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("IVF16,PQ8x4fs", "an IndexIVFPQFastScan, whose lists of 4-bit codes faiss keeps in memory"),
        ("IVF16,SQ8,RFlat", "an IndexRefineFlat, whose lists are in memory together with the codes of the refinement"),
        ("PQ8x4fs", "an IndexPQFastScan, which has no lists"),
    ],
)
def test_why_lists_are_not_for_a_disk_is_told(tmp_path: Path, key: str, why: str) -> None:
    write_parts(tmp_path / "parts", key)
    with pytest.raises(ClipRetrievalError, match=f"is {why}; use --on_disk False"):
        combine_folder(str(tmp_path / "parts"), str(tmp_path / "out"))


def merge_on_disk_as_ours(parts: str, out: str) -> object:
    return run_combine(CombineConfig(input_folder=parts, output_folder=out, on_disk=True))


@pytest.mark.parametrize("there", [[], ["above", "out"]])
@pytest.mark.parametrize("combine", [merge_on_disk_as_ours, combine_folder])
def test_a_refusal_leaves_no_folder_that_was_not_there(tmp_path: Path, combine: Any, there: list[str]) -> None:
    write_parts(tmp_path / "parts", "IVF16,PQ8x4fs,RFlat")
    tmp_path.joinpath(*there).mkdir(parents=True, exist_ok=True)
    with pytest.raises(ClipRetrievalError, match="together with the codes of the refinement"):
        combine(str(tmp_path / "parts"), str(tmp_path / "above" / "out"))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == sorted([*there, "parts"])
