"""Damaged files of what `search` keeps: what costs seconds is made again, else a sentence says how to be rid of it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_retrieval.errors import BusyError, ClipRetrievalError, StorageError
from clip_retrieval.layout import EmbeddingsFolder
from clip_retrieval.photos import refresh
from clip_retrieval.photos.ask import PhotoAnswer, open_photos
from clip_retrieval.photos.config import read_search_config
from clip_retrieval.photos.damage import advising
from clip_retrieval.photos.folders import find_kept, forget
from clip_retrieval.photos.listing import look_at
from clip_retrieval.photos.models import SETTINGS, Settings, read_settings, settings_folder, write_setting
from tests.encoder.damage import WAYS, overwrite_middle, put_folder, write_zeros

HASH = "hash:16?size=32"


@pytest.fixture
def photos(tmp_path: Path, make_jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of pictures that was searched before."""
    monkeypatch.setattr(refresh, "FEW_READERS", 0)
    folder = tmp_path / "my photos"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(make_jpeg(number))
    ask(folder, clip_model=HASH)
    return folder


NEEDLESS = re.compile(r"again(?!: )|anew(?!: )|makes one|without --update|codec")  # `is built again: ` is what we do


def ask(folder: Path, **options: str) -> PhotoAnswer:
    config = read_search_config(options, (str(folder / "2.jpg"), str(folder)))
    return open_photos(config).ask(config.asked.words, config.selection)


