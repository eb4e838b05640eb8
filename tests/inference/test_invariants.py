"""What architecture.md promises of every run: row order, unit length, whole or absent, every sample accounted for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from clip_retrieval import clip_inference, load_encoder
from clip_retrieval.encoder.images import decode_image

MODEL = "hash:16?size=32"
Read = Callable[[Path, str], pd.DataFrame]
ReadEmbeddings = Callable[[Path, str], NDArray[np.float16]]
Snapshot = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def shards(tmp_path: Path, write_shards: Callable[[Path, int, int], Path]) -> Path:
    """Write 7 tars of 9 samples, one of them cut."""
    folder = write_shards(tmp_path / "shards", 7, 9)
    damaged = folder / "003.tar"
    damaged.write_bytes(damaged.read_bytes()[:9000])
    return folder


@pytest.fixture
def pictures(tmp_path: Path, write_pictures: Callable[[Path, int], Path]) -> Path:
    """Write 70 samples; some lack a caption, some have a broken picture, some both, some are captions alone."""
    folder = write_pictures(tmp_path / "pictures", 70)
    for number in range(0, 70, 7):
        (folder / f"{number:05d}.txt").unlink()
    for number in range(0, 70, 11):
        (folder / f"{number:05d}.jpg").write_bytes(b"broken")
    for number in range(1, 70, 23):
        (folder / f"{number:05d}.jpg").unlink()
    return folder


def embed(source: Path, output: Path, readers: int, device: str = "cpu", decode: str = "fast") -> dict[str, object]:
    summary = clip_inference(
        source,
        output,
        "webdataset" if source.name == "shards" else "files",
        enable_metadata=True,
        output_partition_count=3,
        batch_size=10,
        clip_model=MODEL,
        num_prepro_workers=readers,
        device=device,
        decode=decode,
    )
    return summary.to_json()


@pytest.mark.parametrize("source", ["shards", "pictures"])
def test_bytes_do_not_depend_on_processes_or_devices(
    request: pytest.FixtureRequest, tmp_path: Path, snapshot: Snapshot, source: str
) -> None:
    folder: Path = request.getfixturevalue(source)

    embed(folder, tmp_path / "0", 0)
    embed(folder, tmp_path / "1", 1)
    embed(folder, tmp_path / "3", 3)
    embed(folder, tmp_path / "two", 1, "cpu,cpu")

    expected = snapshot(tmp_path / "0")
    assert len(expected) == 12
    assert [name for name in ("1", "3", "two") if snapshot(tmp_path / name) != expected] == []
    assert (tmp_path / "two" / "manifest.json").exists()


def test_row_r_of_every_output_is_the_same_sample_in_input_order(
    tmp_path: Path, pictures: Path, read_table: Read, read_embeddings: ReadEmbeddings
) -> None:
    encoder = load_encoder(MODEL)

    embed(pictures, tmp_path / "output", 2, "cpu", "exact")

    table = read_table(tmp_path / "output", "metadata")
    images, texts = (read_embeddings(tmp_path / "output", name) for name in ("img_emb", "text_emb"))
    assert len(table) == len(images) == len(texts)
    assert list(table["key"]) == sorted(table["key"])
    for row, (path, caption) in enumerate(zip(table["image_path"], table["caption"], strict=True)):
        if images[row].any():
            pixels = encoder.info.preprocess(decode_image(Path(path).read_bytes()))
            assert np.allclose(images[row], encoder.encode_images(pixels[None])[0], atol=1e-3)
        if texts[row].any():
            assert np.allclose(texts[row], encoder.encode_texts([caption])[0], atol=1e-3)


def test_rows_have_unit_length_or_are_zero(tmp_path: Path, pictures: Path, read_embeddings: ReadEmbeddings) -> None:
    embed(pictures, tmp_path / "output", 0)

    for name in ("img_emb", "text_emb"):
        rows = read_embeddings(tmp_path / "output", name)
        lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
        assert rows.dtype == np.float16
        assert np.abs(lengths[lengths > 0] - 1).max() < 2e-3
        assert 0 < (lengths == 0).sum() < len(rows) / 2


def test_a_sample_without_a_part_has_null_and_zeros_and_is_named(
    tmp_path: Path, pictures: Path, read_table: Read, read_embeddings: ReadEmbeddings
) -> None:
    embed(pictures, tmp_path / "output", 0)

    table, failures = read_table(tmp_path / "output", "metadata"), read_table(tmp_path / "output", "failures")
    texts = read_embeddings(tmp_path / "output", "text_emb")
    images = read_embeddings(tmp_path / "output", "img_emb")
    kept = failures[failures["row_kept"] & (failures["part"] == "image")]
    assert texts.any(axis=1).tolist() == table["caption"].notna().tolist()
    assert (~images.any(axis=1)).sum() == len(kept)


@pytest.mark.parametrize("source", ["shards", "pictures"])
def test_samples_seen_are_rows_and_what_was_left_out(
    request: pytest.FixtureRequest, tmp_path: Path, read_table: Read, source: str
) -> None:
    folder: Path = request.getfixturevalue(source)

    summary = embed(folder, tmp_path / "output", 0)

    failures = read_table(tmp_path / "output", "failures")
    left_out = failures[~failures["row_kept"] & ~failures["part"].isin(["shard", "other"])]["key"].nunique()
    rows = len(read_table(tmp_path / "output", "metadata"))
    assert summary["sample_count"] == rows
    assert summary["skipped_count"] == left_out
    assert sum(dict(summary["reasons"]).values()) == len(failures)  # type: ignore[call-overload]
    if source == "pictures":
        assert rows + left_out == 70


def test_require_all_names_every_sample_that_it_leaves_out(tmp_path: Path, pictures: Path, read_table: Read) -> None:
    output = tmp_path / "output"

    clip_inference(pictures, output, clip_model=MODEL, num_prepro_workers=0, require_all=True)

    table, failures = read_table(output, "metadata"), read_table(output, "failures")
    assert table["caption"].notna().all()
    assert not failures["row_kept"].any()
    assert set(failures["reason"]) == {"no_caption", "decode", "no_image"}
    assert len(table) + failures["key"].nunique() == 70


@pytest.mark.parametrize("count", [1, 9, 10, 11])
@pytest.mark.parametrize("readers", [0, 2])
def test_counts_around_the_batch_size_lose_no_row(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path], read_table: Read, count: int, readers: int
) -> None:
    folder, output = write_pictures(tmp_path / "pictures", count), tmp_path / "output"

    clip_inference(folder, output, clip_model=MODEL, num_prepro_workers=readers, batch_size=10)

    assert list(read_table(output, "metadata")["caption"]) == [f"picture number {i}" for i in range(count)]


@pytest.mark.parametrize("batch_size", [1, 15, 16, 17, 64])
def test_the_batch_size_moves_no_row(
    tmp_path: Path, pictures: Path, read_table: Read, read_embeddings: ReadEmbeddings, batch_size: int
) -> None:
    clip_inference(pictures, tmp_path / "a", clip_model=MODEL, num_prepro_workers=0)

    clip_inference(pictures, tmp_path / "b", clip_model=MODEL, num_prepro_workers=0, batch_size=batch_size)

    for name in ("metadata", "failures"):
        first_table, second_table = (read_table(tmp_path / run, name) for run in "ab")
        columns = [column for column in first_table if column != "detail"]
        pd.testing.assert_frame_equal(first_table[columns], second_table[columns])
    for name in ("img_emb", "text_emb"):
        first, second = (read_embeddings(tmp_path / run, name) for run in "ab")
        assert np.allclose(first, second, atol=1e-3)


def test_a_partition_without_a_row_has_no_embeddings_but_is_done(
    tmp_path: Path, write_shards: Callable[[Path, int, int], Path]
) -> None:
    shards, output = write_shards(tmp_path / "shards", 2, 2), tmp_path / "output"
    (shards / "000.tar").write_bytes(b"")

    clip_inference(shards, output, "webdataset", clip_model=MODEL, num_prepro_workers=0, output_partition_count=2)

    assert [path.name for path in (output / "img_emb").iterdir()] == ["img_emb_1.npy"]
    assert pq.read_table(output / "metadata" / "metadata_0.parquet").num_rows == 0
    assert pq.read_table(output / "failures" / "failures_0.parquet").num_rows == 1


def test_more_partitions_than_samples_lose_nothing(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path], read_table: Read
) -> None:
    folder, output = write_pictures(tmp_path / "pictures", 3), tmp_path / "output"

    clip_inference(folder, output, clip_model=MODEL, num_prepro_workers=0, output_partition_count=12)

    assert len(list((output / "metadata").iterdir())) == 12
    assert len(read_table(output, "metadata")) == 3


def test_names_of_files_have_the_digits_of_the_contract(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path]
) -> None:
    folder, output = write_pictures(tmp_path / "pictures", 10), tmp_path / "output"

    clip_inference(folder, output, clip_model=MODEL, num_prepro_workers=0, output_partition_count=10)

    names = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert {"img_emb/img_emb_00.npy", "text_emb/text_emb_09.npy", "metadata/metadata_00.parquet"} <= names
    assert {"failures/failures_09.parquet", "stats/0.json", "stats/9.json", "manifest.json"} <= names
    assert len(names) == 61
