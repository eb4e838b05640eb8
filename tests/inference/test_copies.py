"""Two workers that make the same partition: the files in the end are all of one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from clip_retrieval import clip_inference
from clip_retrieval.cli import cli
from clip_retrieval.inference.output.sink import Sink
from clip_retrieval.inference.summary import RunSummary

PARTS = ("img_emb", "text_emb", "failures", "ledger", "stats", "metadata")


def embed(photos: Path, output: Path, **options: object) -> RunSummary:
    return clip_inference(str(photos), str(output), clip_model="hash:16?size=32", num_prepro_workers=0, **options)


def times(output: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for part in PARTS for path in (output / part).iterdir()}


@pytest.mark.parametrize("is_retry", [False, True])
def test_a_worker_that_comes_late_leaves_the_files_of_the_other(
    tmp_path: Path,
    write_pictures: Callable[[Path, int], Path],
    monkeypatch: pytest.MonkeyPatch,
    is_retry: bool,
) -> None:
    photos, output = write_pictures(tmp_path / "photos", 3), tmp_path / "output"
    if is_retry:
        real = (photos / "00000.jpg").read_bytes()
        (photos / "00000.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        embed(photos, output)
        (photos / "00000.jpg").write_bytes(real)
    finish, of_the_other = Sink.finish, dict[Path, int]()

    def be_overtaken(sink: Sink) -> None:
        monkeypatch.setattr(Sink, "finish", finish)
        embed(photos, output)
        of_the_other.update(times(output))
        finish(sink)

    monkeypatch.setattr(Sink, "finish", be_overtaken)
    embed(photos, output)

    assert of_the_other
    assert times(output) == of_the_other
    assert len(np.load(output / "img_emb" / "img_emb_0.npy")) == 3


def test_embeddings_of_no_rows_are_found_by_a_check_and_mended_by_an_update(
    tmp_path: Path, write_pictures: Callable[[Path, int], Path]
) -> None:
    photos, output = write_pictures(tmp_path / "photos", 1), tmp_path / "output"
    embed(photos, output, output_partition_count=2)
    stray = output / "img_emb" / "img_emb_0.npy"
    assert not stray.exists()
    np.save(stray, np.zeros((3, 16), np.float16))

    def check() -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["status", str(output), "--check"], env={"COLUMNS": "400"})
        return done.exit_code, done.output

    code, said = check()
    assert code == 1
    assert "img_emb_0.npy" in said
    assert "should hold 0 x 16" in said
    embed(photos, output, update=True)
    assert check()[0] == 0


def test_a_partition_that_loses_all_its_rows_loses_their_embeddings(
    tmp_path: Path, write_shards: Callable[[Path, int, int], Path]
) -> None:
    shards, output = write_shards(tmp_path / "shards", 3, 2), tmp_path / "output"
    tars = Path(f"{shards}/{{000..003}}.tar")  # the last one is missing, so its partition is made again
    embed(tars, output, input_format="webdataset", output_partition_count=2)
    assert (output / "img_emb" / "img_emb_1.npy").exists()
    (shards / "002.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")

    embed(tars, output, input_format="webdataset", output_partition_count=2)

    assert [path.name for path in sorted(output.glob("*_emb/*.npy"))] == ["img_emb_0.npy", "text_emb_0.npy"]
