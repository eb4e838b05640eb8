"""`index --update`: an index follows its embeddings folder; what cannot be changed in place is built again."""

from __future__ import annotations

import filecmp
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_retrieval.checksums import find_damage, find_damage_beside
from clip_retrieval.embeddings.vectors import Contents, Vectors
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.building.changed_files import open_to_change, write_changed
from clip_retrieval.index.building.edit_rows import CannotChangeError, check_rows, is_trained_on_rows
from clip_retrieval.index.config import IndexConfig
from clip_retrieval.index.folder.changed_rows import AGAIN, Change, check_encoder, find_change
from clip_retrieval.index.folder.metadata_files import writes_arrow
from clip_retrieval.index.planning.bounds import Bounds
from clip_retrieval.layout import (
    INDEX_SUFFIX,
    METADATA_ARROW,
    METADATA_FOLDER,
    MODALITIES,
    EmbeddingsFolder,
    IndexFolder,
    Modality,
    read_manifest,
)
from clip_retrieval.metadata.joined import column_files
from clip_retrieval.search.tree import has_graph

logger = logging.getLogger(__name__)

LOSS = 0.03  # loss of recall@10 beyond the noise of a few hundred queries
LOOSER = "raise --max_index_memory_usage or --max_index_query_time_ms"  # within the present bounds nothing is better
GROWTH = 2  # rebuild at this many times the trained rows: rebuilds then at most double the total work


@dataclass(frozen=True)
class Known:
    """An index folder to update: its manifest, and the changes of its rows."""

    folder: IndexFolder
    indices: Mapping[Modality, Mapping[str, Any]]
    changes: Mapping[Modality, Change]
    sizes: Mapping[Modality, int]  # bytes of each index

    def is_current(self, filled: Mapping[Modality, Vectors], bounds: Bounds) -> bool:
        """Say whether all indices are up to date."""
        return self.indices.keys() == filled.keys() and all(self.stays(modality, bounds) for modality in self.changes)

    def stays(self, modality: Modality, bounds: Bounds) -> bool:
        """Say whether an index is kept unchanged: none of its rows changed, and it is within the bounds."""
        return self.changes[modality].is_none and self.sizes[modality] <= bounds.max_index_bytes


def compare(
    target: IndexFolder,
    encoder: Mapping[str, Any] | None,
    filled: Mapping[Modality, Vectors],
    contents: Mapping[Modality, Contents],
) -> Known | None:
    """Compare an index folder with the embeddings; None if there is no index yet.

    Raises IndexBuildError if it is of other embeddings, or does not name them.
    """
    manifest = read_manifest(target)
    if manifest is None:
        if target.names("", INDEX_SUFFIX):
            raise IndexBuildError(f"{target.url} has no manifest that says what it was built from", advice=AGAIN)
        logger.info("there is no index in %s yet: building it", target.url)
        return None
    check_encoder(target, manifest.get("encoder"), encoder)
    indices = manifest.get("indices", {})
    sizes = {modality: check_whole(target, modality, indices[modality].get("sums") or {}) for modality in indices}
    for modality in indices.keys() - contents.keys():
        raise IndexBuildError(f"{target.url} has an index of {modality} embeddings, which are gone", advice=AGAIN)
    for modality in filled.keys() - indices.keys():
        logger.info("there is no %s index yet: building it", modality)
    return Known(
        target,
        indices,
        {
            modality: find_change(target, modality, indices[modality], vectors, contents[modality])
            for modality, vectors in filled.items()
            if modality in indices
        },
        sizes,
    )


def check_whole(target: IndexFolder, modality: Modality, sums: Mapping[str, Any]) -> int:
    """Return the size of an index; raises ClipRetrievalError if it differs from the size in the manifest."""
    info, name = target.info_name(modality), target.index_name(modality)
    if not target.exists(info):
        raise IndexBuildError(f"{target.path(info)} is missing", advice=AGAIN)
    said = target.read_info(modality).get("size in bytes")
    size = int(target.fs.du(target.path(name))) if target.exists(name) else 0
    if said is not None and said != size:
        raise IndexBuildError(
            f"{target.path(name)} has {size:,} bytes, and had {said:,} when it was built: it is damaged, or another "
            "one",
            advice=AGAIN,
        )
    damage = find_damage(target, sums)
    if damage is not None:
        raise damage
    return size


