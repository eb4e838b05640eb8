"""Folders as sequences of samples: in the order of whole paths, nothing lost, hardly any memory."""

from __future__ import annotations

import os
import tempfile
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_retrieval.errors import SourceError, StorageError
from clip_retrieval.sources import listing, open_source
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.files import FilesSource, open_files, unit_of
from clip_retrieval.sources.joining import Joined, join
from clip_retrieval.sources.listing import Tree
from clip_retrieval.sources.packed import BLOCK, Mapped, Packed
from clip_retrieval.sources.saving import StoredBlocks
from clip_retrieval.sources.types import Failure
from clip_retrieval.storage import Folder

PARTS = st.text(alphabet="ab-.0~/\u00e9\ue000\udcff\U0001f600", min_size=1, max_size=6)
FILES = ("a-b/x.jpg", "a.jpg", "a.txt", "a.w/b.png", "a/c/d.webp", "a/x.jpg", "a/x.json", "b/x.txt", "x.md", "y.jpg")


def write(folder: Path, names: Iterable[str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"data")
    return folder


def keys(url: object, output: object = "/nowhere") -> list[str]:
    """Return what every item of a folder is named by, in order."""
    items = Tree(Folder(str(url)), Folder(str(output)), wants_images=True).items()
    return [item.key if isinstance(item, Failure) else unit_of(item) for item in items]


def failures(url: object) -> dict[str, str]:
    items = Tree(Folder(str(url)), Folder("/nowhere"), wants_images=True).items()
    return {item.key: item.reason for item in items if isinstance(item, Failure)}


@pytest.fixture
def memory() -> Iterator[str]:
    store = fsspec.filesystem("memory")
    for name in FILES:
        store.pipe_file(f"/in/{name}", b"data")
    yield "memory://in"
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@given(names=st.lists(PARTS, max_size=12))
@settings(deadline=None, max_examples=80)
def test_items_come_in_the_order_of_whole_paths(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            parts = [part for part in name.split("/") if part not in ("", ".", "..")]
            path = Path(folder, *parts[:-1], f"{(parts or ['x'])[-1]}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        found = [f"{place}/{name}".removeprefix(f"{folder}/") for place, _, some in os.walk(folder) for name in some]

        assert keys(folder) == sorted(found)


NAMES = [f"{stem}{suffix}" for stem, suffix in product(("a", "a.b", "c/a"), (".jpg", ".PNG", ".TXT", ".txt", ".json", ".Json", ".md"))]  # fmt: skip  # noqa: E501


@given(names=st.lists(st.sampled_from(NAMES), unique=True), wants_images=st.booleans())
def test_every_file_is_in_a_sample_or_named(names: list[str], wants_images: bool) -> None:
    items = list(join(names, wants_images=wants_images))

    samples = [item for item in items if isinstance(item, Joined)]
    refused = [item.key for item in items if isinstance(item, Failure)]
    used = {name for sample in samples for name in sample if name is not None}
    captioned = {sample.key.rpartition(".")[0] for sample in samples if sample.text and not sample.image}
    unwanted = {name for name in names if name.endswith((".jpg", ".PNG")) and name.rpartition(".")[0] in captioned}
    assert used.isdisjoint(refused)
    assert {*used, *refused, *unwanted} == set(names)
    assert not (unwanted and wants_images)
    assert len({sample.key for sample in samples}) == len(samples)
    assert all(
        name.rpartition(".")[0] == sample.key.rpartition(".")[0] for sample in samples for name in sample if name
    )
    for name in refused:  # a first one of that name took its place
        first = next(other for other in names if other.lower() == name.lower())
        assert name.endswith(".md") or (first != name and first in used)


def test_items_keep_the_order_of_names() -> None:
    names = ["c.txt", "b.jpg", "b.TXT", "a.jpg", "b.txt", "x.md"]

    items = list(join(names, wants_images=True))

    assert [item.key for item in items] == ["c.txt", "b.jpg", "a.jpg", "b.txt", "x.md"]
    assert items[1] == Joined("b.jpg", "b.TXT", None)


@pytest.mark.parametrize("most", [0, 2, 1000])
def test_a_store_is_listed_like_a_folder(
    memory: str, tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MOST_SUBFOLDERS", most)
    local = write(tmp_path / "in", FILES)

    assert keys(memory) == keys(local) == sorted(set(FILES) - {"a.txt", "a/x.json"})
    assert (
        keys(memory, "memory://in/a")
        == keys(local, local / "a")
        == [key for key in keys(local) if not key.startswith("a/")]
    )


def test_the_folders_of_a_store_are_asked_for_one_by_one(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fsspec.filesystem("memory")
    asked, real = list[str](), type(store).find

    def find(self: object, path: str, **options: object) -> object:
        asked.append(path)
        return real(self, path, **options)

    monkeypatch.setattr(type(store), "find", find)
    keys(memory)

    assert asked == ["/in/a-b", "/in/a.w", "/in/a", "/in/b"]


def test_links_and_pipes(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", ["a.jpg", "sub/b.jpg"])
    os.mkfifo(folder / "pipe.jpg")
    (folder / "to_pipe.jpg").symlink_to(folder / "pipe.jpg")
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    (folder / "round.jpg").symlink_to(folder / "round.jpg")
    (folder / "linked").symlink_to(folder / "sub")
    (folder / "c.jpg").symlink_to(folder / "a.jpg")

    assert sorted(keys(folder)) == [
        "a.jpg", "c.jpg", "gone.jpg", "linked/", "pipe.jpg", "round.jpg", "sub/b.jpg", "to_pipe.jpg",
    ]  # fmt: skip
    assert failures(folder) == {"linked/": "linked_folder", "pipe.jpg": "not_a_file"}


def test_the_target_of_a_link_is_what_counts(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", ["a.jpg"])
    (folder / "b.jpg").symlink_to(folder / "a.jpg")
    (folder / "c.jpg").symlink_to(folder / "nowhere")
    os.utime(folder / "a.jpg", (1, 12.5))

    source = open_files(SourceConfig(input_dataset=str(folder)), str(tmp_path / "out"))

    states = [tuple(source.files_of(key)["image"]) for key in source.units]
    assert states == [("a.jpg", 4, "12.5"), ("b.jpg", 4, "12.5"), ("c.jpg", 0, "")]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = write(tmp_path / "in", ["a.jpg", "closed/b.jpg", "d.jpg"]), os.scandir

    def scandir(path: str | int) -> object:
        if str(path).endswith("closed/"):  # pytest gives a number, to remove the folder
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)

    assert keys(folder) == ["a.jpg", "closed/", "d.jpg"]
    assert failures(folder) == {"closed/": "unlistable"}


def test_an_input_that_cannot_be_listed_is_not_called_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "in", ["a.jpg"])

    def refuse(path: str) -> object:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)

    with pytest.raises(SourceError, match="in: the folder cannot be listed: Permission denied; nothing else there"):
        open_source(SourceConfig(input_dataset=str(folder)), str(tmp_path / "out"))


@pytest.fixture
def deep_picture(tmp_path: Path) -> Iterator[str]:
    """Make a picture below more folders than Python's calls go deep, and remove it: pytest could not."""
    folders = ["in/" + "d/" * depth for depth in range(1200)]
    for folder in folders:
        os.mkdir(f"{tmp_path}/{folder}")  # noqa: PTH102 -- Path.mkdir is as slow as the path is long
    picture = Path(f"{tmp_path}/{folders[-1]}x.jpg")
    picture.touch()
    yield f"{folders[-1]}x.jpg".removeprefix("in/")
    picture.unlink()
    for folder in reversed(folders):
        os.rmdir(f"{tmp_path}/{folder}")  # noqa: PTH106


def test_folders_may_be_deeper_than_python_calls(tmp_path: Path, deep_picture: str) -> None:
    assert keys(tmp_path / "in") == [deep_picture]


@pytest.fixture
def source(tmp_path: Path) -> FilesSource:
    folder = write(tmp_path / "in", (f"{i:03d}{suffix}" for i in range(600) for suffix in (".jpg", ".txt")))
    return open_files(SourceConfig(input_dataset=str(folder), enable_metadata=True), str(tmp_path / "out"))


def test_units_are_a_sequence(source: FilesSource) -> None:
    names = [f"{i:03d}.jpg" for i in range(600)]

    assert len(source.units) == 600
    assert list(source.units) == names
    assert source.units[-1] == "599.jpg"
    assert source.units[250:520:7] == names[250:520:7]
    assert "300.jpg" in source.units
    with pytest.raises(IndexError):
        source.units[600]


def test_samples_are_read_from_anywhere(source: FilesSource) -> None:
    samples = list(source.read(250, 600))

    assert [sample.key for sample in samples] == list(source.units[250:])
    assert samples[10] == source.sample("260.jpg")
    assert [sample.key for sample in source.read_only({("", "511.jpg"), ("", "002.jpg")})] == ["002.jpg", "511.jpg"]
    assert {part: state.path for part, state in source.files_of("512.jpg").items()} == {
        "image": "512.jpg", "text": "512.txt",
    }  # fmt: skip
    with pytest.raises(KeyError):
        source.files_of("512.txt")


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 7])
def test_packed_items_are_those_of_a_list(count: int) -> None:
    items, packed = [f"{2 * i:06d}" for i in range(count)], Packed[str]()
    for item in items:
        packed.append(item)

    assert list(packed) == [*packed] == items
    assert [packed[i] for i in range(-count, count)] == items * 2
    assert packed[::-3] == items[::-3]
    assert list(packed.between(BLOCK - 1, 2 * BLOCK + 1)) == items[BLOCK - 1 : 2 * BLOCK + 1]
    assert list(Mapped(packed, len)) == [6] * count
    assert [packed.find(item, str) for item in items] == list(range(count))
    assert [packed.find(f"{2 * i - 1:06d}", str) for i in range(count + 1)] == [None] * (count + 1)


def test_items_may_be_read_while_others_are_added() -> None:
    packed = Packed[int]()
    for number in range(3 * BLOCK):
        packed.append(number)
        assert packed[number // 2] == number // 2

    assert list(packed) == list(range(3 * BLOCK))


def test_packed_items_take_hardly_any_memory() -> None:
    tracemalloc.start()
    try:
        packed = Packed[tuple[str, int]]()
        for number in range(90_000):
            packed.append((f"folder/{number:020d}.jpg", number))
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert len(packed) == 90_000
    assert kept < 80_000


def test_items_of_very_long_lists_are_found() -> None:
    packed = Packed[str]()  # so long that the first items of its blocks are packed, too
    for number in range(BLOCK * BLOCK + 5 * BLOCK + 3):
        packed.append(f"{2 * number:06d}")

    places = [*range(0, len(packed), 997), BLOCK * BLOCK - 1, BLOCK * BLOCK, len(packed) - 1]
    assert [packed.find(f"{2 * place:06d}", str) for place in places] == places
    assert {packed.find(f"{2 * place + 1:06d}", str) for place in places} == {None}


def test_their_file_goes_with_them() -> None:
    packed = Packed[int]()
    for number in range(BLOCK):
        packed.append(number)
    file = packed.full.file

    del packed

    assert file.closed


def test_threads_at_distant_places_read_a_block_once() -> None:
    packed, items, loaded = Packed[str](), [f"{number:06d}" for number in range(8 * BLOCK)], list[int]()
    for item in items:
        packed.append(item)

    def load(number: int) -> list[str]:
        loaded.append(number)
        return packed.block(number)

    stored = StoredBlocks(len(items), BLOCK, load, packed.heads)
    for place in range(100, len(items)):  # one thread feeds readers, another writes rows
        assert stored[place] == packed[place] == items[place]
        assert stored.find(items[place - 100], str) == packed.find(items[place - 100], str) == place - 100

    assert loaded == list(range(8))
    assert packed.read.cache_info().misses == 8


def test_no_room_for_them_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    packed = Packed[int]()
    for number in range(BLOCK - 1):
        packed.append(number)

    with pytest.raises(StorageError, match="cannot write to the folder for temporary files: No such file"):
        packed.append(BLOCK)


def test_an_output_below_the_input_is_left_out_however_both_are_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("photos/a.jpg", "photos/out/b.jpg", "run/c.jpg", "outer/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path / "run")

    for url in ("../photos", "../link", str(tmp_path / "photos"), f"file://{tmp_path}/run/../photos/"):
        for output in ("../photos/out", "../link/./out", str(tmp_path / "link" / "out")):
            assert keys(url, output) == ["a.jpg"]


@pytest.mark.parametrize("output", [".", "..", "../run", "/"])
def test_an_output_beside_or_above_the_input_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    for name in ("photos/a.jpg", "run/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path / "run")

    assert keys("../photos", output) == ["a.jpg"]


def test_the_place_of_a_unit_is_the_same_wherever_it_is_looked_for(tmp_path: Path) -> None:
    source = open_files(
        SourceConfig(input_dataset=str(write(tmp_path / "in", [f"{i:03d}.jpg" for i in range(BLOCK + 3)]))), "/nowhere"
    )
    count = len(source.units)
    for place in (0, 1, BLOCK - 1, BLOCK, count - 1):
        key = source.units[place]
        assert {source.place_of(key, before) for before in (-1, place - 1, place, count - 1)} == {place}
    assert source.place_of("none.jpg") is None
    assert source.place_of("none.jpg", 4) is None
