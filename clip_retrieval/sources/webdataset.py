"""Webdataset: tars whose adjacent members with one key are one sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from clip_retrieval.blobs import fetch_to_cache
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.patterns import list_inputs
from clip_retrieval.sources.suffixes import IMAGE_SUFFIXES, METADATA_SUFFIX, split_key
from clip_retrieval.sources.tar import Damage, read_members
from clip_retrieval.sources.tar_members import Member
from clip_retrieval.sources.types import Failure, Origin, Sample

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(slots=True)
class Parts:
    """The members that share a name up to the last dot."""

    images: list[Member] = field(default_factory=list)
    text: Member | None = None
    metadata: Member | None = None

    def members(self) -> list[Member]:
        return [*self.images, *(member for member in (self.text, self.metadata) if member is not None)]


def as_suffix(key: str) -> str:
    return "." + key.lower().strip().lstrip(".")


class Suffixes:
    """Which members are pictures, captions and metadata."""

    def __init__(self, config: SourceConfig) -> None:
        keys = config.wds_image_key
        self.image = (
            IMAGE_SUFFIXES if keys is None else frozenset(f".{key.lower().lstrip('.')}" for key in keys.split(";"))
        )
        self.text = f".{config.wds_caption_key.lower().lstrip('.')}"

    def part_of(self, name: str) -> str | None:
        """Return image, text, metadata, or None for a member that is none of them."""
        base = "." + name.rpartition("/")[2].lower().partition(".")[2]  # everything after the first dot
        last = split_key(name)[1]
        if last in self.image or base in self.image:
            return "image"
        if self.text in (last, base):
            return "text"
        return "metadata" if last == METADATA_SUFFIX else None


@dataclass(frozen=True)
class WebdatasetSource:
    """Samples in the order of the tars and of their members; one unit is one tar."""

    config: SourceConfig
    units: Sequence[str]
    shard_sizes: list[int] = field(default_factory=list)  # samples in the tars that were read to their end

    @property
    def samples_per_unit(self) -> None:
        return None

    def estimate_total(self) -> int | None:
        if not self.shard_sizes:
            return None
        return len(self.units) * sum(self.shard_sizes) // len(self.shard_sizes)

    def read(self, start: int, stop: int) -> Iterator[Sample | Failure]:
        for url in self.units[start:stop]:
            yield from self.read_shard(url)

    def read_shard(self, url: str) -> Iterator[Sample | Failure]:
        suffixes = Suffixes(self.config)
        sample_count = image_count = 0
        try:
            place = url if self.config.cache_path is None else fetch_to_cache(url, self.config.cache_path)
        except (OSError, EOFError, ValueError) as error:
            yield Failure.of_shard(url, "unreadable", " ".join(str(error).split()))
            return
        group: list[Member] = []
        for member in read_members(place, lambda name: suffixes.part_of(name) is not None):
            if isinstance(member, Damage):
                yield Failure.of_shard(url, member.reason, member.detail)
                continue
            if group and group_key(member.name) != group_key(group[0].name):
                for item in self.samples(group, url, suffixes):
                    sample_count, image_count = tally(item, sample_count, image_count)
                    yield item
                group = []
            group.append(member)
        for item in self.samples(group, url, suffixes):
            sample_count, image_count = tally(item, sample_count, image_count)
            yield item
        self.shard_sizes.append(sample_count)
        if self.config.enable_image and sample_count and not image_count:
            yield Failure.of_shard(url, "no_images", f"none of its {sample_count} samples has a picture")

    def samples(self, group: list[Member], url: str, suffixes: Suffixes) -> Iterator[Sample | Failure]:
        """Yield the samples among adjacent members that share a name up to the first dot."""
        by_stem: dict[str, Parts] = {}
        seen: set[str] = set()
        for member in group:
            if member.name in seen:
                yield duplicate(member, url, "the member before it has the same name")
            elif not sort_into(by_stem, member, suffixes.part_of(member.name)):
                yield duplicate(member, url, "the sample has such a part already")
            seen.add(member.name)
        if group and not by_stem:
            yield Failure(group[0].name, url, "other", "not_an_image", "no picture, caption or json among its members")
        key = group_key(group[0].name) if group else ""
        if key in by_stem and by_stem[key].images:  # then a.seg.png beside a.jpg is no sample of its own
            others = [member for stem, parts in by_stem.items() if stem != key for member in parts.members()]
            yield from (duplicate(member, url, f"the picture of its sample is {key}.*") for member in others)
            by_stem = {key: by_stem[key]}
        for stem, parts in by_stem.items():
            yield from self.rows(stem, parts, url)

    def rows(self, stem: str, parts: Parts, url: str) -> Iterator[Sample]:
        """Yield one sample for each picture; those of one stem share their caption."""
        config = self.config
        text = parts.text.blob if parts.text and config.enable_text else None
        metadata = parts.metadata.blob if parts.metadata and config.enable_metadata else None
        if not (parts.images and config.enable_image):
            yield Sample(stem, stem if parts.images else None, None, text, metadata, Origin(url, None, None))
            return
        for image in parts.images:
            yield Sample(stem, stem, image.blob, text, metadata, Origin(url, image.offset, image.size))


def duplicate(member: Member, url: str, detail: str) -> Failure:
    return Failure(member.name, url, "other", "duplicate", detail)


def tally(item: Sample | Failure, sample_count: int, image_count: int) -> tuple[int, int]:
    if isinstance(item, Failure):
        return sample_count, image_count
    return sample_count + 1, image_count + (item.image is not None)


def group_key(name: str) -> str:
    """Return webdataset's key: the path up to the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def sort_into(by_stem: dict[str, Parts], member: Member, part: str | None) -> bool:
    """Put a member to its sample; False where the sample has such a part already."""
    if part is None:
        return True
    parts = by_stem.setdefault(split_key(member.name)[0], Parts())
    if part == "image":
        parts.images.append(member)
        return True
    if getattr(parts, part) is not None:
        return False
    setattr(parts, part, member)
    return True


def open_webdataset(config: SourceConfig) -> WebdatasetSource:
    """List the tars; raises SourceError where the pattern gives none."""
    return WebdatasetSource(config, list_inputs(config.input_dataset, TAR_SUFFIXES, "tar"))
