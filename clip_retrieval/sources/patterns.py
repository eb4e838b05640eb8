"""Expands an input to files: a path, a folder, a {000..123} pattern, a glob, or a list of these."""

from __future__ import annotations

import ast
import glob
import os
import re
from collections.abc import Iterator, Sequence

from braceexpand import braceexpand

from clip_retrieval.errors import SourceError
from clip_retrieval.layout import TABLE_FOLDERS
from clip_retrieval.paths import is_pipe, literal, local_path
from clip_retrieval.storage import Folder
from clip_retrieval.words import is_hidden

ONE_RANGE = re.compile(r"(?P<before>[^{},]*)\{(?P<first>[0-9]+)\.\.(?P<last>[0-9]+)\}(?P<after>[^{},]*)")
MARKS = re.compile(r"[*?\[{]")


def list_inputs(text: str, suffixes: Sequence[str], word: str, output_folder: str = "") -> list[str]:
    """Return the urls that `text` names; for a folder, its files with one of the suffixes, sorted by name.

    Tables in `output_folder` are left out. Raises SourceError if nothing is found; `word` names the files there.
    """
    named = [url for pattern in listed_patterns(text, word) for url in expand(pattern, suffixes)]
    urls = without_own(named, output_folder) if output_folder else named
    if not urls:
        raise SourceError(f"{text} holds no {word}")
    if all((path := local_path(url)) is not None and not path.exists() for url in urls):  # ends at the first
        several = f"none of the {len(urls)} {word}s of {text} exists (the first is {urls[0]})"
        raise SourceError(several if len(urls) > 1 else f"there is no file {urls[0]}")
    return urls


def listed_patterns(text: str, word: str) -> list[str]:
    """Return the items of a list literal, or the one pattern."""
    if text.startswith(("[", "(")) and not is_there(text):
        try:
            items = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            if any(is_there(part) for part in parents_of(text)):
                return [text]  # a path below a folder whose name begins with a bracket
            raise SourceError(f"{text} is not a list of {word}s such as ['a', 'b']") from error
        return [str(item) for item in items]
    return [text]


def expand(pattern: str, suffixes: Sequence[str]) -> list[str]:
    """Return the files of a path, a folder, a brace pattern or a glob, in name order.

    A name that exists literally is not a pattern: folders may have names such as `photos [2024]` and `a{b,c}`.
    """
    if is_pipe(pattern):
        return list(braceexpand(pattern))
    pattern = literal(pattern)
    if not MARKS.search(pattern) or is_there(pattern):
        return files_of(pattern, suffixes)
    there = next((part for part in parents_of(pattern) if is_there(part)), "")
    rest, there = pattern.removeprefix(there), literal(there)
    try:
        urls = [there + name for name in expand_braces(rest)]
    except ValueError as error:
        raise SourceError(f"{pattern} is not a pattern: {error}") from error
    if len(urls) > 1:
        return urls
    if not any(mark in urls[0].removeprefix(there) for mark in "*?["):
        return files_of(urls[0], suffixes)
    return matches_of(glob.escape(there) + urls[0].removeprefix(there), with_hidden=is_hidden(rest))


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield what the braces of a pattern stand for; raises ValueError if they cannot be understood.

    One range of numbers is expanded here: braceexpand takes twice the time and memory for a million of them.
    """
    match = ONE_RANGE.fullmatch(pattern)
    if match is None or int(match["first"]) > int(match["last"]):
        yield from braceexpand(pattern, escape=False)
        return
    first, last = match["first"], match["last"]
    is_padded = any(len(number) > 1 and number.startswith("0") for number in (first, last))
    width = max(len(first), len(last)) if is_padded else 0
    for number in range(int(first), int(last) + 1):
        yield f"{match['before']}{number:0{width}d}{match['after']}"


def without_own(urls: Sequence[str], output_folder: str) -> list[str]:
    """Leave out the tables that an earlier run wrote below the input."""
    place = Folder(output_folder).place
    own = {f"{place}/{name}" for name in TABLE_FOLDERS}
    folders = {url.rpartition("/")[0] for url in urls}  # few, of a million urls
    written = {folder for folder in folders if folder and not is_pipe(folder) and Folder(folder).place in own}
    if not written:
        return [*urls]
    return [url for url in urls if url.rpartition("/")[0] not in written]


def is_there(url: str) -> bool:
    """Say whether a path exists literally."""
    path = local_path(url)
    return Folder(url).exists() if path is None else os.path.exists(path)  # noqa: PTH110 -- Path.exists raises if it is too long


def parents_of(pattern: str) -> Iterator[str]:
    """Yield the parent folders of a local path, longest first, each with a slash at the end."""
    while local_path(pattern) is not None and "/" in pattern.rstrip("/"):
        pattern = pattern.rstrip("/").rpartition("/")[0] + "/"
        yield pattern


def matches_of(pattern: str, *, with_hidden: bool) -> list[str]:
    folder = Folder(pattern)
    with folder.answering():
        found = sorted(map(str, folder.fs.glob(folder.root)))
    names = [name for name in found if with_hidden or not is_hidden(name.rpartition("/")[2])]
    return names if folder.is_local else [str(folder.fs.unstrip_protocol(name)) for name in names]


def files_of(url: str, suffixes: Sequence[str]) -> list[str]:
    """Return the path itself or, for a folder, its files with one of the suffixes."""
    folder = Folder(url)
    if not folder.fs.isdir(folder.root):
        return [url]
    names = [name for suffix in suffixes for name in folder.names("", suffix)] or names_below(folder, suffixes)
    return [f"{url.rstrip('/')}/{name}" for name in names]


def names_below(folder: Folder, suffixes: Sequence[str]) -> list[str]:
    """Return the files in subfolders, such as train/0.parquet, without hidden ones."""
    with folder.answering():
        found = folder.fs.find(folder.root)
    names = [path.removeprefix(folder.root.rstrip("/") + "/") for path in sorted(found)]
    return [name for name in names if name.endswith(tuple(suffixes)) and not is_hidden(name)]
