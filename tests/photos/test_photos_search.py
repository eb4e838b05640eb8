"""`search`: a folder is embedded once, then only what changed; the pictures' folder is never written to."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from clip_retrieval.cache_home import cache_home
from clip_retrieval.cli import cli
from clip_retrieval.errors import ConfigError, QueryError, SourceError
from clip_retrieval.layout import EmbeddingsFolder
from clip_retrieval.photos import refresh
from clip_retrieval.photos.ask import PhotoAnswer, open_photos
from clip_retrieval.photos.config import SearchConfig, read_search_config
from clip_retrieval.photos.folders import find_kept, forget, list_kept
from clip_retrieval.photos.listing import look_at

HASH = "hash:16?size=32"


@pytest.fixture(autouse=True)
def few_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "FEW_READERS", 0)  # starting one takes longer than reading five pictures


@pytest.fixture
def photos(tmp_path: Path, make_jpeg: Callable[[int], bytes]) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for number in range(5):
        (folder / ("deep" if number % 2 else "") / f"{number}.jpg").write_bytes(make_jpeg(number))
    return folder


def ask(folder: Path, query: str | Path = "a dog", **options: Any) -> PhotoAnswer:
    config = read_search_config({"clip_model": HASH, **options}, (str(query), str(folder)))
    return open_photos(config).ask(config.asked.words, config.selection)


def names(answered: PhotoAnswer) -> list[str]:
    return [Path(path).name for path in answered.paths()]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["search", *map(str, arguments)])


def test_a_picture_of_the_folder_is_the_first_answer_to_itself(photos: Path) -> None:
    answered = ask(photos, photos / "deep" / "3.jpg")
    assert len(names(answered)) == 5
    assert answered.paths()[0] == str(photos / "deep" / "3.jpg")


def test_pages_of_pdfs_are_searched_too(photos: Path, make_pdf: Callable[..., bytes]) -> None:
    (photos / "deep" / "a.pdf").write_bytes(make_pdf("one", ""))
    found = names(ask(photos))
    assert len(found) == 7
    assert {"a.pdf#page=1", "a.pdf#page=2"} < set(found)
    (photos / "deep" / "a.pdf").write_bytes(make_pdf("one", "", "three"))
    assert "a.pdf#page=3" in names(ask(photos))


def test_key_frames_of_videos_are_searched_too(photos: Path, make_video: Callable[..., bytes]) -> None:
    (photos / "deep" / "a.mp4").write_bytes(make_video("red", "blue"))
    found = names(ask(photos))
    assert len(found) == 7
    assert {"a.mp4#t=0", "a.mp4#t=1"} < set(found)


def test_words_tell_files_from_the_pictures_in_them(
    photos: Path, make_video: Callable[..., bytes], make_pdf: Callable[..., bytes], caplog: pytest.LogCaptureFixture
) -> None:
    whole = make_video(*["red", "blue"] * 4, container="matroska", noise=True)
    (photos / "a.mkv").write_bytes(whole[: len(whole) * 5 // 8])
    (photos / "b.mp4").write_bytes(b"no video")
    (photos / "c.pdf").write_bytes(make_pdf("one", "two"))
    answered = ask(photos, num_results=50)
    assert look_at(str(photos)).counted_files() == "5 pictures, 1 PDF, 2 videos"
    assert "1 picture, page or video could not be read (1 decode)" in caplog.text
    assert "1 video is cut off" in caplog.text
    assert answered.about.pictures == len(names(answered)) > 8
    (photos / "c.pdf").unlink()
    assert ask(photos).about.pictures == answered.about.pictures - 2


def test_what_a_package_would_read_is_counted(photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr("clip_retrieval.photos.listing.can_read", lambda _: False)
    monkeypatch.setattr("clip_retrieval.sources.listing.can_read", lambda _: False)
    for name in ("a.mp4", "b.mov", "c.pdf"):
        (photos / name).write_bytes(b"")
    assert len(names(ask(photos))) == 5
    assert "2 videos skipped: frames of videos are read by a package: pip install 'clip-retrieval[video]'" in (
        caplog.text
    )
    assert "1 PDF skipped" in caplog.text
    (photos / "empty").mkdir()
    (photos / "empty" / "a.mp4").write_bytes(b"")
    with pytest.raises(SourceError, match=r"holds no picture; 1 video skipped: .*\[video\]"):
        ask(photos / "empty")


def test_nothing_is_written_beside_the_pictures(photos: Path) -> None:
    before = sorted(photos.rglob("*"))
    for folder in (photos, photos / "deep"):
        folder.chmod(0o555)
    ask(photos)
    assert sorted(photos.rglob("*")) == before
    assert all(path.is_relative_to(cache_home()) for path in [find_kept(str(photos)).place])


def test_paths_are_printed_without_what_embeds_or_draws(photos: Path) -> None:
    ask(photos)
    words = ["search", "a dog", str(photos), "--paths"]
    code = f"import sys\nfrom clip_retrieval.cli import cli\ncli({words!r}, standalone_mode=False)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *paths, loaded = done.stdout.splitlines()
    assert len(paths) == 5
    unwanted = {
        "rich",
        "PIL",
        "pandas",
        "pyarrow.parquet",
        "tarfile",
        "regex",
        "fsspec",
        "clip_retrieval.inference.run",
    }
    assert set(loaded.split()) & unwanted == set()


def test_a_folder_that_did_not_change_is_not_embedded_again(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(photos)
    monkeypatch.delattr(refresh, "run_inference")
    assert len(names(ask(photos))) == 5


def test_a_condition_over_unknown_columns_is_refused_before_what_changed_is_embedded(
    photos: Path, make_jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(photos)
    (photos / "new.jpg").write_bytes(make_jpeg(7))
    with monkeypatch.context() as patch:
        patch.delattr(refresh, "run_inference")
        with pytest.raises(QueryError, match="widht"):
            ask(photos, where="widht > 3")
    assert len(names(ask(photos, where="image_path like '%new%'"))) == 1


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("gray", "knows no word of 'gray'"),
        ("dog - gray", "knows no word of 'gray'"),
        ("missing.jpg", "there is no file"),
        ("notes.npy", "cannot be read as an npy file"),
        ("notes.txt", "it is a text file"),
    ],
)
def test_what_no_index_can_answer_is_refused_before_anything_is_embedded(
    photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, query: str, said: str
) -> None:
    for name in ("notes.npy", "notes.txt"):
        (tmp_path / name).write_text("not an array")
    monkeypatch.chdir(tmp_path)
    for folder in (photos, f"{photos}/."):  # new, and with a change
        with monkeypatch.context() as patch:
            patch.setattr(refresh, "run_inference", lambda _: pytest.fail("it was embedded"))
            with pytest.raises(QueryError, match=said):
                ask(Path(folder), query, clip_model="demo")
        ask(photos, "dog", clip_model="demo")
        (photos / "0.jpg").unlink(missing_ok=True)


def test_what_changed_is_embedded_renamed_and_removed(photos: Path, make_jpeg: Callable[[int], bytes]) -> None:
    before = ask(photos, photos / "2.jpg").table.to_pylist()[0]["id"]
    (photos / "new.jpg").write_bytes(make_jpeg(7))
    (photos / "4.jpg").unlink()
    (photos / "2.jpg").rename(photos / "moved.jpg")
    answered = ask(photos, photos / "moved.jpg")
    assert sorted(names(answered)) == ["0.jpg", "1.jpg", "3.jpg", "moved.jpg", "new.jpg"]
    assert answered.table.to_pylist()[0]["id"] == before  # it kept its row
    assert answered.about.pictures == 5
    assert names(ask(photos, photos / "new.jpg"))[0] == "new.jpg"


def test_every_spelling_of_a_folder_is_kept_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = photos.parent / "link"
    link.symlink_to(photos)
    ask(photos)
    monkeypatch.chdir(photos)
    assert ask(Path(), "a dog").paths()[0].startswith("./") or not ask(Path()).paths()[0].startswith("/")
    assert ask(link).paths()[0].startswith(str(link))
    assert [facts.folder for facts in list_kept().folders] == [str(photos)]


def test_another_model_is_refused_until_it_is_asked_for(photos: Path) -> None:
    ask(photos)
    with pytest.raises(ConfigError, match=r"was embedded with hash:16\?size=32; add --reembed"):
        ask(photos, clip_model="hash:8")
    answered = ask(photos, clip_model="hash:8", reembed=True)
    assert answered.about.clip_model == "hash:8"
    assert len(list(find_kept(str(photos)).place.glob("model-*"))) == 1
    config = read_search_config({}, ("a dog", str(photos)))
    assert open_photos(config).about.clip_model == "hash:8"


def test_embedding_anew_goes_on_where_it_was_stopped(photos: Path) -> None:
    about = ask(photos).about
    kept = find_kept(str(photos))
    kept.write(dataclasses.replace(about, seen=""))  # as it is after --reembed was killed
    stamps = {path: path.stat().st_mtime_ns for path in Path(kept.embeddings(HASH)).rglob("*.npy")}
    assert ask(photos, reembed=True).about.seen == about.seen
    assert stamps == {path: path.stat().st_mtime_ns for path in Path(kept.embeddings(HASH)).rglob("*.npy")}


def test_a_run_that_was_stopped_keeps_its_partitions(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "PARTITION", 2)
    build = refresh.build

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(refresh, "build", stop)
    with pytest.raises(KeyboardInterrupt):
        ask(photos)
    embeddings = EmbeddingsFolder(find_kept(str(photos)).embeddings(HASH))
    last = embeddings.partitions()[-1]
    embeddings.remove(embeddings.metadata_name(last))  # as if it had been stopped within the last partition
    assert refresh.count_embedded(embeddings) == 5 - int(
        embeddings.read_json(embeddings.stats_name(last))["sample_count"]
    )
    monkeypatch.setattr(refresh, "build", build)
    assert len(names(ask(photos))) == 5


def test_a_second_search_waits_for_the_first_one_of_a_folder(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = find_kept(str(photos))
    answers: list[PhotoAnswer] = []
    caplog.set_level("INFO", "clip_retrieval")
    with kept.locked():
        thread = threading.Thread(target=lambda: answers.append(ask(photos)))
        thread.start()
        while "waiting for it" not in caplog.text:
            time.sleep(0.01)
        assert not answers
    thread.join()
    assert len(names(answers[0])) == 5


def test_a_second_search_answers_from_what_is_there(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    ask(photos)
    (photos / "0.jpg").unlink()
    with find_kept(str(photos)).locked():
        assert "0.jpg" in names(ask(photos))
    assert "this answer is of the previous state" in caplog.text
    assert "0.jpg" not in names(ask(photos))


def test_forgetting_removes_what_is_kept_and_no_picture(photos: Path) -> None:
    ask(photos)
    assert list_kept().folders[0].pictures == 5
    assert forget(str(photos))["bytes"] > 0
    assert not list_kept().folders
    assert len(list(photos.rglob("*.jpg"))) == 5
    with pytest.raises(SourceError, match="nothing is kept"):
        forget(str(photos))


def test_a_folder_that_cannot_be_listed_is_not_called_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below").mkdir()
    real = os.scandir

    def refuse(place: str | int) -> Any:  # a number, where pytest removes the folder
        if str(place).endswith("below"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)
        return real(place)

    monkeypatch.setattr(os, "scandir", refuse)  # the tests may run as root, whom nothing is closed to
    with pytest.raises(SourceError, match=r"1 folder cannot be listed \(.*below: Permission denied\)"):
        ask(tmp_path)


def test_folders_without_pictures_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a caption is no picture")
    with pytest.raises(SourceError, match="holds no picture"):
        ask(tmp_path)
    (tmp_path / "IMG_1.CR2").write_bytes(b"raw")
    with pytest.raises(SourceError, match=r"RAW files such as IMG_1\.CR2"):
        ask(tmp_path)
    with pytest.raises(SourceError, match="is a file, not a folder"):
        ask(tmp_path / "notes.txt")
    with pytest.raises(SourceError, match="there is no folder"):
        ask(tmp_path / "nowhere")
    assert not list_kept().folders


def test_pictures_that_cannot_be_read_are_counted_and_other_files_are_not(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "broken.jpg").write_bytes(b"no picture")
    (photos / "notes.txt").write_text("a caption")
    (photos / "0.jpg.json").write_text("{}")
    assert len(names(ask(photos))) == 5
    assert "1 picture could not be read (1 decode)" in caplog.text


def test_raw_files_without_a_jpeg_are_named_once(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    (photos / "0.NEF").write_bytes(b"raw")  # beside 0.jpg
    (photos / "9.NEF").write_bytes(b"raw")
    ask(photos)
    assert "1 RAW file without a JPEG of the same name is not searched, such as 9.NEF" in caplog.text
    caplog.clear()
    ask(photos)
    assert "RAW" not in caplog.text


def test_names_that_are_no_utf8_come_out_as_they_are(photos: Path, make_jpeg: Callable[[int], bytes]) -> None:
    odd = os.fsencode(photos) + b"/caf\xe9.jpg"
    Path(os.fsdecode(odd)).write_bytes(make_jpeg(11))
    result = run("a dog", photos, "--clip_model", HASH, "-0")
    assert result.exit_code == 0
    assert odd in result.stdout_bytes.split(b"\0")


def test_hits_are_chosen_as_in_filter(photos: Path) -> None:
    assert len(names(ask(photos, num_results=2))) == 2
    assert names(ask(photos, where="image_path like '%/2.jpg'")) == ["2.jpg"]
    assert names(ask(photos, photos / "2.jpg", threshold=0.999)) == ["2.jpg"]
    with pytest.raises(QueryError, match="no column"):
        ask(photos, where="widht > 3")


def test_the_command_prints_paths_json_and_tables(photos: Path) -> None:
    options = ("--clip_model", HASH)
    lines = run(photos / "0.jpg", photos, *options, "--paths").stdout.splitlines()
    assert lines[0] == str(photos / "0.jpg")
    assert len(lines) == 5
    told = json.loads(run("--json", "a dog", photos, *options).stdout)
    assert told["clip_model"] == HASH
    assert [row["path"] for row in told["results"]][:1] == [told["results"][0]["image_path"]]
    assert "5 hits for 'a dog' among 5 pictures" in run("a dog", photos).output
    assert str(photos) in run("--list").output.replace("\n", "") or "5" in run("--list").output
    assert json.loads(run("--list", "--json").stdout)["folders"][0]["pictures"] == 5
    assert "removed" in run("--forget", photos).output


def test_switches_take_no_value(photos: Path) -> None:
    assert run("--paths", "a dog", photos, "--clip_model", HASH).exit_code == 0


def test_a_search_without_a_query_says_how_to_ask() -> None:
    result = run()
    assert result.exit_code == 1
    assert 'clip-retrieval search "a dog on the beach" FOLDER' in result.output


def test_the_page_of_hits_lies_in_the_cache(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def launch(path: str) -> int:
        opened.append(path)
        return 0

    monkeypatch.setattr("click.launch", launch)
    assert run("a dog", photos, "--clip_model", HASH, "--open").exit_code == 0
    assert Path(opened[0]).is_relative_to(cache_home())
    assert "data:image/jpeg" in Path(opened[0]).read_text()


def test_one_argument_is_the_folder_where_lines_will_ask(photos: Path) -> None:
    assert read_search_config({"interactive": True}, (str(photos),)).folder == str(photos)
    assert read_search_config({"like": "3"}, (str(photos),)).asked.query == ()
    assert read_search_config({}, (str(photos),)).asked.query == (str(photos),)
    with pytest.raises(ConfigError, match="leave out --paths"):
        SearchConfig(output=read_search_config({"interactive": True, "paths": True}).output)
    refused = run("--interactive", photos, "--json")
    assert refused.exit_code == 1
    assert "leave out --json" in str(refused.output) + str(refused.exception)


@pytest.mark.parametrize("spelling", ["./~", "~"])
def test_a_folder_named_like_the_home_folder_is_not_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    (tmp_path / "~").mkdir()
    monkeypatch.chdir(tmp_path)

    assert find_kept(spelling).folder == str(tmp_path / "~")
