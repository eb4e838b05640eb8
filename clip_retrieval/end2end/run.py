"""The stages of `end2end`; each continues where it was stopped."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_retrieval.end2end.config import EMBEDDINGS, INDEX, INDICES_PATHS, End2EndConfig
from clip_retrieval.end2end.download import download
from clip_retrieval.end2end.recognize import recognize
from clip_retrieval.errors import ConfigError
from clip_retrieval.index.build import BuiltIndices, build_indices
from clip_retrieval.index.folder.build_options import read_index_config
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.run import run_inference
from clip_retrieval.inference.summary import RunSummary
from clip_retrieval.installed import need
from clip_retrieval.layout import IMAGE_PATH, IndexFolder, check_not_inside, read_manifest
from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.listen import bind
from clip_retrieval.server.start import run_back
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.storage import Folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class End2EndResult:
    """What the stages made."""

    input_format: str
    summary: RunSummary
    indices: BuiltIndices
    indices_paths: str

    def to_json(self) -> dict[str, Any]:
        return {
            "input_format": self.input_format,
            "inference": self.summary.to_json(),
            "index": self.indices.to_json(),
            "indices_paths": self.indices_paths,
        }


def clip_end2end(*arguments: object, **options: object) -> End2EndResult:
    """Embed, index and, unless `run_back` is False, serve until a signal says stop; flags of `clip-retrieval end2end`.

    Raises ClipRetrievalError. When called again, it continues where it was stopped.
    """
    config = build_config(End2EndConfig, options, arguments)
    result = run_end2end(config)
    if config.run_back:
        run_back(back_config(config, result))
    return result


def run_end2end(config: End2EndConfig) -> End2EndResult:
    """Do all stages but the last one, serving."""
    if config.run_back:
        check_servable(config)
    check_not_inside(Folder(config.output_folder), ConfigError)  # before anything is downloaded
    place = Path(config.output_folder)
    source = read_source(config)
    logger.info("%s is read as %s; embedding into %s", source.input_dataset, source.input_format, place / EMBEDDINGS)
    summary = run_inference(
        InferenceConfig(
            source=source,
            output_folder=str(place / EMBEDDINGS),
            encoder=config.encoder,
            batch_size=config.batch_size,
            num_prepro_workers=config.num_prepro_workers,
            write_batch_size=config.write_batch_size,
            update=config.update,
        )
    )
    logger.info("%s rows are embedded; indexing into %s", f"{summary.stats.sample_count:,}", place / INDEX)
    indices = build_index(config, place)
    paths = Folder(str(place))
    if not paths.exists(INDICES_PATHS):  # an existing one may have been changed by hand
        paths.write_json(INDICES_PATHS, {place.resolve().name or INDEX: INDEX})
    return End2EndResult(source.input_format, summary, indices, str(place / INDICES_PATHS))


def check_servable(config: End2EndConfig) -> None:
    """Raise ConfigError now if serving would fail after hours of work."""
    later = "give --run_back False to serve later"
    need("uvicorn", "serving at the end", ConfigError, extra="serve", instead=later)
    bind(config.access).close()


def read_source(config: End2EndConfig) -> SourceConfig:
    """Return what is embedded, after running img2dataset if asked for."""
    if config.downloader == "img2dataset":
        return SourceConfig(
            input_dataset=download(config), input_format="webdataset", enable_text=config.enable_text,
            enable_metadata=config.enable_metadata, subset_size=config.subset_size,
        )  # fmt: skip
    return SourceConfig(
        input_dataset=config.url_list,
        input_format=config.input_format or recognize(config.url_list),
        enable_text=config.enable_text,
        enable_metadata=config.enable_metadata,
        subset_size=config.subset_size,
        url_column=config.url_column,
        caption_column=config.caption_column,
        fetch_concurrency=config.fetch_concurrency,
        fetch=config.fetch,
    )


def build_index(config: End2EndConfig, place: Path) -> BuiltIndices:
    """Build the index, or add what is new to the existing one."""
    folder = IndexFolder(str(place / INDEX))
    asked: dict[str, object] = {
        "embeddings_folder": str(place / EMBEDDINGS),
        "index_folder": folder.url,
        "current_memory_available": config.current_memory_available,
        "update": read_manifest(folder) is not None,
    }
    if config.max_index_memory_usage is not None:
        asked["max_index_memory_usage"] = config.max_index_memory_usage
    return build_indices(read_index_config(asked))


def back_config(config: End2EndConfig, result: End2EndResult) -> BackConfig:
    """Return how the index is served, with the column in which a front finds the urls of pictures."""
    url_column = IMAGE_PATH if result.input_format == "urls" else "url"
    return BackConfig(indices_paths=result.indices_paths, access=config.access, url_column=url_column)
