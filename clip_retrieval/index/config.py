"""The options of `index`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from clip_retrieval.clusters.config import ClusterConfig, ClusterEngine, check_engine
from clip_retrieval.errors import ConfigError
from clip_retrieval.index.measuring.tuning import DEFAULT_QUERY_MS, Target
from clip_retrieval.layout import EMBEDDING_FOLDERS, Modality
from clip_retrieval.options import check_least, group, option, option_of, parse_bytes

EngineName = Literal["auto", "autofaiss", "faiss"]


@dataclass(frozen=True, kw_only=True)
class DistributionConfig:
    """Options of building on a cluster; flags of autofaiss, and flags of clusters."""

    distributed: ClusterEngine | None = option(
        None,
        help="pyspark, ray: a cluster of Spark or Ray adds the vectors (pip install 'clip-retrieval[spark]' or [ray]).",
    )
    nb_indices_to_keep: int = option(
        1, help="Number of files of a distributed index; they are searched together.", least=1
    )
    temporary_indices_folder: str | None = option(
        None,
        aliases=("temporary_folder",),
        help="Where executors put parts of the index, on a shared file system or a store; None: in the index folder.",
    )
    cluster: ClusterConfig = group(ClusterConfig)

    def __post_init__(self) -> None:
        check_least(self)
        if self.distributed is None and self.nb_indices_to_keep > 1:
            raise ConfigError(
                "nb_indices_to_keep is for --distributed pyspark or ray; an index that is built here is one file"
            )
        if self.distributed:
            check_engine(self.distributed, f"--distributed {self.distributed}")
        self.cluster.check_use(self.distributed, "--distributed")


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Targets of choosing an index's search settings."""

    wanted_recall: float | None = option(
        None,
        help="Take the fastest settings with this recall@10, mean of image and text queries, such as 0.95; None: the "
        "best recall in the time.",
        kept=True,
    )
    max_index_query_time_ms: float = option(DEFAULT_QUERY_MS, help="Milliseconds that a query may take.", kept=True)

    def __post_init__(self) -> None:
        self.target()

    def target(self) -> Target:
        """Return the target; raises ConfigError if it is invalid."""
        return Target(self.max_index_query_time_ms, self.wanted_recall)


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Options of `index`: the input and the bounds."""

    POSITIONAL: ClassVar[tuple[str, ...]] = (
        "embeddings_folder", "index_folder", "max_index_memory_usage", "current_memory_available", "copy_metadata",
        "image_subfolder", "text_subfolder", "nb_cores",
    )  # fmt: skip

    embeddings_folder: str = option(help="Folder that inference wrote.", aliases=("input_folder",))
    index_folder: str = option(help="Where the index goes.", aliases=("output_folder",))
    max_index_memory_usage: str = option(
        "4G", help="Largest size of each index, in memory and as a file: 500MB, 4G.", kept=True
    )
    current_memory_available: str = option("16G", help="Memory that building may take.", kept=True)
    copy_metadata: bool = option(True, help="Copy the metadata next to the index.", kept=True)
    write_arrow: bool | None = option(
        None,
        help="Write metadata.arrow, for fast access by row; None: if the metadata is copied.",
        kept=True,
    )
    image_subfolder: str = option(EMBEDDING_FOLDERS["image"], help="Sub-folder of the image embeddings.", kept=True)
    text_subfolder: str = option(EMBEDDING_FOLDERS["text"], help="Sub-folder of the text embeddings.", kept=True)
    nb_cores: int | None = option(None, help="Cores to use; None: all.", least=1)
    engine: EngineName = option("auto", help="What builds: auto and faiss are our own engine on faiss.", kept=True)
    index_key: str | None = option(
        None,
        help="Build this kind, a key of faiss's index_factory such as HNSW32 or IVF1024,SQ8; None: what is best.",
        kept=True,
    )
    plan_sample: int = option(
        32_768,
        help="Rows of the embeddings on which kinds are tried before 200,000 rows or more are built, and by --dry_run; "
        "0: none, plans are as for CLIP embeddings.",
        least=0,
        kept=True,
    )
    dry_run: bool = option(False, help="Say what would be built, and what it will cost; nothing is written.")
    update: bool = option(
        False,
        help="Apply what changed in the embeddings folder since the index was built, without rebuilding; bounds "
        "and targets that are not given are those of the index.",
    )
    distribution: DistributionConfig = group(DistributionConfig)
    tuning: TuningConfig = group(TuningConfig)

    def __post_init__(self) -> None:
        limit, available = parse_bytes(self.max_index_memory_usage), parse_bytes(self.current_memory_available)
        if limit > available and self.engine == "autofaiss":
            raise ConfigError(
                f"max_index_memory_usage {self.max_index_memory_usage} is more than current_memory_available "
                f"{self.current_memory_available}; autofaiss holds the whole index in memory, our own engine need not"
            )
        check_least(self)
        if self.index_key is not None and not self.index_key.strip():
            raise ConfigError("index_key names a kind of index, such as IVF1024,Flat; leave it out to let us choose")
        if self.dry_run and self.engine == "autofaiss":
            raise ConfigError("dry_run says what our own engine would build; leave --engine autofaiss out")


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Options of `index score`."""

    index_folder: str = option(help="Folder of the index: ours, or one that clip-retrieval 2 and autofaiss made.")
    embeddings_folder: str = option(help="Folder of the embeddings that it was built from.")
    index_param: str | None = option(
        None, help="Search settings to measure, such as nprobe=64,k_factor_rf=8; None: the current ones."
    )
    tune: bool = option(False, help="Choose new search settings, and write them into image.json and text.json.")
    tuning: TuningConfig = group(TuningConfig)
    output: str | None = option(None, help="Json file for the outcome.")
    image_subfolder: str = option_of(IndexConfig, "image_subfolder")
    text_subfolder: str = option_of(IndexConfig, "text_subfolder")
    nb_cores: int | None = option_of(IndexConfig, "nb_cores")

    def __post_init__(self) -> None:
        check_least(self)
        if self.tune and self.index_param is not None:
            raise ConfigError("tune chooses the settings that index_param gives; leave one of them out")
        if not self.tune and self.tuning != TuningConfig():
            raise ConfigError("wanted_recall and max_index_query_time_ms are for --tune True")


@dataclass(frozen=True, kw_only=True)
class CombineConfig:
    """Options of `index combine`."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("input_folder", "output_folder")

    input_folder: str = option(help="Folder with index folders, with image.index/*.index, or with *.index files.")
    output_folder: str = option(help="Index folder that the merged index goes to.")
    modality: Modality = option("image", help="Which index of the folders.")
    on_disk: bool = option(False, help="Keep the inverted lists on disk: less memory, to merge and to search.")
    overwrite: bool = option(
        False, help="Replace the index of that modality in the output folder; without it, such a folder is refused."
    )


@dataclass(frozen=True, kw_only=True)
class CombinerConfig:
    """The flags of clip-retrieval 2's index_combiner."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("input_folder", "output_folder")

    input_folder: str = option(help="Folder with *.index files.")
    output_folder: str = option(help="Folder that merged_index.ivfdata and populated.index go to.")
