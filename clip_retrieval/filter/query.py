"""The words of a command line as a query: texts, rows, and pictures and embeddings in the files that they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.blobs import read_file
from clip_retrieval.encoder.vocabulary import words_of
from clip_retrieval.errors import DAMAGED_NPY, ImageError, QueryError
from clip_retrieval.filter.config import MARKER
from clip_retrieval.filter.kinds import URL, describe_places, held_in, is_text, kind_of
from clip_retrieval.media.places import split_place
from clip_retrieval.other_files import LOOKED_AT, describe_start
from clip_retrieval.query.embed import Query, add_up, explain_unknown_words
from clip_retrieval.query.pictures import read_place
from clip_retrieval.query.searcher import Searcher
from clip_retrieval.query.terms import Words, format_words, parse_words
from clip_retrieval.words import clean


def open_query(words: Sequence[Words], searcher: Searcher) -> Query:
    """Embed the terms of the command line, and add them up. Raises QueryError and EncoderError."""
    return join_terms(words, [open_term(term, searcher) for term in words], searcher)


def check_terms(words: Sequence[Words], model: str) -> None:
    """Raise QueryError for terms that no index of a model can answer, before the index is built. Fetches nothing."""
    vocabulary = words_of(model)
    for term in words:
        if is_text(term):
            explain_unknown_words(clean(term.text), model, vocabulary)
        elif term.row is None and kind_of(term.text) == "embedding":
            read_npy(Path(term.text))
        elif term.row is None and not URL.fullmatch(term.text):
            read_picture(term.text)


def open_queries(queries: Sequence[str], searcher: Searcher) -> list[Query | QueryError]:
    """Embed many queries, the texts of all of them in one batch; a query that fails is replaced by its error."""
    found: list[list[Words] | QueryError] = []
    texts: dict[str, None] = {}  # in the order of their first use
    for query in queries:
        try:
            words = parse_words(query)
            texts |= {clean(term.text): None for term in words if is_text(term)}
            found.append(words)
        except QueryError as error:
            found.append(error)
    embedded = dict(zip(texts, searcher.embed_texts(list(texts)) if texts else (), strict=True))
    return [words if isinstance(words, QueryError) else try_to_join(words, embedded, searcher) for words in found]


def try_to_join(
    words: Sequence[Words], texts: Mapping[str, Query | QueryError], searcher: Searcher
) -> Query | QueryError:
    try:
        parts = [texts[clean(term.text)] if is_text(term) else open_term(term, searcher) for term in words]
        failed = next((part for part in parts if isinstance(part, QueryError)), None)
        return failed or join_terms(words, [part for part in parts if isinstance(part, Query)], searcher)
    except QueryError as error:
        return error


def join_terms(words: Sequence[Words], parts: Sequence[Query], searcher: Searcher) -> Query:
    """Return the weighted sum of opened terms; a single one is itself. Raises QueryError for another dimension."""
    for part in parts:
        searcher.check_dimension(part)
    if len(parts) == 1 and words[0].weight > 0:
        return parts[0]
    return add_up(clean(format_words(words)), [(term.weight, part) for term, part in zip(words, parts, strict=True)])


def open_term(term: Words, searcher: Searcher) -> Query:
    """Embed one term: a row, a quoted text, a picture of the web, or what its words name."""
    text, name = term.text, clean(term.text)
    if term.row is not None:
        return searcher.like_row(term.row)
    kind = "text" if term.is_quoted else kind_of(text)
    if kind == "embedding":
        return searcher.embed_vector(read_npy(Path(text)), name)
    if kind == "image":
        data = fetch_picture(text) if URL.fullmatch(text) else read_picture(text)
        return searcher.embed_picture(data, name)
    query = searcher.embed_text(name)
    if is_foreign_folder(text):
        note = f"{name} is also the name of a folder here; it was used as a word"
        return msgspec.structs.replace(query, warning="; ".join(filter(None, (query.warning, note))))
    return query


def fetch_picture(url: str) -> bytes:
    """Return the bytes behind a url; raises QueryError if it cannot be fetched, or is not on the web."""
    from clip_retrieval.network.connections import FetchError  # http, TLS: 25 ms of every start
    from clip_retrieval.network.fetch import fetch
    from clip_retrieval.network.limits import FetchLimits

    try:
        return fetch(url, FetchLimits())
    except FetchError as error:
        raise QueryError(f"{url} cannot be used as a picture: {error}") from error


def is_foreign_folder(text: str) -> bool:
    """Say whether the text names a folder, other than one with the hits of an earlier query."""
    try:
        return Path(text).is_dir() and not Path(text, MARKER).exists()
    except (OSError, ValueError):
        return False


def read_picture(text: str) -> bytes:
    """Return the bytes of a picture that a query names; raises QueryError if they are a text, or cannot be read."""
    from clip_retrieval.sources.suffixes import TEXT_SUFFIX  # readers of inputs: 10 ms of every start

    path, found, file = Path(text), split_place(text), held_in(text)
    try:
        if file is not None and not path.is_file():
            if found is None:
                raise QueryError(f"{text} names no place in {file}{describe_places(file)}")
            return read_place(*found)
        data = read_file(path)
    except ImageError as error:
        raise QueryError(f"{path} cannot be used as a picture: {error}") from error
    except OSError as error:
        raise QueryError(f"{path} cannot be used as a picture: {error.strerror or error}") from error
    other = describe_start(data[:LOOKED_AT]) or ""
    if other.startswith(("a PDF", "a video")) and describe_places(text):
        raise QueryError(f"{path} is {other}, which holds many pictures{describe_places(text)}")
    if path.suffix.lower() == TEXT_SUFFIX:
        raise QueryError(f"{path} cannot be used as a picture: it is a text file; give the text itself as the query")
    return data


def read_npy(path: Path) -> NDArray[np.generic]:
    """Return the array in an npy file; raises QueryError if it has none."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, *DAMAGED_NPY) as error:
        raise QueryError(f"{path} cannot be read as an npy file: {error}") from error
    if not isinstance(values, np.ndarray):
        values.close()
        raise QueryError(f"{path} cannot be read as an npy file: it is an archive of several arrays")
    return values
