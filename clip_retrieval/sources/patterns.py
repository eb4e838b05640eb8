"""Which files an input names: a path, a {000..123} pattern, a glob, a folder, a list of those."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from braceexpand import braceexpand

from clip_retrieval.blobs import PIPE, local_path
from clip_retrieval.errors import SourceError
from clip_retrieval.storage import Folder


def list_inputs(text: str, suffixes: Sequence[str], word: str) -> list[str]:
    """Return the urls that `text` names, of folders the files with one of the suffixes, in name order.

    Raises SourceError where there are none; `word` is what they are called there.
    """
    urls = [url for pattern in listed_patterns(text, word) for url in expand(pattern, suffixes)]
    if not urls:
        raise SourceError(f"{text} holds no {word}")
    local = [path for path in map(local_path, urls) if path is not None]
    if len(local) == len(urls) and not any(path.exists() for path in local):
        raise SourceError(f"none of the {len(urls)} {word}s of {text} exists (the first is {urls[0]})")
    return urls


def listed_patterns(text: str, word: str) -> list[str]:
    """Return the items of a list literal, or the one pattern."""
    if text.startswith(("[", "(")):
        try:
            items = ast.literal_eval(text)
        except (ValueError, SyntaxError) as error:
            raise SourceError(f"{text} is no list of {word}s such as ['a', 'b']") from error
        return [str(item) for item in items]
    return [text]


def expand(pattern: str, suffixes: Sequence[str]) -> list[str]:
    """Return the files of a brace pattern, a glob, or a folder, in name order."""
    if pattern.startswith(PIPE):
        return list(braceexpand(pattern))
    whole = local_path(pattern)
    if whole is not None and whole.is_file():
        return [pattern]
    try:
        urls = list(braceexpand(pattern, escape=False))
    except ValueError as error:
        raise SourceError(f"{pattern} is no pattern: {error}") from error
    if len(urls) > 1:
        return urls
    path = local_path(urls[0])
    folder = Folder(urls[0])
    if any(mark in urls[0] for mark in "*?["):
        with folder.answering():
            found = sorted(folder.fs.glob(folder.root))
        return [str(name) if path is not None else str(folder.fs.unstrip_protocol(name)) for name in found]
    if folder.fs.isdir(folder.root):
        names = [name for suffix in suffixes for name in folder.names("", suffix)] or names_below(folder, suffixes)
        return [f"{urls[0].rstrip('/')}/{name}" for name in names]
    return urls


def names_below(folder: Folder, suffixes: Sequence[str]) -> list[str]:
    """Return the files in folders of a folder, such as train/0.parquet, but for those in hidden ones."""
    with folder.answering():
        found = folder.fs.find(folder.root)
    names = [path.removeprefix(folder.root.rstrip("/") + "/") for path in sorted(found)]
    return [name for name in names if name.endswith(tuple(suffixes)) and not f"/{name}".count("/.")]