def kept_file(folder: Path, name: str) -> Path:
    (found,) = find_kept(str(folder)).place.glob(name)
    return found


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in ("image.index", "image.json", "manifest.json", "metadata.arrow")
        for damage in WAYS
        if (name, damage) != ("image.json", Path.unlink)  # searched without it
    ],
)
def test_a_damaged_index_is_built_again(
    photos: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], name: str
) -> None:
    path = kept_file(photos, f"model-*/index/{name}")
    damage(path)
    caplog.clear()
    for _ in range(2):
        assert len(found := ask(photos).paths()) == 3
        assert found[0] == str(photos / "2.jpg")
    assert path.is_file()
    (warned,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert not NEEDLESS.search(warned)


@pytest.mark.parametrize("damage", WAYS)
@pytest.mark.parametrize("name", ["image.index", "image.checksums.npy", "manifest.json"])
def test_a_damaged_index_is_built_again_where_the_folder_changed(
    photos: Path,
    make_jpeg: Callable[[int], bytes],
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    name: str,
) -> None:
    damage(kept_file(photos, f"model-*/index/{name}"))
    (photos / "4.jpg").write_bytes(make_jpeg(4))
    caplog.clear()
    assert len(ask(photos).paths()) == 4
    assert not NEEDLESS.search("".join(caplog.messages))


@pytest.mark.parametrize("damage", [*WAYS[:-1], write_zeros])
def test_the_model_of_a_damaged_note_is_told_by_the_embeddings(
    photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    before = find_kept(str(photos)).about()
    path = kept_file(photos, "about.json")
    damage(path)
    monkeypatch.setattr(refresh, "choose_model", lambda _: pytest.fail("the model was known"))
    caplog.clear()
    assert len(ask(photos).paths()) == 3
    assert find_kept(str(photos)).about() == before
    (warned,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert not NEEDLESS.search(warned)


def test_without_a_note_and_embeddings_the_folder_is_new(photos: Path) -> None:
    for name in ("about.json", "model-*/embeddings/manifest.json"):
        kept_file(photos, name).write_bytes(b"")
    kept = find_kept(str(photos))
    assert kept.about() is None
    assert not (kept.place / "about.json").exists()


@pytest.mark.parametrize("damage", [*WAYS[1:-1], write_zeros])
@pytest.mark.parametrize("name", ["ledger/*", "stats/*", "manifest.json", "metadata/*"])
def test_damaged_embeddings_are_told_with_what_to_do(
    photos: Path, make_jpeg: Callable[[int], bytes], damage: Callable[[Path], None], name: str
) -> None:
    damage(kept_file(photos, f"model-*/embeddings/{name}"))
    ask(photos)  # they are not needed
    (photos / "4.jpg").write_bytes(make_jpeg(4))
    with pytest.raises(ClipRetrievalError, match=rf"search --forget '{photos}' removes") as error:
        ask(photos)
    assert "\n" not in str(error.value)
    assert not NEEDLESS.search(str(error.value).partition("; clip-retrieval search --forget")[0])


def test_damaged_rows_are_embedded_again_when_the_folder_changes(
    photos: Path, make_jpeg: Callable[[int], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    path = kept_file(photos, "model-*/embeddings/img_emb/*_0.npy")
    overwrite_middle(path)
    (photos / "4.jpg").write_bytes(make_jpeg(4))
    caplog.clear()
    found = ask(photos).paths()
    assert (found[0], len(found)) == (str(photos / "2.jpg"), 4)
    assert f"{path} is damaged: its rows differ from what was written; what the input still has" in caplog.text


def test_a_cache_that_cannot_be_written_answers_from_what_is_there(
    photos: Path, make_jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "4.jpg").write_bytes(make_jpeg(4))
    monkeypatch.setattr(os, "access", lambda *_: False)
    caplog.clear()
    assert len(ask(photos).paths()) == 3
    assert len(caplog.messages) == 1
    assert "cannot be written" in caplog.text
    assert len(ask(photos, clip_model=HASH).paths()) == 3
    with pytest.raises(StorageError, match="cannot be written"):
        ask(photos, clip_model="hash:8")
    with pytest.raises(StorageError, match="cannot be written"):
        ask(photos, reembed="true")
    (photos / "4.jpg").unlink()
    caplog.clear()
    assert len(ask(photos, clip_model=HASH).paths()) == 3
    assert not caplog.messages  # nothing had to be written
    monkeypatch.setenv("CLIP_RETRIEVAL_CACHE", str(photos / "2.jpg"))
    with pytest.raises(StorageError, match=r"2\.jpg cannot be written \(it is a file\); name another folder"):
        ask(photos)
    with pytest.raises(StorageError, match="cannot be written"):
        write_setting("demo")


def test_what_cannot_be_forgotten_is_a_sentence(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    place = find_kept(str(photos)).place
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StorageError, match=rf"^cannot write to {place}: Operation not permitted$"):
        forget(str(photos))


def test_pictures_that_are_gone_are_not_embedded(photos: Path, make_jpeg: Callable[[int], bytes]) -> None:
    for number in (0, 1):
        (photos / f"{number}.jpg").unlink()
    for number in (4, 5, 6):
        (photos / f"{number}.jpg").write_bytes(make_jpeg(number))
    ask(photos)
    target = EmbeddingsFolder(find_kept(str(photos)).embeddings(HASH))
    target.remove(target.metadata_name(target.partitions()[-1]))  # as if it had been stopped before the new ones
    assert refresh.say_stopped(target, look_at(str(photos))).startswith("stopped: 1 of 4 pictures are embedded")


def test_a_stop_before_the_first_revision_counts_no_picture_that_is_gone(
    photos: Path, make_jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (0, 1):
        (photos / f"{number}.jpg").unlink()
    for number in (4, 5, 6):
        (photos / f"{number}.jpg").write_bytes(make_jpeg(number))
    for name, said in (
        ("change_partitions", "stopped before any change was embedded: what was embedded before is kept;"),
        ("append_partitions", "stopped: 1 of 4 pictures are embedded and kept;"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(f"clip_retrieval.inference.revisions.update.{name}", stop)
            with pytest.raises(KeyboardInterrupt) as stopped:
                ask(photos)
        assert str(stopped.value) == f"{said} give the same command again{' to go on' if '4' in said else ''}"
    assert len(ask(photos).paths()) == 4


def test_a_damaged_setting_says_what_writes_it_again(photos: Path) -> None:
    write_setting("demo")
    path = settings_folder() / SETTINGS
    for damage in (*WAYS[1:-2], write_zeros):
        damage(path)
        with pytest.raises(StorageError, match=r"^[^;]*; clip-retrieval search --use_model auto writes it again$"):
            read_settings()
        write_setting("auto")
        assert read_settings() == Settings()
    put_folder(path)
    with pytest.raises(StorageError, match=r"is not a regular file; remove it$"):
        read_settings()
    assert photos.exists()


def test_a_full_disk_is_no_damage(photos: Path) -> None:
    kept = find_kept(str(photos))
    with pytest.raises(OSError, match=r"^(?!.*forget).*No space"), advising(kept):
        raise OSError(28, "No space left on device", "there")
    with pytest.raises(BusyError, match=r"^busy$"), advising(kept):
        raise BusyError("busy")


def fail_with(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"clip_retrieval.photos.{name}", fail)


@pytest.mark.parametrize(("name", "number"), [("refresh.build", errno.ENOSPC), ("ask.open_searcher", errno.EMFILE)])
def test_an_index_stays_where_the_machine_is_to_blame(
    photos: Path, make_jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    index = kept_file(photos, "model-*/index/image.index")
    before = index.stat()
    if name == "refresh.build":
        (photos / "4.jpg").write_bytes(make_jpeg(4))
    fail_with(monkeypatch, name, OSError(number, os.strerror(number), "there"))
    with pytest.raises(OSError, match=os.strerror(number)):
        ask(photos)
    assert (index.stat().st_ino, index.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_index_that_another_process_writes_stays(
    photos: Path, make_jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "4.jpg").write_bytes(make_jpeg(4))
    fail_with(monkeypatch, "refresh.build", BusyError("busy"))
    assert len(ask(photos).paths()) == 3


@pytest.mark.parametrize("damage", [*WAYS[1:-2], Path.unlink])
def test_pictures_of_damaged_rows_are_embedded_again(
    photos: Path, make_jpeg: Callable[[int], bytes], caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    path = kept_file(photos, "model-*/embeddings/img_emb/img_emb_0.npy")
    damage(path)
    ask(photos)  # they are not needed
    (photos / "0.jpg").unlink()
    (photos / "4.jpg").write_bytes(make_jpeg(4))
    caplog.clear()
    found = ask(photos)
    assert sorted(found.paths()) == [str(photos / f"{number}.jpg") for number in (1, 2, 4)]
    assert found.paths()[0] == str(photos / "2.jpg")
    (told,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert str(path) in told
    assert "what the input still has of its 3 rows is embedded again" in told


def test_arrays_that_hold_zeros_are_embedded_again(photos: Path, make_jpeg: Callable[[int], bytes]) -> None:
    path = kept_file(photos, "model-*/embeddings/img_emb/img_emb_0.npy")
    with path.open("r+b") as file:
        file.seek(48)
        file.write(bytes(48))  # NumPy parses what is left of the header as Python
    (photos / "4.jpg").write_bytes(make_jpeg(4))
    assert len(ask(photos).paths()) == 4


def test_a_folder_in_the_place_of_rows_is_a_sentence(photos: Path, make_jpeg: Callable[[int], bytes]) -> None:
    put_folder(kept_file(photos, "model-*/embeddings/img_emb/img_emb_0.npy"))
    (photos / "4.jpg").write_bytes(make_jpeg(4))
    with pytest.raises(ClipRetrievalError, match=r"is a folder, not an npy file.*search --forget"):
        ask(photos)
