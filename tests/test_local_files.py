import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from clip_retrieval.local_files import LocalFiles
from clip_retrieval.storage import Folder


@pytest.mark.parametrize("question", ["exists", "isdir", "isfile"])
@pytest.mark.parametrize("name", ["", "a.txt", "below", "below/b.txt", "link", "dangling", "nothing"])
def test_it_says_of_a_path_what_fsspec_says(tmp_path: Path, question: str, name: str) -> None:
    (tmp_path / "below").mkdir()
    for file in ("a.txt", "below/b.txt"):
        (tmp_path / file).write_text(file)
    (tmp_path / "link").symlink_to("below")
    (tmp_path / "dangling").symlink_to("nowhere")
    path = f"{tmp_path}/{name}"

    assert getattr(LocalFiles(), question)(path) == getattr(LocalFileSystem(), question)(path)


def test_it_lists_and_reads_as_fsspec_does(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "a.txt").write_text("four")
    ours, theirs = LocalFiles(), LocalFileSystem()

    assert sorted(ours.ls(str(tmp_path), detail=False)) == sorted(theirs.ls(str(tmp_path), detail=False))
    assert ours.ls(f"{tmp_path}/a.txt", detail=False) == theirs.ls(f"{tmp_path}/a.txt", detail=False)
    assert ours.size(f"{tmp_path}/a.txt") == 4
    with ours.open(f"{tmp_path}/a.txt") as file:
        assert file.read() == b"four"
    assert ours.find(str(tmp_path)) == [f"{tmp_path}/a.txt"]  # answered by fsspec
    with pytest.raises(FileNotFoundError):
        ours.ls(f"{tmp_path}/nothing", detail=False)


@pytest.mark.parametrize("name", ["below", "a.txt", "link_to_file", "link", "nothing"])
def test_it_removes_as_fsspec_does(tmp_path: Path, name: str) -> None:
    left = []
    for number, files in enumerate((LocalFiles(), LocalFileSystem())):
        place = tmp_path / str(number)
        (place / "below").mkdir(parents=True)
        for file in ("a.txt", "below/b.txt"):
            (place / file).write_text(file)
        (place / "link").symlink_to("below")
        (place / "link_to_file").symlink_to("a.txt")
        refused = False
        try:
            files.rm(f"{place}/{name}", recursive=True)
        except OSError:
            refused = True
        left.append((refused, sorted(str(path.relative_to(place)) for path in place.rglob("*"))))

    assert left[0] == left[1]


@pytest.mark.parametrize("url", ["{}", "file://{}", "local://{}", "{}/", "{}/below/.."])
def test_a_folder_of_this_machine_has_one_root_by_any_spelling(tmp_path: Path, url: str) -> None:
    folder = Folder(url.format(tmp_path))

    assert folder.is_local
    assert folder.root == str(tmp_path)
    assert pickle.loads(pickle.dumps(folder)).root == str(tmp_path)


def test_dots_after_a_link_to_a_folder_lead_where_the_system_goes(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")

    folder = Folder(f"{tmp_path}/link/../made")
    folder.write_json("a.json", {})

    assert folder.place == str(tmp_path / "elsewhere" / "made")
    assert (tmp_path / "elsewhere" / "made" / "a.json").exists()


def test_a_folder_of_this_machine_is_read_and_written_without_fsspec(tmp_path: Path) -> None:
    code = (
        "import sys; from clip_retrieval.storage import Folder; folder = Folder(sys.argv[1])\n"
        "folder.write_json('a.json', {'a': 1}); folder.move('a.json', 'b.json')\n"
        "assert folder.names('', '.json') == ['b.json'] and folder.read_json('b.json') == {'a': 1}\n"
        "folder.write_json('below/c.json', {}); folder.remove('below'); folder.remove('b.json')\n"
        "assert not folder.exists('below') and not folder.exists('b.json')\n"
        "sys.exit('fsspec' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0


def test_asking_an_index_of_this_machine_opens_no_http_and_no_store() -> None:
    code = (
        "import sys, clip_retrieval.filter.run, clip_retrieval.photos.ask\n"
        "sys.exit(' '.join({'fsspec', 'http.client', 'torch', 'pandas'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
