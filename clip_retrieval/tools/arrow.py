"""`parquet_to_arrow`: metadata of clip-retrieval 2 as one Arrow file, for its `back --use_arrow` and for ours."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from clip_retrieval.errors import StorageError
from clip_retrieval.metadata.parquet import ParquetFiles
from clip_retrieval.metadata.write import WrittenArrow, write_arrow
from clip_retrieval.progress import show_progress
from clip_retrieval.storage import Folder
from clip_retrieval.tools.config import ParquetToArrowConfig

logger = logging.getLogger(__name__)

ARROW_NAME = "0.arrow"  # clip-retrieval 2 numbers its files from 0, with 10**10 rows in each


@dataclass(frozen=True)
class ConvertedMetadata:
    """The Arrow file, and how long it took."""

    path: str
    written: WrittenArrow
    seconds: float

    def to_json(self) -> dict[str, object]:
        return {
            "path": self.path,
            "rows": self.written.rows,
            "columns": list(self.written.columns),
            "bytes": self.written.size,
            "seconds": round(self.seconds, 2),
        }


def run_parquet_to_arrow(config: ParquetToArrowConfig) -> ConvertedMetadata:
    """Write the rows of a folder's parquet files, in name order, to 0.arrow, which appears when it is complete.

    Raises StorageError if there is no parquet file, if a column is in none of them, or if the output folder has other
    Arrow files, whose rows would count as coming before or after these.
    """
    start = time.perf_counter()
    source, target = Folder(config.parquet_folder), Folder(config.output_arrow_folder)
    files = ParquetFiles(source, "")
    if not files.footers:
        raise StorageError(f"there is no parquet file in {source.url}")
    others = [name for name in target.names("", ".arrow") if name != ARROW_NAME]
    if others:
        raise StorageError(f"{target.url} has {others[0]}, whose rows would join these; name an empty folder")
    if target.names("", ".parquet"):
        logger.warning("clip-retrieval 2 needs a folder with only Arrow files: move the parquet files away")
    with show_progress("rows", files.row_count) as advance, target.staged(ARROW_NAME) as path:
        written = write_arrow(files, path, config.columns_to_return, advance)
    return ConvertedMetadata(target.path(ARROW_NAME), written, time.perf_counter() - start)
