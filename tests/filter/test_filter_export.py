"""What is written for a query: tables, the pictures themselves, and a sheet that stands alone."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from clip_retrieval import clip_filter, clip_index, clip_inference
from clip_retrieval.cli import cli
from clip_retrieval.errors import QueryError, StorageError
from clip_retrieval.filter import pictures, sheet
from clip_retrieval.query import hits as query_hits
from clip_retrieval.revision import only_one
from clip_retrieval.storage import Folder

MODEL = "hash:16?size=32"
WriteIndex = Callable[..., Path]
WriteTar = Callable[..., Path]


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def ask(query: object, out: Path, index: Path, **options: object) -> pd.DataFrame:
    return clip_filter(query, str(out), str(index), **options)


def results(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["results"]
    return found


def copies(hits: pd.DataFrame, out: Path) -> list[bytes]:
    """Return the bytes of the exported pictures, in the order of the hits."""
    return [(out / name).read_bytes() for name in hits.picture]


def embed(source: str, folder: Path, **options: object) -> Path:
    clip_inference(source, str(folder / "emb"), clip_model=MODEL, num_prepro_workers=0, **options)
    clip_index(str(folder / "emb"), str(folder / "ix"), engine="faiss")
    return folder / "ix"


@pytest.fixture
def run() -> Iterator[Callable[..., Result]]:
    """Give a function that runs the command line; the handlers that it installs are removed afterwards."""
    level = logging.getLogger("clip_retrieval").level
    yield lambda *words: CliRunner().invoke(cli, [str(word) for word in words])
    logging.getLogger().handlers.clear()
    logging.getLogger("clip_retrieval").setLevel(level)


def test_tables_hold_rank_id_similarity_picture_and_every_metadata_column(
    tmp_path: Path, write_index: WriteIndex
) -> None:
    metadata = pd.DataFrame({"caption": ["cat", "dog"], "url": ["u0", "u1"], "width": [3, 4]})
    hits = ask("dog", tmp_path / "out", write_index(tmp_path / "ix", metadata))
    table = pd.read_parquet(tmp_path / "out" / "results.parquet")
    assert table.columns.tolist() == ["rank", "id", "similarity", "picture", "caption", "url", "width"]
    pd.testing.assert_frame_equal(table, hits)
    assert results(tmp_path / "out")[0] | {"similarity": 1} == {
        "rank": 1, "id": 1, "similarity": 1, "picture": None, "caption": "dog", "url": "u1", "width": 4,
    }  # fmt: skip


def test_metadata_of_our_names_is_kept_under_another(tmp_path: Path, write_index: WriteIndex) -> None:
    metadata = pd.DataFrame({"caption": ["cat"], "id": ["x7"], "similarity": [0.25], "rank": [9], "picture": ["p"]})
    hits = ask("cat", tmp_path / "out", write_index(tmp_path / "ix", metadata))
    assert (hits.id[0], hits["rank"][0]) == (0, 1)
    theirs = [hits[f"metadata.{name}"][0] for name in ("id", "similarity", "rank", "picture")]
    assert theirs == ["x7", 0.25, 9, "p"]


def test_nan_becomes_null_and_a_text_with_nan_in_it_stays(tmp_path: Path, write_index: WriteIndex) -> None:
    metadata = pd.DataFrame({"caption": ["NaN bread", "x"], "score": [np.nan, 1.0], "far": [np.inf, 1.0]})
    metadata["many"] = pd.Series([[1.0, np.nan], [2.0]])
    ask("NaN bread", tmp_path / "out", write_index(tmp_path / "ix", metadata), num_results=1)
    (hit,) = results(tmp_path / "out")
    assert (hit["caption"], hit["score"], hit["far"], hit["many"]) == ("NaN bread", None, None, [1.0, None])
    assert not re.search(r"(?<!\")NaN(?! bread)|Infinity", (tmp_path / "out" / "results.json").read_text())


def test_metadata_of_every_type_can_be_written(tmp_path: Path, write_index: WriteIndex) -> None:
    metadata = pd.DataFrame({"caption": ["cat"], "when": [pd.Timestamp("2024-05-06")], "raw": [b"\xff\x00"]})
    metadata["about"] = pd.Series([{"site": "x", "tags": ["a"]}])
    ask("cat", tmp_path / "out", write_index(tmp_path / "ix", metadata))
    (hit,) = results(tmp_path / "out")
    assert hit["when"].startswith("2024-05-06")
    assert hit["about"] == {"site": "x", "tags": ["a"]}


def test_no_hit_is_a_normal_answer(tmp_path: Path, write_index: WriteIndex, run: Callable[..., Result]) -> None:
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat"], "url": ["u"]}))
    answer = run("filter", "dog", tmp_path / "out", index, "--threshold", "0.999")
    assert answer.exit_code == 0
    assert "no hit for 'dog'" in answer.output
    assert "similarity" not in answer.output
    assert "all of them" not in answer.output
    assert results(tmp_path / "out") == []
    assert pd.read_parquet(tmp_path / "out" / "results.parquet").columns.tolist()[-2:] == ["caption", "url"]
    assert "No hit." in (tmp_path / "out" / "index.html").read_text()


def test_pictures_of_one_base_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "in" / str(i)).mkdir(parents=True)
        (tmp_path / "in" / str(i) / "same.png").write_bytes(png(i))
    hits = ask("cat", tmp_path / "out", embed(str(tmp_path / "in"), tmp_path))
    found = copies(hits, tmp_path / "out")
    assert found == [Path(path).read_bytes() for path in hits.image_path]
    assert len(set(found)) == 3


@pytest.mark.parametrize("name", ["shard.tar", "shard.tar.gz", "shard.tgz"])
def test_pictures_in_tars_are_extracted_byte_for_byte(tmp_path: Path, write_tar: WriteTar, name: str) -> None:
    pictures = [png(i) for i in range(4)]
    tar = write_tar(tmp_path / "plain.tar", [(f"a/{i}.png", data) for i, data in enumerate(pictures)])
    (tmp_path / name).write_bytes(tar.read_bytes() if name.endswith(".tar") else gzip.compress(tar.read_bytes()))
    index = embed(str(tmp_path / name), tmp_path, input_format="webdataset", enable_text=False)
    hits = ask("cat", tmp_path / "out", index)
    assert copies(hits, tmp_path / "out") == [pictures[row] for row in hits.id]
    assert all(name.endswith(".png") for name in hits.picture)


def test_a_key_that_is_twice_in_a_tar_gives_each_hit_its_own_picture(tmp_path: Path, write_tar: WriteTar) -> None:
    members = [("0.png", png(0)), ("1.png", png(1)), ("0.png", png(2))]
    tar = write_tar(tmp_path / "shard.tar", members)
    index = embed(str(tar), tmp_path, input_format="webdataset", enable_text=False)
    for i, (_, data) in enumerate(members):
        (tmp_path / "query.png").write_bytes(data)
        hits = ask(tmp_path / "query.png", tmp_path / "out", index, num_results=1)
        assert hits.id.tolist() == [i]
        assert (tmp_path / "out" / hits.picture[0]).read_bytes() == data


def test_the_same_key_in_two_tars_gives_each_hit_its_own_picture(tmp_path: Path, write_tar: WriteTar) -> None:
    for i in range(2):
        write_tar(tmp_path / f"{i}.tar", [("0.png", png(i))])
    index = embed(str(tmp_path / "{0..1}.tar"), tmp_path, input_format="webdataset", enable_text=False)
    hits = ask("cat", tmp_path / "out", index)
    assert copies(hits, tmp_path / "out") == [png(row) for row in hits.id]


def test_a_picture_that_is_gone_is_counted_and_its_hit_stays(
    tmp_path: Path, write_index: WriteIndex, run: Callable[..., Result]
) -> None:
    (tmp_path / "here.png").write_bytes(png(0))
    paths = [str(tmp_path / "here.png"), str(tmp_path / "gone.png"), None]
    index = write_index(tmp_path / "ix", pd.DataFrame({"image_path": paths, "caption": ["a", "b", "c"]}))
    answer = run("filter", "cat", tmp_path / "out", index, "--json")
    assert answer.exit_code == 0
    assert json.loads(answer.stdout)["unreadable_pictures"] == 1
    assert sorted(hit["picture"] is None for hit in results(tmp_path / "out")) == [False, True, True]


def test_a_tar_that_was_cut_since_is_counted_and_not_exported(tmp_path: Path, write_tar: WriteTar) -> None:
    tar = write_tar(tmp_path / "shard.tar", [("0.png", png(0))])
    index = embed(str(tar), tmp_path, input_format="webdataset", enable_text=False)
    tar.write_bytes(tar.read_bytes()[:600])
    assert ask("cat", tmp_path / "out", index).picture.tolist() == [None]
    assert "has changed since it was embedded" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize("text", ["[/b] [red", "[bold]x[/bold]", "[link=http://x]", ":smile:"])
def test_captions_and_queries_are_printed_as_they_are(
    tmp_path: Path, write_index: WriteIndex, run: Callable[..., Result], text: str
) -> None:
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": [text]}))
    answer = run("filter", text, tmp_path / "out", index)
    assert answer.exit_code == 0, answer.exception
    assert answer.output.count(text) == 2  # in the title and in the row


def test_a_query_that_is_no_utf8_is_answered(tmp_path: Path, write_index: WriteIndex) -> None:
    query = os.fsdecode(b"caf\xe9")  # as sys.argv holds it
    assert len(ask(query, tmp_path / "out", write_index(tmp_path / "ix", pd.DataFrame({"caption": ["a"]})))) == 1


def test_a_picture_with_a_long_name_is_exported(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"{'n' * 250}.png").write_bytes(png(0))
    hits = ask("cat", tmp_path / "out", embed(str(tmp_path / "in"), tmp_path))
    assert (tmp_path / "out" / hits.picture[0]).read_bytes() == png(0)


NAMES = {
    "a/b\x00c.png": "00001_b_c.png",
    "\x1b[31mred\u202egnp.exe": "00001__[31mred_gnp.exe",
    "line\nbreak\ttab.png": "00001_line_break_tab.png",
    "..": "00001_.png",
    "/etc/..": "00001_.png",
    "CON": "00001_CON.png",
    "nul.jpg": "00001_nul.jpg",
    "C:\\photos\\dog?.jpg": "00001_C__photos_dog_.jpg",
    "a. .png": "00001_a.png",
    "dog." + "x" * 300: f"00001_dog.{'x' * 192}.png",
    "é" * 300 + ".jpg": f"00001_{'é' * 98}.jpg",
    "\U0001f469\u200d\U0001f680.png": "00001_\U0001f469\u200d\U0001f680.png",
    "https://x/dog.jpg?size=1": "00001_dog.jpg",
    "": "00001_.png",
}


@pytest.mark.parametrize("path", NAMES, ids=ascii)
def test_a_picture_gets_a_name_that_every_system_takes(path: str) -> None:
    assert pictures.picture_name("00001", {"image_path": path, "shard": None}, png(0)) == NAMES[path]


def test_pictures_of_names_that_no_file_system_takes_are_exported_from_a_tar(
    tmp_path: Path, write_tar: WriteTar
) -> None:
    long = "m" * 120  # long names keep a NUL
    names = sorted(
        [f"{long}\x00b.png", "a\x01b.png", "a_b.png", f"{'n' * 250}.png", "CON.png", "x\udce9.png", "a\nb.png"]
    )
    tar = write_tar(tmp_path / "in" / "shard.tar", [(name, png(i)) for i, name in enumerate(names)])
    index = embed(str(tar), tmp_path, input_format="archive")
    hits = ask("cat", tmp_path / "out", index)
    assert len(hits) == len(names)
    assert copies(hits, tmp_path / "out") == [png(row) for row in hits.id]
    assert all(name.isprintable() and name.endswith(".png") for name in hits.picture)


def test_a_store_that_refuses_a_name_gets_the_rank_alone(
    tmp_path: Path, write_index: WriteIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encrypted home folders allow 143 bytes for a name; here more than the 255 of other systems are tried."""
    monkeypatch.setattr(pictures, "MOST_NAME_BYTES", 1000)
    (tmp_path / "in").mkdir()
    shard = {"shard": ["tar"], "shard_offset": [0], "shard_size": [1]}
    metadata = pd.DataFrame({"image_path": ["n" * 300], "caption": ["a"]} | shard)
    metadata["shard"], metadata["shard_size"] = str(tmp_path / "in" / "x"), len(png(0))
    (tmp_path / "in" / "x").write_bytes(png(0))
    hits = ask("cat", tmp_path / "out", write_index(tmp_path / "ix", metadata))
    assert hits.picture.tolist() == ["images/00001_.png"]


