"""Files on any fsspec store: paths, listings, and writing that is whole or absent."""

from __future__ import annotations

import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast
from uuid import uuid4

from clip_retrieval.blobs import open_store, store_errors
from clip_retrieval.errors import OS_ADVICE, ClipRetrievalError, StorageError, first_line
from clip_retrieval.json_files import Shape, parse_json
from clip_retrieval.local_files import LocalFiles
from clip_retrieval.paths import literal, local_path
from clip_retrieval.scratch import HOST, is_left, is_old, list_folder, make_scratch, make_temporary, move_into
from clip_retrieval.words import is_hidden, json_text

PARTIAL_FOLDER = "_partial"


class Folder:
    """A folder on any fsspec store, local or not.

    `keeps`: a run that fails leaves what it has finished there, and goes on with it when it is given again.
    """

    def __init__(self, url: str, *, keeps: bool = False) -> None:
        if not str(url).strip():
            raise StorageError("a folder's name is empty; name a folder (. is the one you are in)")
        self.url = literal(str(url).rstrip("/") or "/")
        path = local_path(self.url.replace("local://", "file://", 1))
        self.is_local = path is not None
        self.keeps = keeps
        self.made: set[str] = set()  # folders of a store that were created
        self.fs: Any  # of fsspec, or LocalFiles
        if path is not None:
            self.fs, self.root = LocalFiles(), absolute(path)
        else:
            try:
                self.fs, root = open_store(self.url)
            except (ValueError, ImportError) as error:
                raise StorageError(f"{url} cannot be opened: {error}") from error
            self.root = root.rstrip("/") or "/"

    @property
    def place(self) -> str:
        """The folder in one spelling: symbolic links, `.` and `..` resolved, with the protocol of its store."""
        if self.is_local:
            return str(os.path.realpath(self.root))
        return str(self.fs.unstrip_protocol(posixpath.normpath(self.root)))

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Turn errors of a remote store into a StorageError."""
        try:
            with store_errors(self.url):
                yield
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError as error:
            if self.is_local:
                raise
            kept = "what is finished is kept, " if self.keeps else ""
            raise StorageError(f"{self.url}: {first_line(error)}; {kept}run it again") from error

    def exists(self, name: str = "") -> bool:
        with self.answering():
            return bool(self.fs.exists(self.path(name) if name else self.root))

    def is_folder(self, name: str) -> bool:
        with self.answering():
            return bool(self.fs.isdir(self.path(name)))

    def names(self, subfolder: str, suffix: str) -> list[str]:
        """Return the names of the files in a subfolder that end with `suffix`, sorted, without hidden ones."""
        self.fs.invalidate_cache()
        try:
            with self.answering():
                found = self.fs.ls(self.path(subfolder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        names = (posixpath.basename(name) for name in found if name.endswith(suffix))  # Path takes five times as long
        return sorted(name for name in names if not is_hidden(name))

    def entries(self, subfolder: str, *, below: bool = False) -> list[dict[str, Any]]:
        """Return what the store says of each entry of a subfolder or, with `below`, of all files below it."""
        self.fs.invalidate_cache()
        place = self.path(subfolder) if subfolder else self.root
        try:
            with self.answering():
                return list(self.fs.find(place, detail=True).values() if below else self.fs.ls(place, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def subfolders(self, subfolder: str) -> list[str]:
        """Return the names of the folders in a subfolder, sorted."""
        return sorted(Path(info["name"]).name for info in self.entries(subfolder) if info["type"] == "directory")

    def sizes(self, subfolder: str, suffix: str) -> dict[str, int]:
        """Return {name: size in bytes} of the files in a subfolder that end with `suffix`."""
        sizes = {Path(info["name"]).name: int(info["size"] or 0) for info in self.entries(subfolder)}
        return {name: sizes[name] for name in sorted(sizes) if name.endswith(suffix) and not is_hidden(name)}

    def open(self, name: str) -> IO[bytes]:
        return cast("IO[bytes]", self.fs.open(self.path(name), "rb"))

    def read_bytes(self, name: str, size: int = -1) -> bytes:
        """Return the bytes of a file, or the first ones up to a size."""
        with self.answering(), self.open(name) as file:
            return file.read(size)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the JSON object in a file; a broken one is a StorageError that names it."""
        return self.read_shaped_json(name, dict[str, Any])

    def read_shaped_json(self, name: str, shape: type[Shape]) -> Shape:
        """Return the JSON in a file as a type (see json_files.py); another shape is a StorageError."""
        try:
            data = self.read_bytes(name)
        except FileNotFoundError as error:
            raise StorageError(f"{self.path(name)} is missing", advice="make the folder again") from error
        except IsADirectoryError as error:
            raise StorageError(f"{self.path(name)} is a folder, not a file", advice="make the folder again") from error
        return parse_json(data, shape, self.path(name), advice="make the folder again")

    def write_json(self, name: str, value: object) -> None:
        with self.staged(name) as staged:
            staged.write_text(json_text(value) + "\n", encoding="utf-8")

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """Yield a local path to write to; if the block succeeds, the file appears under `name` atomically."""
        with self.staging() as folder:
            staged = folder / Path(name).name
            yield staged
            self.publish(staged, name)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Yield a local scratch folder, on the same file system if possible; it is removed at the end."""
        with writable(self.url, keeps=self.keeps):
            if self.is_local:
                folder = Path(self.path(PARTIAL_FOLDER)) / f"{HOST}.{os.getpid()}.{uuid4().hex[:8]}"
                make_scratch(folder)
            else:
                folder = make_temporary()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                self.drop_empty_partial_folder()

    def publish(self, staged: Path, name: str) -> None:
        """Move a finished local file or folder to its final name, by rename or by one upload per file.

        The name of a folder must be free.
        """
        target = self.path(name)
        with self.answering():
            if self.is_local:
                move_into(staged, Path(target))
                return
            parent = str(Path(target).parent)
            if parent not in self.made:  # s3fs asks for the bucket each time
                self.fs.makedirs(parent, exist_ok=True)
                self.made.add(parent)
            if staged.is_dir():
                for file in sorted(staged.iterdir()):
                    self.fs.put_file(str(file), f"{target}/{file.name}")
            else:
                self.fs.put_file(str(staged), target)

    def move(self, name: str, target: str) -> None:
        """Rename a file, replacing any file of the new name, or a folder, whose new name must be free."""
        if self.is_local:
            Path(self.path(target)).parent.mkdir(parents=True, exist_ok=True)
            Path(self.path(name)).replace(self.path(target))
        else:
            self.made.clear()
            self.fs.mv(self.path(name), self.path(target), recursive=self.is_folder(name))

    def remove(self, name: str) -> None:
        if self.exists(name):
            self.made.clear()
            self.fs.rm(self.path(name), recursive=True)

    def remove_leftovers(self, *, own: bool = False) -> None:
        """Remove the scratch folders of processes that are gone: of this machine, or untouched for a week.

        With `own`, also those of this process, which is about to end.
        """
        if not self.is_local:
            return
        for scratch in list_folder(Path(self.path(PARTIAL_FOLDER))):
            if is_left(scratch.name, own=own) or is_old(scratch):
                shutil.rmtree(scratch, ignore_errors=True)
        self.drop_empty_partial_folder()

    def drop_empty_partial_folder(self) -> None:
        self.drop_empty_folders([PARTIAL_FOLDER])

    def drop_empty_folders(self, names: Iterable[str]) -> None:
        """Remove these local folders if they are empty; stores have no folders."""
        for name in names if self.is_local else ():
            with suppress(OSError):  # another process uses it, or it is gone
                Path(self.path(name)).rmdir()


def absolute(path: Path) -> str:
    """Return an absolute path, with its links unresolved; without `..`, unless that follows a link to a folder."""
    plain = os.path.abspath(path)  # noqa: PTH100 -- resolve() replaces links
    is_same = ".." not in path.parts or os.path.realpath(plain) == os.path.realpath(path)
    return plain if is_same else str(path.absolute())


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a scratch folder in the system's temporary folder; it is removed at the end."""
    with writable(tempfile.gettempdir()):
        folder = make_temporary()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def writable(url: str, *, keeps: bool = False) -> Iterator[None]:
    """Turn errors of writing below `url` into a StorageError; `keeps` is that of its Folder."""
    try:
        yield
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        named = "" if error.filename in (None, url) else f" ({error.filename})"
        raise StorageError(f"cannot write to {url}: {error.strerror or error}{named}") from error
    except OSError as error:
        if error.errno is None:
            raise
        advice = "what is finished is kept" if keeps else OS_ADVICE.get(error.errno)
        raise StorageError(f"cannot write to {url}: {os.strerror(error.errno)}", advice=advice) from error


