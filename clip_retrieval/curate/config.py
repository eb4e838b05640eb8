"""The options of `dedup`, `label`, `select` and `report`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from clip_retrieval.errors import ConfigError
from clip_retrieval.layout import Modality
from clip_retrieval.options import check_least, group, option, parse_bytes

Kind = Literal["exact", "perceptual", "semantic"]
Form = Literal["ids", "parquet", "datacomp", "webdataset", "embeddings"]

MOST_BITS = 16  # of 64, above which unlike pictures have like hashes


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """Whose rows are looked at."""

    modality: Modality = option("image", help="Look at the embeddings of pictures or of captions.")


@dataclass(frozen=True, kw_only=True)
class WriteConfig:
    """What is written of the rows that are kept."""

    write: tuple[Form, ...] = option(
        ("ids",),
        help="What is written of the rows that are kept: ids (ids.txt, a row a line), parquet (kept.parquet: their "
        "metadata), datacomp (uids.npy), webdataset (tars with their samples) and embeddings (an embeddings folder of "
        "them alone).",
    )

    def __post_init__(self) -> None:
        if not self.write:
            raise ConfigError("write is empty; name what is written, such as ids,parquet")


@dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """Which rows are duplicates, which one of them is kept, and what is written."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("embeddings_folder", "output_folder")

    embeddings_folder: str = option(help="Folder that inference wrote.")
    output_folder: str = option(help="Where groups.parquet, index.html and recipe.json go.")
    rows: RowsConfig = group(RowsConfig)
    threshold: float = option(0.95, help="Semantic duplicates have a cosine of at least this (0 to 1).")
    by: tuple[Kind, ...] = option(
        ("exact", "semantic"),
        help="Which likeness makes a duplicate: exact (the same bytes or embedding), perceptual (pictures whose "
        "hashes differ in few bits; every picture is read) and semantic (cosine of the embeddings).",
    )
    max_bits: int = option(4, help="Perceptual duplicates differ in at most so many of the 64 bits of pHash.", least=0)
    keep_by: str = option(
        "order",
        help="Which one of a group is kept: order (the first), size (the largest picture: width and height), or a "
        "column of numbers (the largest; with - before it, the smallest).",
    )
    against: str | None = option(
        None,
        help="Another embeddings folder, of the same model: find the rows that have a duplicate there (such as a test "
        "set's in training data), not those among themselves.",
    )
    exact: bool | None = option(
        None,
        help="True: find every pair, whatever it takes; False: by blocks, with the recall that is measured. None: all "
        "pairs up to 50,000 rows.",
    )
    blocks: int | None = option(None, help="Number of k-means blocks. None: chosen by the number of rows.", least=1)
    check_rows: int = option(
        1000, help="Rows that are compared with all others, to measure the recall; 0: none.", least=0
    )
    max_memory: str = option("4G", help="Memory that pairs and tables of rows may take.")
    sheet_groups: int = option(200, help="Groups that index.html shows, the largest first; 0: no page.", least=0)
    written: WriteConfig = group(WriteConfig)

    def __post_init__(self) -> None:
        check_least(self)
        parse_bytes(self.max_memory)
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold is a cosine above 0 and up to 1, such as 0.95, not {self.threshold:g}")
        if not self.by:
            raise ConfigError("by is empty; name what makes a duplicate, such as exact,semantic")
        if self.max_bits > MOST_BITS:
            raise ConfigError(f"max_bits is at most {MOST_BITS} of the 64 bits, not {self.max_bits}")
        if "perceptual" in self.by and self.rows.modality != "image":
            raise ConfigError("--by perceptual is for pictures; captions have no such hash")