@pytest.mark.parametrize("input_format", ["files", "archive"])
def test_a_picture_whose_path_is_no_utf8_is_exported(tmp_path: Path, write_tar: WriteTar, input_format: str) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / os.fsdecode(b"p\xff.png")).write_bytes(png(0))
    (folder / "plain.png").write_bytes(png(1))
    source = str(tmp_path / "x.tar")
    if input_format == "archive":
        write_tar(folder / os.fsdecode(b"\xfe.tar"), [("a.png", png(0)), ("b.png", png(1))])
        source = str(folder / os.fsdecode(b"\xfe.tar"))
    index = embed(source if input_format == "archive" else str(folder), tmp_path, input_format=input_format)
    hits = ask("cat", tmp_path / "out", index)
    assert sorted(copies(hits, tmp_path / "out")) == sorted([png(0), png(1)])


def test_two_files_of_one_name_in_the_metadata_are_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i, name in enumerate((b"p\xff.png", b"p\xfe.png")):
        (tmp_path / "in" / os.fsdecode(name)).write_bytes(png(i))
    hits = ask("cat", tmp_path / "out", embed(str(tmp_path / "in"), tmp_path))
    assert hits.picture.tolist() == [None, None]
    assert "2 files have the name" in (tmp_path / "out" / "index.html").read_text()


