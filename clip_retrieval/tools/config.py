"""The options of the small commands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import ClassVar, Literal

from clip_retrieval.encoder.config import EncoderConfig, PictureConfig, Precision
from clip_retrieval.encoder.engines.open import check_model_name
from clip_retrieval.errors import ConfigError
from clip_retrieval.options import check_least, group, option, option_of

ScoreKind = Literal["auto", "softmax", "sigmoid"]

PLACE = "{}"  # stands for the label in a template
TABLE_SUFFIXES = (".md", ".csv", ".json")
MODEL_ALIASES = ("model", "m")  # clip.cpp's
IMAGE_HELP = "A picture, or a folder: all pictures in and below it."


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """The model, and how many pictures or texts it gets at a time."""

    encoder: EncoderConfig = group(EncoderConfig, aliases={"clip_model": MODEL_ALIASES})
    batch_size: int = option(32, help="Pictures, or texts, that are embedded at a time.", least=1)
    pictures: PictureConfig = group(PictureConfig)
    threads: int | None = option(
        None, aliases=("t",), help="Threads to compute with. None: one for each core.", least=1
    )

    def __post_init__(self) -> None:
        check_least(self)
        check_model_name(self.encoder.clip_model)


@dataclass(frozen=True, kw_only=True)
class VerboseConfig:
    """What is reported besides the result."""

    verbose: int = option(0, aliases=("v",), help="1: also report how long each part took.")


@dataclass(frozen=True, kw_only=True)
class SimilarityConfig:
    """Pictures and texts: every pair of them is compared."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("image",)

    image: tuple[str, ...] = option((), repeatable=True, help=IMAGE_HELP)
    text: tuple[str, ...] = option((), repeatable=True, help="A text.")
    embed: EmbedConfig = group(EmbedConfig)
    told: VerboseConfig = group(VerboseConfig)

    def __post_init__(self) -> None:
        if not self.image or not self.text:
            raise ConfigError("similarity is between pictures and texts: give at least one --image and one --text")


@dataclass(frozen=True, kw_only=True)
class ZslConfig:
    """Pictures, and the labels to choose among."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("image",)

    image: tuple[str, ...] = option((), repeatable=True, help=IMAGE_HELP)
    label: tuple[str, ...] = option((), repeatable=True, aliases=("text",), help="A label.")
    labels_file: str | None = option(None, help="File with a label on each line.")
    template: tuple[str, ...] = option(
        (), repeatable=True, help='A sentence with {} for the label, "a photo of a {}"; several are averaged.'
    )
    scores: ScoreKind = option(
        "auto",
        help="softmax: the labels share 1; sigmoid: each by itself. auto: sigmoid if the model has a logit bias.",
    )
    top_k: int = option(5, help="Labels that are named for each picture.", least=1)
    embed: EmbedConfig = group(EmbedConfig)
    told: VerboseConfig = group(VerboseConfig)

    def __post_init__(self) -> None:
        if not self.image:
            raise ConfigError("there is nothing to label: give at least one --image")
        if not self.label and self.labels_file is None:
            raise ConfigError("there is no label to choose: give --label for each, or --labels_file")
        check_templates(self.template)
        check_least(self)


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Pictures and texts, and the folder for their embeddings."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("output_folder", "image")

    output_folder: str = option(
        help="Where the embeddings go: image_embeddings.npy, text_embeddings.npy, and which row is what."
    )
    image: tuple[str, ...] = option((), repeatable=True, help=IMAGE_HELP)
    text: tuple[str, ...] = option((), repeatable=True, help="A text.")
    text_file: tuple[str, ...] = option((), repeatable=True, help="File with a text on each line.")
    embed: EmbedConfig = group(EmbedConfig)

    def __post_init__(self) -> None:
        if not (self.image or self.text or self.text_file):
            raise ConfigError("there is nothing to embed: give at least one --image, --text or --text_file")


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Options of an encoder other than its model."""

    precision: Precision = option_of(EncoderConfig, "precision")
    device: str = option_of(EncoderConfig, "device")
    clip_cache_path: str | None = option_of(EncoderConfig, "clip_cache_path")

    def of_model(self, uri: str) -> EncoderConfig:
        return EncoderConfig(
            clip_model=uri, precision=self.precision, device=self.device, clip_cache_path=self.clip_cache_path
        )


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """A folder of class folders, and the models that name the classes."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("folder",)

    folder: str = option(help="Folder with a folder of pictures for each class; its name is the label.")
    clip_model: tuple[str, ...] = option(
        ("ViT-B/32",), repeatable=True, aliases=MODEL_ALIASES, help="Model, as in the other commands; or several."
    )
    runtime: RuntimeConfig = group(RuntimeConfig)
    batch_size: int = option_of(EmbedConfig, "batch_size")
    pictures: PictureConfig = group(PictureConfig)
    template: tuple[str, ...] = option_of(ZslConfig, "template")
    max_per_class: int | None = option(
        None, help="Use at most this many pictures of each class, the first by name.", least=1
    )
    output: str | None = option(None, help="File for the result: .md, .csv or .json.")

    def __post_init__(self) -> None:
        check_least(self)
        check_templates(self.template)
        if self.output is not None and PurePath(self.output).suffix.lower() not in TABLE_SUFFIXES:
            raise ConfigError(f"output must end in one of {', '.join(TABLE_SUFFIXES)}, not {self.output}")
        for uri in self.clip_model:  # finds a typo in the last name now, not after an hour
            check_model_name(uri)


@dataclass(frozen=True, kw_only=True)
class ModelInfoConfig:
    """One model to look at."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("clip_model",)

    clip_model: str = option(aliases=MODEL_ALIASES, help="Model, as in the other commands.")
    runtime: RuntimeConfig = group(RuntimeConfig)


@dataclass(frozen=True, kw_only=True)
class ParquetToArrowConfig:
    """Parquet files of metadata, and the folder for one Arrow file with all their rows."""

    parquet_folder: str = option(help="Folder of parquet files: the metadata folder of an index.")
    output_arrow_folder: str = option(help="Where 0.arrow goes.")
    columns_to_return: tuple[str, ...] = option(help="Columns to keep: url,caption.")

    def __post_init__(self) -> None:
        if not self.columns_to_return:
            raise ConfigError("columns_to_return is empty; name columns, such as url,caption")


def check_templates(templates: tuple[str, ...]) -> None:
    for template in templates:
        if PLACE not in template:
            raise ConfigError(f"the template {template!r} has no place for the label; write {PLACE} where it goes")
