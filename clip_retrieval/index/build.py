"""The command `index`: check the embeddings, build, and publish finished files."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_retrieval.checksums import FileSums, sum_files
from clip_retrieval.embeddings.local_copy import fetched
from clip_retrieval.embeddings.vectors import Contents, Vectors
from clip_retrieval.errors import ConfigError, IndexBuildError
from clip_retrieval.index.building.edit_rows import CannotChangeError
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.index.engines import Engine, chosen_engine
from clip_retrieval.index.folder.build_options import OPTIONS, TARGET, keep_options, kept_options, read_index_config
from clip_retrieval.index.folder.changed_rows import Change
from clip_retrieval.index.folder.checks import (
    check_finished,
    check_folders,
    check_rows,
    find_filled,
    find_vectors,
    read_encoder,
)
from clip_retrieval.index.folder.metadata_files import place_metadata
from clip_retrieval.index.folder.publish import IndexRevision, Infos, describe_indices, make_manifest, publish
from clip_retrieval.index.measuring.evaluate import evaluate_built
from clip_retrieval.index.measuring.queries import MOST_QUERIES, QUERIES_OF_EXACT
from clip_retrieval.index.measuring.truth_ahead import TruthsAhead
from clip_retrieval.index.planning.bounds import Bounds
from clip_retrieval.index.update import Known, compare, has_current_metadata, update_index, warn_of_loss
from clip_retrieval.layout import (
    MANIFEST,
    MODALITIES,
    EmbeddingsFolder,
    IndexFolder,
    Modality,
    about_index,
    read_manifest,
)
from clip_retrieval.options import parse_bytes
from clip_retrieval.revision import finish_revision, only_one
from clip_retrieval.search.cores import using_cores
from clip_retrieval.search.settings import parse_settings
from clip_retrieval.search.stored_settings import store_settings
from clip_retrieval.storage import check_writable, leaving_nothing_empty, size_of

logger = logging.getLogger(__name__)

SURPRISE = 0.1  # recall that is further below the plan's promise is unusual for CLIP embeddings


@dataclass(frozen=True, kw_only=True)
class BuiltIndices:
    """The built indices: the content of image.json and text.json, and the time."""

    index_folder: str
    infos: Mapping[Modality, Mapping[str, Any]]
    metadata_rows: int | None
    seconds: float
    changes: Mapping[Modality, Change] = field(default_factory=dict)  # rows that an update applied
    is_as_before: bool = False  # True if an update had nothing to do

    def to_json(self) -> dict[str, Any]:
        changes = {modality: change.to_json() for modality, change in self.changes.items()}
        return {
            **({"changes": changes} if changes else {}),
            "index_folder": self.index_folder,
            "indices": dict(self.infos),
            "metadata_rows": self.metadata_rows,
            "seconds": round(self.seconds, 2),
        }


def clip_index(*arguments: object, **options: object) -> BuiltIndices:
    """Build the indices of an embeddings folder; takes the flags of `clip-retrieval index`.

    Raises ClipRetrievalError that names a wrong file, or a bound that is too tight. Nothing half-written stays.
    """
    config = read_index_config(options, arguments)
    if config.dry_run:
        raise ConfigError("dry_run is an option of the command; from Python call index.preview.preview_indices")
    return build_indices(config)


def build_indices(config: IndexConfig) -> BuiltIndices:
    """Build the image and text index, as far as there are embeddings, next to a copy of the metadata.

    Everything is checked before anything is built, and built before anything is published.
    """
    with leaving_nothing_empty(IndexFolder(config.index_folder)), using_cores(config.nb_cores):
        return build_within(config)


def build_within(config: IndexConfig) -> BuiltIndices:
    start = time.perf_counter()
    source, target = EmbeddingsFolder(config.embeddings_folder), IndexFolder(config.index_folder)
    check_folders(config, source, target)
    found = find_vectors(config, source)
    rows = check_rows(source, found)
    check_finished(source)
    check_writable(target)
    target.remove_leftovers()
    with only_one(target), fetched(found, target.staging, room_of_index(config, found)) as here:
        outcome = build_found(config, source, target, here)
    seconds = time.perf_counter() - start
    return BuiltIndices(
        index_folder=target.url,
        infos=outcome.infos,
        metadata_rows=rows,
        seconds=seconds,
        changes=outcome.changes,
        is_as_before=outcome.is_as_before,
    )


@dataclass(frozen=True)
class Outcome:
    """New content of image.json and text.json, the rows that an update applied, and whether anything changed."""

    infos: Infos
    changes: Mapping[Modality, Change]
    is_as_before: bool = False


def room_of_index(config: IndexConfig, found: Mapping[Modality, Vectors]) -> int:
    """Estimate the disk space of building: each index, and its parts."""
    most = parse_bytes(config.max_index_memory_usage)
    return sum(2 * min(most, 4 * vectors.row_count * vectors.dim) for vectors in found.values())


def build_found(
    config: IndexConfig, source: EmbeddingsFolder, target: IndexFolder, found: Mapping[Modality, Vectors]
) -> Outcome:
    """Build and publish, or update."""
    encoder = read_encoder(source)
    contents = {modality: vectors.examine() for modality, vectors in found.items()}
    filled = find_filled(source, found, contents)
    bounds = make_bounds(config, filled)
    finish_revision(target)
    known = (
        compare(target, encoder, filled, contents) if config.update and not wants_other_kind(config, target) else None
    )
    if known and known.is_current(filled, bounds) and has_current_metadata(config, source, target):
        take_over_options(target, config)
        infos = {modality: target.read_info(modality) for modality in filled}
        return Outcome(infos, known.changes, is_as_before=True)
    revision = IndexRevision(target.url)
    with chosen_engine(config, target) as engine:  # keeps its parts to the end, in case a later step fails
        with target.staging() as scratch:
            build = Build(target=target, engine=engine, bounds=bounds, scratch=scratch, known=known)
            most = QUERIES_OF_EXACT if config.index_key == "Flat" else MOST_QUERIES
            with TruthsAhead(filled, build.changing(filled), config.nb_cores, most) as truths:
                infos = {modality: build.make(modality, vectors) for modality, vectors in filled.items()}
                for modality, figures in measure_built(IndexFolder(str(scratch)), truths, contents, config).items():
                    infos[modality] |= figures
                    store_settings(scratch / target.index_name(modality), parse_settings(figures["index_param"]))
                    warn_of_surprise(modality, infos[modality])
                    if known and modality in known.indices:
                        before = target.read_info(modality)
                        warn_of_loss(modality, before, figures, is_new=modality in build.built_anew)
            sums = {modality: sum_built(target, modality, scratch) for modality in infos}
            for modality, of_rows in publish(revision, scratch, infos, contents).items():
                sums[modality] |= of_rows
        beside = place_metadata(config, source, revision)
        described = describe_indices(infos, filled, build.trained_rows, sums)
        revision.write_json(MANIFEST, make_manifest(source, described, beside, config))
        revision.commit()
    return Outcome(infos, known.changes if known else {})


def sum_built(target: IndexFolder, modality: Modality, scratch: Path) -> FileSums:
    """Return the checksums of an index: of the built one, else those in the manifest, if there are any."""
    name = target.index_name(modality)
    if (scratch / name).exists():
        return sum_files(IndexFolder(str(scratch)), name)
    return about_index(read_manifest(target), modality).get("sums") or sum_files(target, name)


def wants_other_kind(config: IndexConfig, target: IndexFolder) -> bool:
    """Say whether an update asks for another kind of index than the present one, which needs a new build."""
    for modality in MODALITIES:
        kind = target.read_info(modality).get("index_key")
        if config.index_key is not None and kind not in (None, config.index_key):
            logger.warning("rebuilding: the %s index is %s, and --index_key is %s", modality, kind, config.index_key)
            return True
    return False


def take_over_options(target: IndexFolder, config: IndexConfig) -> None:
    """Store the options of an update that has no rows to change."""
    old = (read_manifest(target) or {}).get(OPTIONS) or {}
    new = kept_options(config)
    if keep_options(target, new) and old and any(old.get(name) != new[name] for name in TARGET):
        logger.warning("search settings are not changed: `index score --tune True` chooses them for the new target")


def make_bounds(config: IndexConfig, filled: Mapping[Modality, Vectors]) -> Bounds:
    return Bounds(
        max_index_bytes=parse_bytes(config.max_index_memory_usage),
        available_bytes=parse_bytes(config.current_memory_available),
        cores=config.nb_cores,
        wanted_recall=config.tuning.wanted_recall,
        max_query_ms=config.tuning.max_index_query_time_ms,
        index_key=config.index_key,
        asked=tuple(filled.values()),
        plan_sample=config.plan_sample,
        is_in_parts=config.distribution.distributed is not None,
    )


@dataclass(frozen=True, kw_only=True)
class Build:
    """The state of a build: its scratch folder, and what exists already."""

    target: IndexFolder
    engine: Engine
    bounds: Bounds
    scratch: Path
    known: Known | None
    trained_rows: dict[Modality, int] = field(default_factory=dict)
    built_anew: set[Modality] = field(default_factory=set)  # indices of an update that could not be changed in place

    def changing(self, modalities: Iterable[Modality]) -> list[Modality]:
        """Return the modalities whose index has to be built or changed."""
        known = self.known
        return [
            modality
            for modality in modalities
            if known is None or modality not in known.changes or not known.stays(modality, self.bounds)
        ]

    def make(self, modality: Modality, vectors: Vectors) -> dict[str, Any]:
        """Build or update an index in the scratch folder; writes nothing if the index stays as it is.

        Returns the content of image.json.
        """
        known = self.known if self.known and modality in self.known.changes else None
        if known is not None:
            self.trained_rows[modality] = known.indices[modality]["trained_rows"]
            if known.stays(modality, self.bounds):
                return self.target.read_info(modality)
            try:
                path = self.scratch / self.target.index_name(modality)
                return update_index(known, modality, vectors, self.bounds, path)
            except CannotChangeError as error:
                logger.warning("building the %s index from scratch: %s", modality, error)
                self.built_anew.add(modality)
        self.trained_rows[modality] = vectors.row_count
        info = build_one(vectors, modality, self.engine, self.bounds, self.scratch)
        return info | {"index_path": self.target.path(self.target.index_name(modality))}


def build_one(vectors: Vectors, modality: Modality, engine: Engine, bounds: Bounds, scratch: Path) -> dict[str, Any]:
    """Build one index into the scratch folder, under its name."""
    logger.info("building the %s index of %s x %s vectors", modality, f"{vectors.row_count:,}", vectors.dim)
    path = scratch / IndexFolder.index_name(modality)
    infos = engine(vectors, bounds, path)
    check_size(path, bounds)
    return infos


def measure_built(
    scratch: IndexFolder, ahead: TruthsAhead, contents: Mapping[Modality, Contents], config: IndexConfig
) -> dict[Modality, dict[str, Any]]:
    """Measure and tune the new indices; return what to add to image.json and text.json."""
    built = [modality for modality in ahead.found if scratch.exists(scratch.index_name(modality))]
    return {
        modality: evaluate_built(scratch, modality, contents[modality].empty, truths, config.tuning.target())
        for modality, truths in ahead.of(built).items()
    }


def warn_of_surprise(modality: Modality, info: Mapping[str, Any]) -> None:
    """Warn if an index finds much less than its plan promised, which was fitted to CLIP embeddings."""
    planned, quality = (info.get("plan") or {}).get("expected_recall@10"), info["quality"]
    found = [asked["recall@10"] for asked in map(quality.get, MODALITIES) if asked and asked["recall@10"] is not None]
    if planned is None or not found or sum(found) / len(found) >= planned - SURPRISE:
        return
    logger.warning(
        "the %s index finds less than expected: its recall@10 is %.2f, and about %.2f was expected; "
        "to find more: a larger --max_index_memory_usage, other kinds by --index_key, filter --refine_from",
        *(modality, sum(found) / len(found), planned),
    )


def check_size(path: Path, bounds: Bounds) -> None:
    size = size_of(path)
    if size > bounds.max_index_bytes:
        raise IndexBuildError(
            f"the index came out at {size:,} bytes, above max_index_memory_usage, "
            f"{bounds.max_index_bytes:,} bytes; raise the bound to that, or leave --engine and --index_key out: the "
            "planner keeps to it"
        )