def test_a_second_query_into_a_folder_is_refused_while_the_first_runs(tmp_path: Path, write_index: WriteIndex) -> None:
    index, out = write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat", "dog"]})), tmp_path / "out"
    ask("cat", out, index)
    before = (out / "results.json").read_bytes()
    with only_one(Folder(str(out))), pytest.raises(StorageError, match=r"another process is changing .*out; wait"):
        ask("dog", out, index)
    assert (out / "results.json").read_bytes() == before
    ask("dog", out, index)
    assert (out / "results.json").read_bytes() != before


def test_queries_that_begin_at_once_never_mix_their_hits(tmp_path: Path, write_index: WriteIndex) -> None:
    words = ["cat", "dog", "sun", "sea"]
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": words}))

    def try_to_ask(word: str) -> bool:
        try:
            ask(word, tmp_path / "out", index, num_results=1)
        except StorageError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        answered = list(pool.map(try_to_ask, words))
    about = json.loads((tmp_path / "out" / "results.json").read_text())
    assert any(answered)
    assert (
        about["query"] == about["results"][0]["caption"] == pd.read_parquet(tmp_path / "out/results.parquet").caption[0]
    )
    assert f"<li>1. 1.000 {about['query']}</li>" in (tmp_path / "out" / "index.html").read_text()


