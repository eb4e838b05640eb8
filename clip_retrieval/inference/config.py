"""The options of `inference` and `inference.worker`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from clip_retrieval.clusters.config import ClusterConfig, check_engine
from clip_retrieval.clusters.slurm_config import SlurmConfig
from clip_retrieval.encoder.config import EncoderConfig
from clip_retrieval.errors import ConfigError
from clip_retrieval.options import Dropped, check_least, group, option
from clip_retrieval.sources.config import SourceConfig

LARGEST_PORT = 65535

Strategy = Literal["sequential", "multiprocess", "pyspark", "slurm", "ray"]

NO_MCLIP = Dropped(
    "take a multilingual model for both pictures and texts, such as "
    "--clip_model open_clip:xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k",
)
DROPPED: Mapping[str, Dropped] = {
    "use_mclip": NO_MCLIP,
    "mclip_model": Dropped(NO_MCLIP.reason, harmless=(None, "sentence-transformers/clip-ViT-B-32-multilingual-v1")),
    "use_jit": Dropped("torch has deprecated torch.jit, and models run compiled without it", is_refused=False),
}


@dataclass(frozen=True, kw_only=True)
class TelemetryConfig:
    """Options of live progress reports; none affects the output."""

    metrics_port: int = option(
        0, help="Port of 127.0.0.1 at which Prometheus finds /metrics; 0: none.", may_change=True
    )
    enable_wandb: bool = option(
        False, help="Log rate and shares to Weights & Biases; needs clip-retrieval[wandb].", may_change=True
    )
    wandb_project: str = option("clip_retrieval", help="Project of enable_wandb.", may_change=True)

    def __post_init__(self) -> None:
        if not 0 <= self.metrics_port <= LARGEST_PORT:
            raise ConfigError(f"metrics_port is a port up to {LARGEST_PORT}, or 0 for none, not {self.metrics_port}")


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Options of one run; they can be stored as JSON."""

    DROPPED: ClassVar[Mapping[str, Dropped]] = DROPPED
    POSITIONAL: ClassVar[tuple[str, ...]] = (
        "input_dataset", "output_folder", "input_format", "cache_path", "batch_size", "num_prepro_workers",
        "enable_text", "enable_image", "enable_metadata", "write_batch_size", "wds_image_key", "wds_caption_key",
        "clip_model",
    )  # fmt: skip

    source: SourceConfig = group(SourceConfig)
    output_folder: str = option(help="Where embeddings go: a local folder or any fsspec url.", may_change=True)
    encoder: EncoderConfig = group(EncoderConfig)
    batch_size: int | None = option(
        None,
        help="Pictures in a batch. None: 256, on a GPU 512, or what its memory holds.",
        least=1,
        may_change=True,
    )
    num_prepro_workers: int | None = option(
        None,
        help="Processes that decode and resize, for each device. None: one for each core that the device's worker may "
        "use (CLIP_RETRIEVAL_CORES, or all, shared out among the devices); 0: none.",
        least=0,
        may_change=True,
    )
    reader_timeout: float = option(
        120.0,
        help="Seconds that one sample may take before its reader counts as hung, and is replaced; 0: any time. Nothing "
        "is watched with --num_prepro_workers 0.",
        least=0,
        may_change=True,
    )
    write_batch_size: int = option(
        10**6, help="Samples in a partition, roughly: partitions = samples / this.", least=1, may_change=True
    )
    wds_number_file_per_input_file: int = option(
        10000, help="Samples that a tar is assumed to hold when planning.", least=1, may_change=True
    )
    output_partition_count: int | None = option(
        None, help="Partitions, given instead of planned.", least=1, may_change=True
    )
    max_skipped: float = option(
        1.0, help="Share of the samples that may be left out before the run counts as failed (0 to 1).", may_change=True
    )
    update: bool = option(
        False,
        help="Embed only the new and changed files of a folder, and remove those that are gone; ids stay.",
        may_change=True,
    )
    retry_failed: bool = option(
        False, help="Embed again only what failures/ names; what succeeds now is filled in.", may_change=True
    )
    dry_run: bool = option(
        False,
        help="Write nothing: estimate samples, time, memory and disk from a sample of the input.",
        may_change=True,
    )
    plan_only: bool = option(
        False,
        help="Only save the plan in the output folder, for `inference.worker` on any machine.",
        may_change=True,
    )
    distribution_strategy: Strategy | None = option(
        None,
        help="Where partitions are made. sequential: one by one, on the first device; multiprocess: by a process for "
        "each device of this machine; pyspark, slurm, ray: on a cluster. None: here, by a process for each device if "
        "there are several.",
        may_change=True,
    )
    cluster: ClusterConfig = group(ClusterConfig)
    slurm: SlurmConfig = group(SlurmConfig)
    telemetry: TelemetryConfig = group(TelemetryConfig)

    def __post_init__(self) -> None:
        check_least(self)
        self.cluster.check_use(self.distribution_strategy, "--distribution_strategy")
        if self.distribution_strategy in ("pyspark", "ray"):
            check_engine(self.distribution_strategy, f"--distribution_strategy {self.distribution_strategy}")
        if not 0 <= self.max_skipped <= 1:
            raise ConfigError(f"max_skipped is a share between 0 and 1, not {self.max_skipped}")
        if not self.output_folder:
            raise ConfigError("output_folder is empty; name a folder")
        if self.slurm != SlurmConfig() and self.distribution_strategy != "slurm":
            raise ConfigError("slurm_* options are for --distribution_strategy slurm; add that, or leave them out")
        if self.update and self.retry_failed:
            raise ConfigError("update and retry_failed are two runs; give one after the other")
        if (self.update or self.retry_failed) and self.distribution_strategy in ("pyspark", "slurm", "ray"):
            raise ConfigError("update and retry_failed are made on this machine; leave distribution_strategy out")
        if self.update and self.source.subset_size is not None:
            raise ConfigError("update embeds all that is new; leave subset_size out, with a new folder")

    @property
    def leaves_run(self) -> bool:
        """Whether the command ends before the run does, or without one."""
        return self.distribution_strategy == "slurm" and (self.slurm.slurm_print or not self.slurm.slurm_wait)


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Options of a worker: some partitions of a run, made in this process."""

    DROPPED: ClassVar[Mapping[str, Dropped]] = DROPPED
    POSITIONAL: ClassVar[tuple[str, ...]] = (
        "tasks", "input_dataset", "output_folder", "output_partition_count", "input_format", "cache_path", "batch_size",
        "num_prepro_workers", "enable_text", "enable_image", "enable_metadata", "wds_image_key", "wds_caption_key",
        "clip_model",
    )  # fmt: skip

    tasks: tuple[int, ...] = option(help="Partitions to make, such as 0,1 or [0,1].")
    run: InferenceConfig = group(InferenceConfig)

    def __post_init__(self) -> None:
        if self.run.update or self.run.retry_failed:
            raise ConfigError("update and retry_failed change a folder as a whole; give them to `inference`")
        if self.run.plan_only:
            raise ConfigError("plan_only plans a run as a whole; give it to `inference`")
        if self.run.output_partition_count is not None:
            check_tasks(self.tasks, self.run.output_partition_count)


def check_tasks(tasks: Sequence[int], count: int) -> None:
    """Raise ConfigError if a task is not a partition of a run of `count`."""
    outside = [task for task in tasks if not 0 <= task < count]
    if outside:
        raise ConfigError(f"tasks {outside} are outside of 0 to {count - 1}")