def update_index(known: Known, modality: Modality, vectors: Vectors, bounds: Bounds, path: Path) -> dict[str, Any]:
    """Write the updated index to `path`, and return the content of image.json.

    Raises CannotChangeError if it has to be built again.
    """
    target, about, change = known.folder, known.indices[modality], known.changes[modality]
    if change.is_none:
        raise CannotChangeError(f"it has {known.sizes[modality]:,} bytes, which is above max_index_memory_usage")
    logger.info(
        "updating the %s index: %s rows added, %s emptied, %s filled",
        modality, f"{change.added:,}", f"{len(change.emptied):,}", f"{len(change.filled):,}",
    )  # fmt: skip
    with here(target, target.index_name(modality), path.parent) as old:
        try:
            opened = open_to_change(old, change, bounds)
        except RuntimeError as error:
            named = target.path(target.index_name(modality))
            raise CannotChangeError(f"{named} cannot be read as a faiss index") from error
        index = opened.index
        check_rows(index, change.known)
        if len(change.filled) and has_graph(index):
            raise CannotChangeError("rows got their embedding later, and a graph cannot insert them in their place")
        if is_trained_on_rows(index) and change.known + change.added > GROWTH * about["trained_rows"]:
            raise CannotChangeError(
                f"it was trained on {about['trained_rows']:,} rows, and has more than twice as many now"
            )
        write_changed(opened, change, vectors, path)
    size = path.stat().st_size
    if size > bounds.max_index_bytes:
        path.unlink()  # the rebuilt index may be a folder of this name
        raise CannotChangeError(f"it would be {size:,} bytes, above max_index_memory_usage")
    return target.read_info(modality) | {
        "nb vectors": change.known + change.added,
        "size in bytes": size,
        "compression ratio": round(4 * (change.known + change.added) * vectors.dim / size, 3),
    }


@contextmanager
def here(target: IndexFolder, name: str, scratch: Path) -> Iterator[str]:
    """Yield the local path of an index file: of a copy, which is removed afterwards, if the folder is on a store."""
    if target.is_folder(name):
        raise CannotChangeError("it consists of several files")
    if target.is_local:
        yield target.path(name)
        return
    copy = scratch / "before.index"
    try:
        with target.answering():
            target.fs.get_file(target.path(name), str(copy))
        yield str(copy)
    finally:
        copy.unlink(missing_ok=True)


def warn_of_loss(modality: Modality, before: Mapping[str, Any], after: Mapping[str, Any], *, is_new: bool) -> None:
    """Warn if recall fell since the json file was written, as it may for graphs and rebuilt indices."""
    old, new = before.get("quality") or {}, after.get("quality") or {}
    target = new.get("target") or {}
    if old.get("target") != target:
        return  # measured for another target
    recalls = [
        (old[asked]["recall@10"], new[asked]["recall@10"])
        for asked in MODALITIES
        if (old.get(asked) or {}).get("recall@10") is not None and (new.get(asked) or {}).get("recall@10") is not None
    ]
    if not recalls:
        return
    was, is_now = (sum(found) / len(recalls) for found in zip(*recalls, strict=True))
    if is_now < was - LOSS and is_now < (target.get("wanted_recall") or 1):
        logger.warning(
            "the %s index finds less than before its update: recall@10 is %.3f, and was %.3f; %s, if that is too "
            "little",
            *(modality, is_now, was, LOOSER if is_new else "build it again, without --update"),
        )


def has_current_metadata(config: IndexConfig, source: EmbeddingsFolder, target: IndexFolder) -> bool:
    """Say whether the copies of the metadata equal those of the embeddings folder, and are as the options say."""
    names = source.names(METADATA_FOLDER, ".parquet")
    if names and writes_arrow(config) and not (target.exists(METADATA_ARROW) and find_damage_beside(target) is None):
        return False
    if not config.copy_metadata:
        return True
    if names != target.names(METADATA_FOLDER, ".parquet"):
        return False
    files = [f"{METADATA_FOLDER}/{name}" for name in names] + column_files(source)
    return column_files(source) == column_files(target) and all(is_same(source, target, name) for name in files)


def is_same(source: EmbeddingsFolder, target: IndexFolder, name: str) -> bool:
    if source.is_local and target.is_local:
        return filecmp.cmp(source.path(name), target.path(name), shallow=False)
    return source.read_bytes(name) == target.read_bytes(name)