def test_pictures_of_an_earlier_query_go(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(4):
        (tmp_path / "in" / f"{i}.png").write_bytes(png(i))
    index = embed(str(tmp_path / "in"), tmp_path)
    ask("cat", tmp_path / "out", index)
    hits = ask("dog", tmp_path / "out", index, num_results=2)
    left = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert left == sorted(hits.picture)


def test_nothing_of_the_user_is_removed_from_the_output_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.png").write_bytes(png(0))
    index = embed(str(tmp_path / "images"), tmp_path)
    ask("cat", tmp_path, index)
    assert (tmp_path / "images" / "mine.png").read_bytes() == png(0)


def test_no_picture_is_copied_when_none_is_wanted(tmp_path: Path, write_index: WriteIndex) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    metadata = pd.DataFrame({"image_path": [str(tmp_path / "a.png")], "caption": ["cat"]})
    hits = ask("cat", tmp_path / "out", write_index(tmp_path / "ix", metadata), copy_images=False)
    assert hits.picture.tolist() == [None]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".clip-retrieval-results", "index.html", "recipe.json", "results.json", "results.parquet",
    ]  # fmt: skip


def test_a_path_in_the_metadata_is_never_run_as_a_command(tmp_path: Path, write_index: WriteIndex) -> None:
    paths = [f"pipe:touch {tmp_path / 'ran'}"]
    ask("cat", tmp_path / "out", write_index(tmp_path / "ix", pd.DataFrame({"image_path": paths, "caption": ["a"]})))
    assert not (tmp_path / "ran").exists()


def test_an_output_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, write_index: WriteIndex, run: Callable[..., Result]
) -> None:
    (tmp_path / "out").write_text("in the way")
    answer = run("filter", "cat", tmp_path / "out", write_index(tmp_path / "ix", pd.DataFrame({"caption": ["a"]})))
    assert answer.exit_code == 1
    assert answer.output.startswith(f"Error: cannot write to {tmp_path / 'out'}")


