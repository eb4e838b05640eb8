"""Webdataset: tars in which adjacent members with the same key form a sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from clip_retrieval.blobs import Lost, fetch_to_cache
from clip_retrieval.compression import DAMAGE
from clip_retrieval.errors import one_line
from clip_retrieval.sources.config import SourceConfig
from clip_retrieval.sources.joining import HIDDEN
from clip_retrieval.sources.packed import between
from clip_retrieval.sources.patterns import list_inputs
from clip_retrieval.sources.saving import Codec, as_they_are
from clip_retrieval.sources.suffixes import IMAGE_SUFFIXES, METADATA_SUFFIX, split_key
from clip_retrieval.sources.tar import Damage, read_members
from clip_retrieval.sources.tar_members import Member
from clip_retrieval.sources.types import Failure, Origin, Sample
from clip_retrieval.words import is_hidden

KEPT_ENDINGS = 1000  # parts by what follows the first dot of a name: a tar has few, most often three
TORN = Lost(
    "truncated", "the tar is cut off or damaged after it, and may have had more of it; repair it, and --retry_failed"
)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


@dataclass(slots=True)
class Parts:
    """The members of one sample."""

    images: list[Member] = field(default_factory=list)
    text: Member | None = None
    metadata: Member | None = None

    def members(self) -> list[Member]:
        return [*self.images, *(member for member in (self.text, self.metadata) if member is not None)]


class Suffixes:
    """Which members are pictures, captions and metadata, and which sample each one belongs to."""

    def __init__(self, config: SourceConfig) -> None:
        keys = config.wds_image_key
        chosen = {"image": config.enable_image, "text": config.enable_text, "metadata": config.enable_metadata}
        self.chosen = {part for part, is_chosen in chosen.items() if is_chosen}
        self.image = IMAGE_SUFFIXES if keys is None else frozenset(map(as_suffix, keys.split(";")))
        self.text = as_suffix(config.wds_caption_key)
        self.part_of_ending = lru_cache(KEPT_ENDINGS)(self.find_part)

    def are_wanted(self, name: str) -> bool:
        return not is_hidden(name) and self.part_of(name) is not None

    def part_of(self, name: str) -> str | None:
        """Return image, text, metadata, or None for any other member."""
        base = name[name.rfind("/") + 1 :]
        dot = base.find(".")
        return self.part_of_ending(base if dot < 1 else f"x{base[dot:]}")

    def find_part(self, name: str) -> str | None:
        whole, last = whole_suffix(name), split_key(name)[1]
        if last in self.image or whole in self.image:
            return "image"
        if self.text in (last, whole):
            return "text"
        return "metadata" if last == METADATA_SUFFIX else None

    def key_of(self, name: str) -> str:
        """Return the path up to the last dot or, if an option names everything after the first one, up to that.

        So the options input.jpg and outputs.txt make one sample of 1.input.jpg and 1.outputs.txt, as webdataset does;
        without them a.v1.jpg and a.v2.jpg are two.
        """
        if name.count(".", name.rfind("/") + 1) > 1:
            whole = whole_suffix(name)
            if whole in self.image or whole == self.text:
                return group_key(name)
        return split_key(name)[0]


def as_suffix(key: str) -> str:
    return f".{key.strip().lower().lstrip('.')}"


def whole_suffix(name: str) -> str:
    """Return the base name from its first dot on, in lower case: .input.jpg for d/1.input.jpg."""
    return "." + name.rpartition("/")[2].lower().partition(".")[2]


@dataclass(frozen=True)
class WebdatasetSource:
    """Samples in the order of tars and members; each tar is one unit."""

    config: SourceConfig
    units: Sequence[str]
    shard_sizes: list[int] = field(default_factory=list)  # sample counts of the tars read so far, for estimates

    @property
    def shards(self) -> Sequence[str]:
        return self.units

    @property
    def samples_per_unit(self) -> None:
        return None

    def estimate_total(self) -> int | None:
        if not self.shard_sizes:
            return None
        return len(self.units) * sum(self.shard_sizes) // len(self.shard_sizes)

    def read(self, start: int, stop: int) -> Iterator[Sample | Failure]:
        for url in between(self.units, start, stop):
            yield from self.read_shard(url)

    def read_shard(self, url: str) -> Iterator[Sample | Failure]:
        suffixes = Suffixes(self.config)
        sample_count = image_count = 0
        try:
            place = url if self.config.cache_path is None else fetch_to_cache(url, self.config.cache_path)
        except (OSError, EOFError, ValueError, *DAMAGE) as error:
            yield Failure.of_shard(url, "unreadable", one_line(error))
            return
        for group in grouped(read_members(place, suffixes.are_wanted), url, Seen(suffixes)):
            for item in [group] if isinstance(group, Failure) else self.items(group, url, suffixes):
                if isinstance(item, Sample):
                    sample_count += 1
                    image_count += item.image is not None
                yield item
        self.shard_sizes.append(sample_count)
        if self.config.enable_image and sample_count and not image_count:
            yield Failure.of_shard(url, "no_images", f"none of its {sample_count} samples has a picture")

    def items(self, group: Group, url: str, suffixes: Suffixes) -> Iterator[Sample | Failure]:
        for item in self.samples(group.members, url, suffixes):
            yield self.left_out(item) if group.is_torn and isinstance(item, Sample) else item

    def left_out(self, sample: Sample) -> Sample:
        """Return the sample without its parts: a tar that is whole may have more of them."""
        config = self.config
        return replace(
            sample,
            image=TORN if config.enable_image else None,
            text=TORN if config.enable_text else None,
            metadata=TORN if config.enable_metadata else None,
        )

    def samples(self, group: list[Member], url: str, suffixes: Suffixes) -> Iterator[Sample | Failure]:
        """Yield the samples of adjacent members that share a name up to the first dot."""
        by_stem: dict[str, Parts] = {}
        seen: set[str] = set()
        for member in group:
            if member.name in seen:
                yield duplicate(member, url, "the member before it has the same name")
            elif not sort_into(by_stem, member, suffixes):
                yield duplicate(member, url, "the sample has such a part already")
            seen.add(member.name)
        if not by_stem:
            yield Failure(group[0].name, url, "other", "not_an_image", "no picture, caption or json among its members")
        key = group_key(group[0].name)
        if key in by_stem and by_stem[key].images:  # a.seg.png next to a.jpg belongs to sample a
            others = [member for stem, parts in by_stem.items() if stem != key for member in parts.members()]
            yield from (unjoined(member, url, key, suffixes) for member in others)
            by_stem = {key: by_stem[key]}
        for stem, parts in by_stem.items():
            yield from self.rows(stem, parts, url)

    def rows(self, stem: str, parts: Parts, url: str) -> Iterator[Sample]:
        """Yield one sample per picture; several pictures with one stem share the caption."""
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


def unjoined(member: Member, url: str, key: str, suffixes: Suffixes) -> Failure:
    """Return the failure of a member that joins no picture, next to a sample whose picture is `key`.*"""
    part = suffixes.part_of(member.name)
    if part == "image":
        return duplicate(member, url, f"the picture of its sample is {key}.*")
    advice = f"--wds_caption_key {whole_suffix(member.name)[1:]} makes it the caption of {key}.*"
    detail = f"no picture has its name; {advice if part == 'text' else f'the json of {key}.* is {key}.json'}"
    return Failure(member.name, url, "other", "not_joined", detail)


@dataclass
class Group:
    """Adjacent members with the same key; torn if damage follows, so that members that others have may be lost."""

    members: list[Member]
    is_torn: bool = False


class Seen:
    """The names of the chosen parts of samples in a tar, after the first dot."""

    def __init__(self, suffixes: Suffixes) -> None:
        self.suffixes = suffixes
        self.endings: set[str] = set()

    def add(self, group: list[Member]) -> None:
        if len(self.endings) <= KEPT_ENDINGS:
            self.endings |= self.endings_of(group)

    def endings_of(self, group: list[Member]) -> set[str]:
        chosen, part_of = self.suffixes.chosen, self.suffixes.part_of
        return {whole_suffix(member.name) for member in group if part_of(member.name) in chosen}

    def may_lack(self, group: list[Member]) -> bool:
        """Say whether a sample may have had more members: any that others have; for the first, any that are chosen."""
        if not self.endings:
            return not self.suffixes.chosen <= {self.suffixes.part_of(member.name) for member in group}
        return len(self.endings) > KEPT_ENDINGS or not self.endings <= self.endings_of(group)


def grouped(members: Iterable[Member | Damage], url: str, seen: Seen | None = None) -> Iterator[Group | Failure]:
    """Yield groups of adjacent members with the same key, and a Failure for each hidden member and damage."""
    group: list[Member] = []
    for member in members:
        if isinstance(member, Damage):
            if group:
                yield Group(group, is_torn=seen is not None and seen.may_lack(group))
                group = []
            yield Failure.of_shard(url, member.reason, member.detail)
            continue
        if is_hidden(member.name):
            yield Failure(member.name, url, "other", "hidden", HIDDEN)
            continue
        if group and group_key(member.name) != group_key(group[0].name):
            if seen is not None:
                seen.add(group)
            yield Group(group)
            group = []
        group.append(member)
    if group:
        yield Group(group)


def group_key(name: str) -> str:
    """Return webdataset's key: the path up to the first dot of the base name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def sort_into(by_stem: dict[str, Parts], member: Member, suffixes: Suffixes) -> bool:
    """Add a member to its sample; return False if the sample already has that part."""
    part = suffixes.part_of(member.name)
    if part is None:
        return True
    parts = by_stem.setdefault(suffixes.key_of(member.name), Parts())
    if part == "image":
        parts.images.append(member)
        return True
    if getattr(parts, part) is not None:
        return False
    setattr(parts, part, member)
    return True


CODEC = Codec(
    items_of=lambda source: source.units,
    pack=as_they_are,
    unpack=as_they_are,
    restore=lambda saved: WebdatasetSource(saved.config, saved.items),
)


def open_webdataset(config: SourceConfig, output_folder: str) -> WebdatasetSource:
    """List the tars; raises SourceError if the pattern matches none."""
    return WebdatasetSource(config, list_inputs(config.input_dataset, TAR_SUFFIXES, "tar", output_folder))
