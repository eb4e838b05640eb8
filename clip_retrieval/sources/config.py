"""Options of the input."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from clip_retrieval.encoder.config import PictureConfig
from clip_retrieval.errors import ConfigError
from clip_retrieval.layout import FOLDER_FORMATS
from clip_retrieval.media.config import VideoConfig
from clip_retrieval.network.limits import FetchLimits
from clip_retrieval.options import check_least, group, option

InputFormat = Literal["files", "video", "webdataset", "parquet", "archive", "datasets", "urls"]
TABLE_OPTIONS: Mapping[str, tuple[InputFormat, ...]] = {
    "image_column": ("parquet", "datasets"),
    "caption_column": ("parquet", "datasets", "urls"),
    "url_column": ("urls",),
    "paths_below": ("parquet", "datasets"),
}
SHARD_FORMATS = ("webdataset", "archive")  # formats whose rows have shard_offset and shard_size


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """The input, and which parts of its samples are wanted."""

    input_dataset: str = option(
        help="Folder of pictures and PDFs (files) or videos (video), or tars, tables, archives: a path, a {000..123} "
        "pattern, a glob, a list, a folder of them, any fsspec url; tars also pipe:COMMAND."
    )
    input_format: InputFormat = option("files", help="What input_dataset is.")
    subset_size: int | None = option(
        None,
        help="For a trial: embed at most this many samples, the first ones of the input.",
        least=1,
    )
    enable_text: bool = option(True, help="Embed captions.")
    enable_image: bool = option(True, help="Embed pictures.")
    enable_metadata: bool = option(False, help="Keep the json next to each sample, or a table's columns, as columns.")
    enable_pages: bool = option(True, help="files: take each page of PDFs as a sample.", may_change=True)
    require_all: bool = option(False, help="Leave out samples that lack a wanted part, instead of keeping their row.")
    wds_image_key: str | None = option(
        None, help="Extension of pictures in tars, or several with ';' between; without it every image extension."
    )
    wds_caption_key: str = option("txt", help="Extension of captions in tars.")
    cache_path: str | None = option(None, help="Folder in which tars read from elsewhere are kept.", may_change=True)
    image_column: str | None = option(
        None, help="parquet, datasets: column of pictures (bytes, or paths); without it one of a usual name."
    )
    caption_column: str | None = option(None, help="Column of captions in tables; without it one of a usual name.")
    paths_below: str | None = option(
        None,
        help="parquet, datasets: read only pictures whose paths, links followed, lead below this folder; for tables "
        "that strangers wrote.",
    )
    url_column: str | None = option(None, help="urls: column of urls; without it one of a usual name.")
    fetch_concurrency: int = option(32, help="urls: requests at once.", least=1, may_change=True)
    fetch_per_host: int = option(4, help="urls: requests at once to one host.", least=1, may_change=True)
    fetch: FetchLimits = group(FetchLimits)
    pictures: PictureConfig = group(PictureConfig)
    videos: VideoConfig = group(VideoConfig)

    def __post_init__(self) -> None:
        if not (self.enable_text or self.enable_image):
            raise ConfigError("enable_text and enable_image are both False: there is nothing to embed")
        if not self.input_dataset:
            raise ConfigError("input_dataset is empty; name a folder or tars")
        for name, formats in TABLE_OPTIONS.items():
            if getattr(self, name) is not None and self.input_format not in formats:
                raise ConfigError(f"{name} is for input_format {' or '.join(formats)}, not {self.input_format}")
        check_least(self)
        if self.input_format == "video" and self.videos.video_frames is None:
            object.__setattr__(self, "videos", dataclasses.replace(self.videos, video_frames="rate"))

    @property
    def takes_pages(self) -> bool:
        return self.input_format == "files" and self.enable_pages

    @property
    def takes_videos(self) -> bool:
        return self.input_format in FOLDER_FORMATS and self.videos.video_frames is not None