def test_a_page_that_no_query_wrote_is_not_overwritten(tmp_path: Path, write_index: WriteIndex) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").write_text("mine")
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat"]}))
    with pytest.raises(QueryError, match=r"has index\.html, which no query wrote"):
        ask("cat", tmp_path / "out", index)
    assert (tmp_path / "out" / "index.html").read_text() == "mine"


@pytest.mark.parametrize("mode", ["copy", "symlink", "none"])
def test_pictures_that_no_query_wrote_are_not_removed(tmp_path: Path, write_index: WriteIndex, mode: str) -> None:
    (tmp_path / "out" / "images" / "00004_folder").mkdir(parents=True)
    (tmp_path / "out" / "images" / "00777_street.jpg").write_text("mine")
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat"]}))
    with pytest.raises(QueryError, match=r"has images/00004_folder, which no query wrote"):
        ask("cat", tmp_path / "out", index, export=mode)
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["00004_folder", "00777_street.jpg"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["images"]


@pytest.mark.parametrize("spelling", ["{}", "{}/../link"])
def test_an_answer_is_not_written_over_the_pictures_that_it_found(
    tmp_path: Path, write_index: WriteIndex, spelling: str
) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    metadata = pd.DataFrame({"image_path": [str(tmp_path / "a.png")], "caption": ["cat"]})
    (found,) = ask("cat", tmp_path / "out", write_index(tmp_path / "ix", metadata)).picture
    (tmp_path / "link").symlink_to("out")
    path = f"{spelling.format(tmp_path / 'out')}/{found}"
    again = write_index(tmp_path / "again", pd.DataFrame({"image_path": [path], "caption": ["dog"]}))
    with pytest.raises(QueryError, match=r"pictures of the hits are in .*images, which an earlier query wrote"):
        ask("dog", tmp_path / "out", again)
    assert (tmp_path / "out" / found).read_bytes() == png(0)
    assert copies(ask("dog", tmp_path / "other", again), tmp_path / "other") == [png(0)]


def test_hits_are_not_written_into_an_index(tmp_path: Path, write_index: WriteIndex) -> None:
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat"]}))
    before = sorted(path.name for path in index.iterdir())
    with pytest.raises(QueryError, match="holds embeddings or an index; name another output folder for the hits"):
        ask("cat", index, index)
    assert sorted(path.name for path in index.iterdir()) == before


def test_pictures_of_a_killed_query_go_with_the_next(tmp_path: Path, write_index: WriteIndex) -> None:
    index = write_index(tmp_path / "ix", pd.DataFrame({"caption": ["cat"]}))
    ask("cat", tmp_path / "out", index)
    (tmp_path / "out" / "images").mkdir()
    (tmp_path / "out" / "images" / "00007_left.png").write_bytes(b"")
    (tmp_path / "out" / "images" / "mine.png").write_bytes(b"")
    ask("cat", tmp_path / "out", index)
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["mine.png"]


@pytest.mark.parametrize("copy_images", [False, True])
def test_many_hits_are_in_the_tables_in_full_and_on_the_sheet_in_part(
    tmp_path: Path, write_index: WriteIndex, monkeypatch: pytest.MonkeyPatch, copy_images: bool
) -> None:
    monkeypatch.setattr(sheet, "MOST_THUMBNAILS", 3)
    monkeypatch.setattr(query_hits, "ROWS_AT_ONCE", 2)
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for i, path in enumerate(paths):
        path.write_bytes(png(i))
    metadata = pd.DataFrame({"caption": [f"cat {i}" for i in range(7)], "image_path": list(map(str, paths))})
    hits = ask("cat", tmp_path / "out", write_index(tmp_path / "ix", metadata), copy_images=copy_images)
    assert [hit["caption"] for hit in results(tmp_path / "out")] == hits.caption.tolist()
    assert sorted(hits.caption) == metadata.caption.tolist()
    assert [hit["picture"] for hit in results(tmp_path / "out")] == hits.picture.tolist()
    assert (tmp_path / "out" / "index.html").read_text().count('{"row":') == 3
    assert hits.picture.notna().sum() == (7 if copy_images else 0)


@pytest.mark.parametrize(
    ("path", "name"),
    [("sub/x.jpg", "00001_x.jpg"), ("a.v1", "00001_a.v1.png"), ("key", "00001_key.png"), ("x.JPEG", "00001_x.JPEG")],
)
def test_a_picture_of_a_shard_has_one_suffix(path: str, name: str) -> None:
    assert pictures.picture_name("00001", {"image_path": path, "shard": "x.tar"}, png(0)) == name
