"""Which rows each part of an index has: parts follow each other, and ids count through. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from clip_retrieval.layout import IMAGE_PATH
from clip_retrieval.server.builds import METRIC
from clip_retrieval.server.config import URL, USUAL_COLUMNS

OLD_MAX_RESULTS, OLD_MAX_QUERIES = 10_000, 64  # of a server that does not report them


class About(msgspec.Struct, frozen=True, kw_only=True):
    """A server's description of one of its indices."""

    name: str
    generation: str
    dimension: int
    rows: dict[str, int]
    clip_model: str | None = None
    fingerprint: str | None = None
    metric: str = METRIC
    columns: list[str] = msgspec.field(default_factory=list)
    usual_columns: list[str] | None = None
    pictures: bool = False
    files: bool = False
    max_results: int = OLD_MAX_RESULTS
    max_queries: int = OLD_MAX_QUERIES

    @property
    def row_count(self) -> int:
        return max(self.rows.values(), default=0)

    @property
    def usual(self) -> list[str]:
        """The columns that clip-retrieval 2's endpoints return."""
        if self.usual_columns is not None:
            return self.usual_columns
        there = self.columns
        return [name for name in USUAL_COLUMNS if name in there or (name == URL and IMAGE_PATH in there)]


class Described(msgspec.Struct, frozen=True):
    """The answer of /v1/indices."""

    indices: list[dict[str, Any]]
    max_results: int = OLD_MAX_RESULTS
    max_queries: int = OLD_MAX_QUERIES


class NotAPartError(ValueError):
    """A server answers, but cannot be a part of the index."""


def read_about(body: bytes, index: str | None) -> About:
    """Return the description of an index in /v1/indices, of the first for None. Raises NotAPartError."""
    try:
        said = msgspec.json.decode(body, type=Described)
        there = [str(one.get("name")) for one in said.indices]
        if not there or (index is not None and index not in there):
            raise NotAPartError(f"has no index {index!r}; it has {', '.join(there) or 'none'}")
        found = said.indices[0 if index is None else there.index(index)]
        limits = {"max_results": said.max_results, "max_queries": said.max_queries}
        return msgspec.convert({**found, **limits}, About)
    except msgspec.MsgspecError as error:
        raise NotAPartError(f"is not a server of clip-retrieval 3 ({error})") from error


def find_difference(about: About, first: About) -> str | None:
    """Say why two indices cannot be parts of one index; None if they can."""
    if about.metric != METRIC:
        return f"answers {about.metric} instead of inner products"
    if about.dimension != first.dimension:
        return f"has {about.dimension} dimensions, and the part before it {first.dimension}"
    if about.fingerprint is None or first.fingerprint is None:
        is_other_model = about.clip_model != first.clip_model
    else:
        is_other_model = about.fingerprint != first.fingerprint
    if is_other_model:
        return f"is of the model {say_model(about)}, and the part before it of {say_model(first)}"
    if set(about.rows) != set(first.rows):
        return f"has {' and '.join(about.rows)} rows, and the part before it {' and '.join(first.rows)} rows"
    return None


def say_model(about: About) -> str:
    mark = f" (fingerprint {about.fingerprint})" if about.fingerprint else ""
    return f"{about.clip_model}{mark}"


@dataclass(frozen=True)
class Layout:
    """The parts of an index in their order."""

    name: str
    parts: tuple[About, ...]

    @cached_property
    def id(self) -> str:
        """The generation: two servers share it only if ids mean the same rows in both."""
        said = "\n".join(f"{part.generation} {part.row_count}" for part in self.parts)
        return xxhash.xxh3_64(said.encode()).hexdigest()

    @cached_property
    def first_ids(self) -> tuple[int, ...]:
        """The id of the first row of each part, and one more: the number of rows."""
        return tuple(accumulate((part.row_count for part in self.parts), initial=0))

    @property
    def row_count(self) -> int:
        return self.first_ids[-1]

    @cached_property
    def rows(self) -> dict[str, int]:
        """Rows of each modality."""
        return {modality: sum(part.rows[modality] for part in self.parts) for modality in self.parts[0].rows}

    @cached_property
    def max_results(self) -> int:
        return min(part.max_results for part in self.parts)

    @cached_property
    def max_queries(self) -> int:
        return min(part.max_queries for part in self.parts)

    def columns(self, chosen: Sequence[str] | None) -> tuple[str, ...]:
        """Return the chosen columns among all that a part may return."""
        return merge_names([part.columns for part in self.parts], chosen)

    def usual_columns(self, chosen: Sequence[str] | None) -> tuple[str, ...]:
        """Return the columns of clip-retrieval 2's endpoints."""
        listed = [part.usual if chosen is None else [*part.columns, *part.usual] for part in self.parts]
        return merge_names(listed, chosen)

    def owners(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the place of the part that has each row."""
        return np.searchsorted(np.array(self.first_ids), ids, side="right") - 1


def merge_names(lists: Sequence[Sequence[str]], chosen: Sequence[str] | None) -> tuple[str, ...]:
    there = dict.fromkeys(name for names in lists for name in names)
    return tuple(there if chosen is None else [name for name in chosen if name in there])
