"""A folder with PDFs: a row a page, with all that holds for pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_inference
from clip_retrieval.encoder.preprocess import Preprocess
from clip_retrieval.errors import SourceError
from clip_retrieval.inference import saved_plan
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.dry_run.measure import estimate_inference
from clip_retrieval.inference.plan import open_plan
from clip_retrieval.inference.readers.loader import Loader
from clip_retrieval.inference.readers.prepare import Wanted
from clip_retrieval.inference.run import plan_only
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.media.places import PlaceRef
from clip_retrieval.options import build_config
from clip_retrieval.sources import listing, open_source, saving
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.types import Inventory, Sample

MakePdf = Callable[..., bytes]
Table = Callable[[Path, str], pd.DataFrame]
Read = Callable[[Path, str], NDArray[np.float16]]
Snapshot = Callable[[Path], dict[str, bytes]]
TWELVE = ["first page", *[""] * 10, "last page"]


def embed(folder: Path, output: Path, **options: object) -> RunSummary:
    fixed = {"clip_model": "hash:16?size=32", "num_prepro_workers": 0, "batch_size": 4}
    return clip_inference(str(folder), str(output), **{**fixed, **options})


@pytest.fixture
def papers(tmp_path: Path, make_pdf: MakePdf, make_jpeg: Callable[[int], bytes]) -> Path:
    """Give a folder of a picture, a PDF of twelve pages, a damaged one, and one with a caption beside it."""
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(make_jpeg(1))
    (folder / "b.pdf").write_bytes(make_pdf(*TWELVE))
    (folder / "c.pdf").write_bytes(b"damaged")
    (folder / "d.PDF").write_bytes(make_pdf("its own text"))
    (folder / "d.txt").write_text("the caption beside it")
    return folder


def test_each_page_is_a_row_in_place_order_with_its_text(
    papers: Path, tmp_path: Path, read_table: Table, read_embeddings: Read
) -> None:
    summary = embed(papers, tmp_path / "out")

    rows = read_table(tmp_path / "out", "metadata")
    names = [path.removeprefix(f"{papers}/") for path in rows["image_path"]]
    assert names == ["a.jpg", *(f"b.pdf#page={page}" for page in range(1, 13)), "d.PDF#page=1"]
    assert rows["page"].fillna(0).astype(int).tolist() == [0, *range(1, 13), 1]
    assert rows["caption"].dropna().tolist() == ["first page", "last page", "the caption beside it"]
    pictures = read_embeddings(tmp_path / "out", "img_emb")
    assert len({row.tobytes() for row in pictures}) == len(pictures) == 14
    failures = read_table(tmp_path / "out", "failures")
    assert failures[["key", "part", "reason"]].values.tolist() == [["c.pdf", "image", "decode"]]
    assert (summary.now.sample_count, summary.now.skipped_count) == (14, 1)


def test_bytes_do_not_depend_on_processes_or_on_where_a_document_is_cut(
    papers: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    embed(papers, tmp_path / "here", output_partition_count=3)
    embed(papers, tmp_path / "readers", output_partition_count=3, num_prepro_workers=2)
    assert snapshot(tmp_path / "here") == snapshot(tmp_path / "readers")
    parts = sorted((tmp_path / "here" / "metadata").glob("*.parquet"))
    assert [len(pd.read_parquet(part)) for part in parts] == [5, 5, 4]


def test_a_renamed_document_keeps_its_rows_and_a_changed_one_is_embedded_anew(
    papers: Path, tmp_path: Path, make_pdf: MakePdf, read_table: Table, read_embeddings: Read
) -> None:
    embed(papers, tmp_path / "out")
    before = read_embeddings(tmp_path / "out", "img_emb")
    (papers / "b.pdf").rename(papers / "renamed.pdf")
    (papers / "c.pdf").write_bytes(make_pdf("repaired", "twice"))
    (papers / "d.PDF").write_bytes(make_pdf("its own text", "and more"))

    summary = embed(papers, tmp_path / "out", update=True)

    assert summary.revised is not None
    assert summary.revised.to_json() == {"kept": 1, "renamed": 12, "embedded": 4, "removed": 1, "failing": 0}
    rows = read_table(tmp_path / "out", "metadata")
    assert [path.rpartition("/")[2] for path in rows["image_path"][1:13]] == [
        f"renamed.pdf#page={page}" for page in range(1, 13)
    ]
    assert rows["page"][1:13].tolist() == list(range(1, 13))
    assert np.array_equal(read_embeddings(tmp_path / "out", "img_emb")[:13], before[:13])
    assert read_table(tmp_path / "out", "failures").empty
    assert embed(papers, tmp_path / "out", update=True).revised == dataclasses.replace(
        summary.revised, kept=17, renamed=0, embedded=0, removed=0, stats=[]
    )


def test_texts_alone_are_those_of_the_pages(papers: Path, tmp_path: Path, make_pdf: MakePdf, read_table: Table) -> None:
    embed(papers, tmp_path / "out", enable_image=False)
    rows = read_table(tmp_path / "out", "metadata")
    assert rows["caption"].tolist() == ["first page", "last page", "the caption beside it"]
    (papers / "b.pdf").write_bytes(make_pdf("another"))
    summary = embed(papers, tmp_path / "out", enable_image=False, update=True)
    assert summary.revised is not None
    assert (summary.revised.embedded, summary.revised.removed) == (1, 2)


def test_a_run_that_is_estimated_counts_pages(papers: Path, tmp_path: Path) -> None:
    estimate = estimate_inference(
        str(papers), str(tmp_path / "out"), clip_model="hash:16?size=32", num_prepro_workers=0
    )
    assert (estimate.task.samples, estimate.task.certainty) == (15, "exact")


def test_the_first_samples_may_be_the_first_pages(papers: Path, tmp_path: Path, read_table: Table) -> None:
    embed(papers, tmp_path / "out", subset_size=4)
    assert read_table(tmp_path / "out", "metadata")["page"].dropna().tolist() == [1, 2, 3]


def test_pdfs_are_left_out_where_that_is_asked_for(papers: Path, tmp_path: Path, read_table: Table) -> None:
    embed(papers, tmp_path / "out", enable_pages=False)
    assert "page" not in read_table(tmp_path / "out", "metadata")
    failures = read_table(tmp_path / "out", "failures")
    assert failures[failures["part"] == "other"]["reason"].tolist() == ["not_an_image"] * 3
    assert set(failures[failures["part"] == "other"]["detail"].str[:26]) == {"a PDF: --input_format file"}
    summary = embed(papers, tmp_path / "out", update=True)  # it may change
    assert summary.revised is not None
    assert summary.revised.embedded == 13  # and the caption that was a row alone is that of a page


def test_a_saved_plan_reads_the_same_pages(
    papers: Path, tmp_path: Path, make_pdf: MakePdf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "UNITS_PER_BLOCK", 3)
    monkeypatch.setattr(saved_plan, "UNITS_PER_BLOCK", 3)
    options = {"clip_model": "hash:16?size=32", "output_partition_count": 3}
    config = build_config(InferenceConfig, options, [papers, tmp_path / "out"])
    planned = plan_only(config)
    (papers / "b.pdf").write_bytes(make_pdf("other"))  # opened again, its one page would show
    opened = open_plan(config, "r")
    assert opened.source.config == planned.source.config
    assert list(opened.source.read(0, 15)) == list(planned.source.read(0, 15))
    assert isinstance(opened.source, Inventory)
    assert opened.source.files_of("b.pdf#page=10")["image"].path == "b.pdf#page=10"


def test_without_the_package_each_document_is_named_with_what_to_install(
    papers: Path, tmp_path: Path, read_table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "can_read", lambda _: False)
    embed(papers, tmp_path / "out")
    rows, failures = (read_table(tmp_path / "out", name) for name in ("metadata", "failures"))
    assert "page" not in rows
    told = failures[failures["reason"] == "needs_plugin"]
    assert told["key"].tolist() == ["b.pdf", "c.pdf", "d.PDF"]
    assert "clip-retrieval[pdf]" in told["detail"].iloc[0]
    for name in ("a.jpg", "d.txt"):
        (papers / name).unlink()
    with pytest.raises(SourceError, match=r"clip-retrieval\[pdf\]"):
        open_source(SourceConfig(input_dataset=str(papers)), str(tmp_path / "other"))


def test_a_page_that_kills_its_reader_is_blamed_and_its_neighbors_are_not(papers: Path) -> None:
    source = open_source(SourceConfig(input_dataset=str(papers)), "/nowhere")
    samples = [item for item in source.read(1, 4) if isinstance(item, Sample)]
    kills = PlaceRef("pipe:kill -9 $PPID; sleep 9", 2, None, "")  # the shell's parent is the reader
    samples[1] = dataclasses.replace(samples[1], image=kills, text=kills)
    wanted = Wanted(
        image=True, text=True, metadata=False, all_parts=False, preprocess=Preprocess(8, (0.5,) * 3, (0.5,) * 3)
    )
    loader = Loader(wanted, 8, 1)
    try:
        (batch,) = loader.batches(samples)
    finally:
        loader.close()
    assert [row.key for row in batch.rows] == ["b.pdf#page=1", "b.pdf#page=3"]
    assert [(failure.key, failure.reason) for failure in batch.failures] == [("b.pdf#page=2", "killed_reader")]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"<html><body>login</body></html>", "is no PDF: it is a web page, as servers send for an error"),
        (b"PK\x03\x04" + bytes(26) + b"[Content_Types].xml", "is no PDF: it is an Office document"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "is no PDF: it is a PNG"),
        (b"%PDF-1.7\nnothing more", "is no PDF, or damaged beyond its list of pages"),
        (bytes(5000), "is no PDF, or damaged beyond its list of pages"),
    ],
)
def test_a_file_that_is_no_pdf_is_called_what_it_is(
    papers: Path, tmp_path: Path, read_table: Table, data: bytes, told: str
) -> None:
    (papers / "wrong.pdf").write_bytes(data)
    embed(papers, tmp_path / "out")
    failures = read_table(tmp_path / "out", "failures").set_index("key")
    assert (failures["reason"]["wrong.pdf"], failures["detail"]["wrong.pdf"]) == ("decode", told)
