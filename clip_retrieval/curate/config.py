"""The options of `dedup`, `label`, `select` and `report`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from clip_retrieval.errors import ConfigError
from clip_retrieval.installed import need
from clip_retrieval.layout import Modality
from clip_retrieval.options import check_least, group, option, option_of, parse_bytes
from clip_retrieval.query.config import SearcherConfig
from clip_retrieval.query.unknown_column import ROW_ID
from clip_retrieval.tools.config import PLACE, ScoreKind, ZslConfig

Kind = Literal["exact", "perceptual", "semantic"]
Form = Literal["ids", "parquet", "datacomp", "webdataset", "embeddings"]

Activation = Literal["none", "relu", "gelu"]
Output = Literal["raw", "sigmoid"]

PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w-]*")  # of a folder and a column
MOST_BITS = 16  # of 64; above it, different pictures have similar hashes


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """Which embeddings are looked at."""

    modality: Modality = option("image", help="Look at the embeddings of pictures or of captions.")


@dataclass(frozen=True, kw_only=True)
class WriteConfig:
    """What is written of the rows that are kept, and what may be replaced."""

    write: tuple[Form, ...] = option(
        ("ids",),
        help="What is written of the rows that are kept: ids (ids.txt, one per line), parquet (kept.parquet: their "
        "metadata), datacomp (uids.npy), webdataset (tars with their samples) and embeddings (an embeddings folder "
        "with only these rows).",
    )
    overwrite: bool = option(
        False,
        help="Replace all that this command wrote there before; without it, a result of other options is an error.",
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
        help="What makes a duplicate: exact (the same bytes or embedding), perceptual (pictures whose "
        "hashes differ in few bits; every picture is read) and semantic (cosine of the embeddings).",
    )
    max_bits: int = option(4, help="Most bits of the 64 of pHash in which perceptual duplicates differ.", least=0)
    keep_by: str = option(
        "order",
        help="Which row of a group is kept: order (the first), size (the largest picture, by columns width and height "
        "or by the files), or a column of numbers (the largest; with - before the name, the smallest).",
    )
    against: str | None = option(
        None,
        help="Another embeddings folder, of the same model: find the rows that have a duplicate there (such as test "
        "data in training data), not duplicates within the folder.",
    )
    exact: bool | None = option(
        None,
        help="True: find every pair, however long it takes; False: compare by blocks, and measure the recall. None: "
        "every pair up to 50,000 rows.",
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


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model of the embeddings, for labels."""

    clip_model: str | None = option(None, help="The model of the embeddings; only for folders that do not name theirs.")
    device: str = option_of(SearcherConfig, "device")
    clip_cache_path: str | None = option_of(SearcherConfig, "clip_cache_path")


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Labels, and how their similarities become probabilities."""

    label: tuple[str, ...] = option_of(ZslConfig, "label")
    labels_file: str | None = option_of(ZslConfig, "labels_file")
    template: tuple[str, ...] = option_of(ZslConfig, "template")
    scores: ScoreKind = option_of(ZslConfig, "scores")
    each: bool = option(False, help="Also a column with the probability of each label, called NAME.LABEL.")

    def __post_init__(self) -> None:
        wrong = next((template for template in self.template if PLACE not in template), None)
        if wrong is not None:
            raise ConfigError(f"the template {wrong!r} has no {PLACE} for the label")
        if self.template and not self.is_given:
            raise ConfigError("--template is for labels; give --label or --labels_file")

    @property
    def is_given(self) -> bool:
        return bool(self.label) or self.labels_file is not None


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Heads: small networks over embeddings, such as for aesthetics or safety."""

    head: tuple[str, ...] = option(
        (),
        repeatable=True,
        help="A file with a linear or MLP head (npz, safetensors or torch): a column of its scores, named after the "
        "file.",
    )
    head_activation: Activation = option("none", help="Between a head's layers; LAION's aesthetic heads have none.")
    head_output: Output = option("raw", help="sigmoid: scores become probabilities.")


@dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """Which columns are computed for the rows of an embeddings folder."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("embeddings_folder",)

    embeddings_folder: str = option(help="Folder that inference wrote; the columns go into its folder columns/.")
    rows: RowsConfig = group(RowsConfig)
    name: str = option("label", help="Name of this set of columns, and of the column with the best label.")
    prompts: PromptConfig = group(PromptConfig)
    similarity: bool = option(False, help="A column image_text_similarity: the cosine of each picture and its caption.")
    heads: HeadConfig = group(HeadConfig)
    outlier: bool = option(
        False, help="A column outlier: 1 minus the mean cosine to the 10 nearest of 2,048 rows; large values are odd."
    )
    clusters: int | None = option(
        None,
        help="Number of clusters: columns cluster, cluster_name (by labels, else captions) and cluster_similarity.",
        least=2,
    )
    index_folder: str | None = option(
        None, aliases=("indice_folder",), help="An index of this folder; it gets the columns without a new build."
    )
    model: ModelConfig = group(ModelConfig)
    overwrite: bool = option_of(WriteConfig, "overwrite")

    def __post_init__(self) -> None:
        check_least(self)
        if not PLAIN_NAME.fullmatch(self.name):
            raise ConfigError(f"name consists of letters, digits, - and _, such as label; not {self.name!r}")
        if self.name.lower() == ROW_ID:
            raise ConfigError(f"name is {self.name}, which conditions call the rows' ids; give another --name")
        if not (self.prompts.is_given or self.similarity or self.heads.head or self.outlier or self.clusters):
            raise ConfigError("nothing to compute; give --label, --similarity, --head, --outlier or --clusters")


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which rows are chosen, in this order of steps: conditions, clusters, balance, count."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("embeddings_folder", "output_folder")

    embeddings_folder: str = option(help="Folder that inference wrote.")
    output_folder: str = option(help="Where the chosen rows, index.html and recipe.json go.")
    rows: RowsConfig = group(RowsConfig)
    where: str | None = option(None, help="Only rows that meet a condition over columns, as for filter.")
    ids: str | None = option(None, help="Only rows of this list, one row id per line, such as the ids.txt of dedup.")
    top: str | None = option(
        None, help="A column of numbers: rows with the largest come first (with - before the name, the smallest)."
    )
    per_cluster: int | None = option(None, help="Most rows of each cluster; the first ones are chosen.", least=1)
    cluster_column: str = option("cluster", help="The column of --per_cluster.")
    balance: str | None = option(
        None,
        help="A column: equally many rows of each of its values, as far as available; without --count as many as the "
        "rarest value has.",
    )
    count: int | None = option(None, help="Most rows that are chosen.", least=1)
    diverse: bool = option(
        False, help="Choose the rows that differ most from each other (farthest points, by block), not the first ones."
    )
    sheet_rows: int = option(200, help="Rows that index.html shows; 0: no page.", least=0)
    written: WriteConfig = group(WriteConfig)

    def __post_init__(self) -> None:
        check_least(self)
        if self.where is not None:
            need("duckdb", "--where", ConfigError)
        if self.diverse and self.count is None and self.balance is None:
            raise ConfigError("--diverse needs a number of rows; give --count")
        steps = (self.where, self.ids, self.per_cluster, self.balance, self.count)
        if self.top is not None and self.per_cluster is None and self.balance is None and self.count is None:
            raise ConfigError(f"--top {self.top} only orders rows; give --count, or another number of rows, with it")
        if all(step is None for step in steps):
            raise ConfigError("nothing to choose by; give --where, --ids, --per_cluster, --balance or --count")
        if self.top is not None and self.diverse and self.per_cluster is None:
            raise ConfigError(f"--diverse ignores the order --top {self.top}; leave one of them out")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What a page reports about an embeddings folder."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("embeddings_folder", "output_file")

    embeddings_folder: str = option(help="Folder that inference wrote.")
    output_file: str = option(help="The page, such as report.html; all in one file.")
    rows: RowsConfig = group(RowsConfig)
    clusters: int | None = option(None, help="Clusters that are shown. None: 20, or fewer for fewer rows.", least=2)
    sample: int = option(20_000, help="Rows that clusters, outliers, captions and sizes are taken from.", least=100)
    threshold: float = option(0.95, help="Near-duplicates have a cosine of at least this.")

    def __post_init__(self) -> None:
        check_least(self)
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold is a cosine above 0 and up to 1, such as 0.95, not {self.threshold:g}")
        if not self.output_file.lower().endswith((".html", ".htm")):
            raise ConfigError(f"output_file is a page, such as report.html, not {self.output_file}")
