"""Checksums of an ONNX folder: written with it, compared when it is opened. Damaged weights embed without an error.

Every opening compares all sizes, and the content of small files. Reading the weights each time would add a tenth to the
time. So a note in this machine's cache says when they were read, and their inode, size and times. They are read again
if these have changed, after a day, and on Linux after each start of the machine: a crash leaves zeros in files that
were just written.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clip_retrieval.cache_home import cache_home, keep_small, read_small
from clip_retrieval.checksums import sum_stream
from clip_retrieval.encoder.formats.onnx_folder import ABOUT, GRAPHS
from clip_retrieval.errors import EncoderError, describe_os_error
from clip_retrieval.json_files import read_json

SUMS = "sums.json"
SMALL_BYTES = 1_000_000
SECONDS_OF_A_NOTE = 24 * 3600
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

State = list[Any]  # checksum, place on the disk, size, times


@dataclass(frozen=True)
class FileSum:
    """What a file was when it was written."""

    bytes: int
    xxh3_64: str


def write_sums(folder: Path) -> None:
    """Write the checksums of all files of a folder that is finished."""
    sums = {path.name: FileSum(path.stat().st_size, sum_path(path)) for path in sorted(folder.iterdir())}
    values = {name: asdict(said) for name, said in sums.items() if name != SUMS}
    (folder / SUMS).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def sum_path(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return sum_stream(file)


def find_damage(folder: Path, towers: Collection[str], *, is_own: bool) -> str | None:
    """Return what is wrong with a folder, as a sentence without a period; of large graphs, those of `towers` are read.

    A folder in our own cache must be as written. A user's folder may lack checksums and files, and its model.json
    may have been edited.
    """
    try:
        if not is_own and not (folder / SUMS).exists():
            return None
        sums = read_json(folder / SUMS, dict[str, FileSum], EncoderError)
    except EncoderError as error:
        return str(error)
    if is_own and ABOUT not in sums:
        return f"{folder / SUMS} lacks {ABOUT}"
    others = {graph.partition(".")[0] for tower, graph in GRAPHS.items() if tower not in towers}
    note = Note(folder)
    for name, said in sums.items():
        path = folder / name
        if not is_own and (name == ABOUT or not path.exists()):
            continue
        is_read = said.bytes <= SMALL_BYTES or name.partition(".")[0] not in others
        if (damage := note.compare(path, said, is_read=is_read)) is not None:
            return damage
    note.keep()
    return None


class Note:
    """Which files of a folder were compared before; kept in the cache of this machine."""

    def __init__(self, folder: Path) -> None:
        place = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:32]
        self.place = cache_home() / "compared" / f"{place}.json"
        self.start = read_start()
        self.now = time.time()
        self.known: dict[str, tuple[float, State]] | None = None  # read when the first large file comes
        self.is_changed = False

    def compare(self, path: Path, said: FileSum, *, is_read: bool) -> str | None:
        """Return what is wrong with a file."""
        try:
            if not path.is_file():  # a device or a pipe, which a stranger's file may name, has no end
                return f"{path} is missing or is not a file"
            facts = path.stat()
            if facts.st_size != said.bytes:
                return f"{path} is damaged: it has {facts.st_size:,} bytes and had {said.bytes:,} when it was written"
            state = [said.xxh3_64, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
            is_large = facts.st_size > SMALL_BYTES
            if not is_read or (is_large and self.holds(path.name, state)):
                return None
            if sum_path(path) != said.xxh3_64:
                return f"{path} is damaged: its checksum differs from that of what was written"
        except OSError as error:  # a disk that cannot read a block
            return describe_os_error(error)
        if is_large:
            self.read()[path.name] = (self.now, state)
            self.is_changed = True
        return None

    def holds(self, name: str, state: State) -> bool:
        """Say whether a file in this state was compared recently, and since the machine was started."""
        compared, known = self.read().get(name, (0.0, []))
        return known == state and 0 <= self.now - compared < SECONDS_OF_A_NOTE

    def read(self) -> dict[str, tuple[float, State]]:
        if self.known is None:
            self.known = {}
            with suppress(ValueError, TypeError, AttributeError):  # of another version
                start, files = json.loads(read_small(self.place) or b"null")
                if start == self.start:
                    self.known = {name: (float(compared), list(state)) for name, (compared, state) in files.items()}
        return self.known

    def keep(self) -> None:
        if self.is_changed:
            keep_small(self.place, json.dumps([self.start, self.known]))


def read_start() -> str:
    """Return an id of this start of the machine; empty if no file has one, as outside Linux."""
    with suppress(OSError):
        return BOOT_ID.read_text(encoding="ascii").strip()
    return ""
