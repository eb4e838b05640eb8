"""A folder of pictures, with captions (.txt) and metadata (.json) beside them; any fsspec store."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clip_retrieval.blobs import BlobRef
from clip_retrieval.errors import SourceError
from clip_retrieval.inference.columns import clean
from clip_retrieval.inference.config import SourceConfig
from clip_retrieval.inference.ledger import FileState
from clip_retrieval.inference.sources.hints import hint_of
from clip_retrieval.inference.sources.suffixes import IMAGE_SUFFIXES, METADATA_SUFFIX, TEXT_SUFFIX, split_key
from clip_retrieval.inference.types import Failure, Part, Sample
from clip_retrieval.storage import Folder

logger = logging.getLogger(__name__)

STAMPS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(slots=True)
class Group:
    """The files that share a path up to the suffix."""

    images: list[str] = field(default_factory=list)
    text: str | None = None
    metadata: str | None = None


@dataclass(frozen=True)
class FilesSource:
    """Samples in the order of their paths; one unit is one sample."""

    config: SourceConfig
    folder: Folder
    units: Sequence[str]  # path of the picture, or of the caption where there is no picture
    groups: dict[str, Group]
    ignored: Sequence[Failure]
    states: Mapping[str, FileState] = field(default_factory=dict)  # of every file, by path

    @property
    def samples_per_unit(self) -> int:
        return 1

    def read(self, start: int, stop: int) -> Iterator[Sample | Failure]:
        if start == 0:
            yield from self.ignored
        for path in self.units[start:stop]:
            yield self.sample(path)

    def read_only(self, names: Container[tuple[str, str]]) -> Iterator[Sample]:
        yield from (self.sample(path) for path in self.units if ("", clean(path)) in names)

    def estimate_total(self) -> int:
        return len(self.units)

    def sample(self, path: str) -> Sample:
        key, suffix = split_key(path)
        group = self.groups[key]
        is_image = suffix in IMAGE_SUFFIXES
        return Sample(
            key=path,
            image_path=self.url(path) if is_image else None,
            image=self.blob(path) if is_image and self.config.enable_image else None,
            text=self.blob(group.text) if self.config.enable_text else None,
            metadata=self.blob(group.metadata) if self.config.enable_metadata else None,
        )

    def files_of(self, key: str) -> dict[Part, FileState]:
        """Return the wanted files of the sample of a unit, as they were listed."""
        stem, suffix = split_key(key)
        group = self.groups[stem]
        paths: dict[Part, str | None] = {
            "image": key if suffix in IMAGE_SUFFIXES and self.config.enable_image else None,
            "text": group.text if self.config.enable_text else None,
            "metadata": group.metadata if self.config.enable_metadata else None,
        }
        return {part: self.states[path] for part, path in paths.items() if path is not None}

    def url(self, path: str) -> str:
        return f"{self.folder.url.rstrip('/')}/{path}"

    def blob(self, path: str | None) -> BlobRef | None:
        return None if path is None else BlobRef(self.url(path))


def open_files(config: SourceConfig, output_folder: str) -> FilesSource:
    """List the folder, join files by path without suffix, and switch off the parts that it does not have."""
    folder = Folder(config.input_dataset)
    if not folder.exists():
        raise SourceError(f"there is no folder {config.input_dataset}{hint_of([config.input_dataset])}")
    groups: dict[str, Group] = {}
    ignored: list[Failure] = []
    states = list_files(folder, Folder(output_folder))
    for path in states:
        ignored += sort_into(groups, path)
    has_images = any(group.images for group in groups.values())
    has_texts = any(group.text for group in groups.values())
    config = switch_off_missing(config, has_images=has_images, has_texts=has_texts)
    units = [path for key in groups for path in units_of(groups[key], config)]
    if not has_images and not has_texts:
        raise SourceError(
            f"{config.input_dataset} holds no sample: no file with an image suffix, no .txt caption{hint_of(states)}"
        )
    return FilesSource(config, folder, sorted(units), groups, ignored, states)


def list_files(folder: Folder, output: Folder) -> dict[str, FileState]:
    """Return every file below the folder, but for those below `output`, by its path relative to it, sorted."""
    if not folder.fs.isdir(folder.root):
        raise SourceError(f"{folder.url} is a file, not a folder{hint_of([folder.root])}")
    prefix = folder.root.rstrip("/") + "/"
    own = output.root.rstrip("/") + "/"
    with folder.answering():
        listed = folder.fs.find(folder.root, detail=True)
    # A named pipe or a device would block for ever; a dangling link is told of when it is read.
    found = {
        path.removeprefix(prefix) + "/" * (bool(info.get("islink")) and folder.fs.isdir(path)): info
        for path, info in listed.items()
        if (info["type"] == "file" or info.get("islink")) and not path.startswith(own)
    }
    return {path: FileState(path, found[path].get("size"), stamp_of(found[path])) for path in sorted(found)}


def stamp_of(info: Mapping[str, Any]) -> str:
    """Return what the store notes of a file's last change; of a link's target, the target's."""
    if info.get("islink"):
        try:
            return str(os.stat(info["name"]).st_mtime)  # noqa: PTH116 -- a plain string, as the stores give it
        except OSError:
            return ""
    return next((str(info[name]) for name in STAMPS if info.get(name) is not None), "")


def sort_into(groups: dict[str, Group], path: str) -> list[Failure]:
    """Put a file to those of its sample; return a Failure where it belongs to none."""
    if path.endswith("/"):
        return [Failure(path, "", "other", "linked_folder", "a link to a folder is not followed; name it as the input")]
    if any(part.startswith(".") and part != ".." for part in path.split("/")):
        return [Failure(path, "", "other", "hidden", "names that start with a dot are left out")]
    key, suffix = split_key(path)
    if suffix in IMAGE_SUFFIXES:
        groups.setdefault(key, Group()).images.append(path)
    elif suffix == TEXT_SUFFIX:
        return sort_into_slot(groups.setdefault(key, Group()), "text", path)
    elif suffix == METADATA_SUFFIX:
        return sort_into_slot(groups.setdefault(key, Group()), "metadata", path)
    else:
        return [Failure(path, "", "other", "not_an_image", "no image, .txt or .json suffix")]
    return []


def sort_into_slot(group: Group, slot: str, path: str) -> list[Failure]:
    """Two files that differ in the case of their suffix only: the first one counts."""
    first = getattr(group, slot)
    if first is not None:
        return [Failure(path, "", "other", "duplicate", f"{first} is the {slot} of this sample already")]
    setattr(group, slot, path)
    return []


def units_of(group: Group, config: SourceConfig) -> list[str]:
    """Return the rows of a group: each picture, or the caption; where it has neither, what there is, to be reported."""
    if group.images and (config.enable_image or group.text is None):
        return group.images
    return [path for path in (group.text, group.metadata) if path is not None][:1]


def switch_off_missing(config: SourceConfig, *, has_images: bool, has_texts: bool) -> SourceConfig:
    """Do without a part that no file of the folder is, as clip-retrieval 2 does."""
    if config.enable_text and not has_texts and has_images and config.enable_image:
        logger.info("no .txt caption in %s: embedding pictures only", config.input_dataset)
        return dataclasses.replace(config, enable_text=False)
    if config.enable_image and not has_images and has_texts and config.enable_text:
        logger.info("no picture in %s: embedding captions only", config.input_dataset)
        return dataclasses.replace(config, enable_image=False)
    return config
