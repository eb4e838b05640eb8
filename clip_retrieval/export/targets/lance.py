"""A LanceDB table: a folder of Lance files, here or on an object store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lancedb
import numpy as np
from numpy.typing import NDArray

from clip_retrieval.errors import ExportError, describe_os_error, one_line
from clip_retrieval.export.arrow_rows import as_fetched, make_schema, make_table
from clip_retrieval.export.columns import ID, VECTOR
from clip_retrieval.export.source import Block, Ids
from clip_retrieval.export.target import MARK, Fetched, Setup
from clip_retrieval.layout import check_not_inside
from clip_retrieval.paths import local_path
from clip_retrieval.revision import only_one
from clip_retrieval.storage import Folder

LEAST_ROWS = 256  # for an index; fewer rows are compared quickly enough
NPROBES, REFINE, EF = 20, 10, 100
METRIC = "dot"


class LanceTarget:
    """A table whose schema says which rows it has. Its largest id says how far it goes: a block is one commit."""

    answers_at_once = False

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.dtype = np.dtype(np.float16 if setup.wants_half else np.float32)
        self.table_name = setup.config.table
        self.name = f'table "{self.table_name}" of {setup.config.place}'
        self.open = ExitStack()
        if local_path(setup.config.place) is not None:
            check_not_inside(Folder(setup.config.place), ExportError)
        with translating(self.name):
            self.database = lancedb.connect(setup.config.place)
        self.table: Any = None

    def begin(self) -> int:
        """Open or make the table; see Target."""
        with translating(self.name):
            if local_path(self.setup.config.place) is not None:
                self.open.enter_context(only_one(Folder(self.setup.config.place)))
            if self.setup.config.overwrite and self.is_there():
                self.database.drop_table(self.table_name)
            if not self.is_there():
                schema = make_schema(self.setup, self.dtype).with_metadata({MARK: self.setup.mark(self.dtype)})
                self.table = self.database.create_table(self.table_name, schema=schema)
                return 0
            self.table = self.database.open_table(self.table_name)
            mark = (self.table.schema.metadata or {}).get(MARK.encode())
            self.setup.read_mark(None if mark is None else mark.decode(), self.dtype, self.name)
            return max((int(some.max()) + 1 for some in self.ids() if len(some)), default=0)

    def is_there(self) -> bool:
        try:
            self.database.open_table(self.table_name)
        except ValueError:  # lancedb's error for a missing table
            return False
        return True

    def write(self, block: Block) -> None:
        """Commit a block; see Target."""
        if len(block.ids):
            with translating(self.name):
                self.table.add(make_table(block, make_schema(self.setup, self.dtype)))

    def finish(self) -> None:
        """See Target."""

    def ids(self) -> Iterator[Ids]:
        with translating(self.name):
            for batch in self.table.search().select([ID]).to_batches():
                yield batch.column(0).to_numpy()

    def fetch(self, ids: Ids) -> Fetched:
        with translating(self.name):
            wanted = f"{ID} IN ({', '.join(map(str, ids.tolist()))})"
            found = self.table.search().where(wanted).limit(2 * len(ids)).to_arrow()
        return as_fetched(found, self.setup.dim)

    def offers_exact(self) -> bool:
        return True

    def search(self, queries: NDArray[np.float32], k: int, *, exact: bool) -> list[Ids]:
        found = []
        with translating(self.name):
            for query in queries:
                asked = self.table.search(query, vector_column_name=VECTOR).distance_type(METRIC).limit(k)
                asked = asked.bypass_vector_index() if exact else self.tuned(asked, k)
                found.append(asked.select([ID, "_distance"]).to_arrow()[ID].to_numpy())
        return found

    def tuned(self, asked: Any, k: int) -> Any:
        """Return a search with the settings that `build_index` names."""
        asked = asked.nprobes(NPROBES).refine_factor(REFINE)
        return asked.ef(max(EF, REFINE * k)) if self.setup.config.chosen_ann == "hnsw" else asked

    def build_index(self) -> str | None:
        """Build over all rows; see Target."""
        ann = self.setup.config.chosen_ann
        if ann == "none":
            return None
        # training IVF_PQ on fp16 rows takes minutes on a core even for 20,000 rows, scalar quantization half a second
        kind = "IVF_SQ" if ann == "ivf" else "IVF_HNSW_SQ"
        with translating(self.name):
            if self.table.count_rows() < LEAST_ROWS:
                self.setup.notes.append(f"below {LEAST_ROWS} rows LanceDB needs no index: none was built")
                return None
            if not any(VECTOR in index.columns for index in self.table.list_indices()):
                self.table.create_index(metric=METRIC, vector_column_name=VECTOR, index_type=kind)
        return f"{kind}, nprobes {NPROBES}, refine {REFINE}"

    def close(self) -> None:
        self.open.close()


@contextmanager
def translating(name: str) -> Iterator[None]:
    """Turn LanceDB's errors into one sentence."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"{name}: {describe_os_error(error)}") from error
    except (RuntimeError, ValueError, TypeError) as error:
        said = one_line(error).partition(", /")[0]  # a place in Lance's own source code follows
        raise ExportError(f"{name}: {said}; finished rows are kept, run the same command again") from error


def open_target(setup: Setup) -> LanceTarget:
    """Open the database."""
    return LanceTarget(setup)