@contextmanager
def made_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write one file or folder to; it is moved into place only if the block succeeds.

    Raises StorageError if a file, or a folder that is not empty, is there already.
    """
    with writable(str(path)):
        target = path.resolve()
        if target.is_file() or (target.is_dir() and any(target.iterdir())):
            raise StorageError(f"{path} exists already and is not an empty folder; name another place, or remove it")
    parent = Folder(str(target.parent))
    parent.remove_leftovers()
    with parent.staged(target.name) as staged:
        yield staged


def size_of(path: Path) -> int:
    """Return the bytes of a local file, or of all files below a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


@contextmanager
def leaving_nothing_empty(folder: Folder) -> Iterator[None]:
    """If the block fails, remove the folder and its parents as far as the block created them and left them empty."""
    root = Path(folder.root)
    made = [path for path in (root, *root.parents) if not path.exists()] if folder.is_local else []
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty, or never created
            for path in made:
                path.rmdir()
        raise


def check_inside(
    folder: Folder, file: str, names: Iterable[str], error: type[ClipRetrievalError] = StorageError
) -> None:
    """Raise `error` if a file of the folder, which strangers may have written, names a place outside of the folder."""
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise error(f"{folder.path(file)} names {name!r}, which is not in its folder; remove or fix that file")


def check_writable(folder: Folder) -> None:
    """Raise StorageError early if nothing can be written."""
    with folder.staging() as staging:
        (staging / "probe").write_bytes(b"")
