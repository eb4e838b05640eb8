"""The command `index combine`: merges partitioned indices of one modality into a file, or with lists on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss

from clip_retrieval.checksums import sum_files
from clip_retrieval.errors import IndexBuildError, StorageError
from clip_retrieval.index.building.merged_files import merge_on_disk, merge_to_file
from clip_retrieval.index.building.merged_ids import find_starts, read_spans, tell_lacking
from clip_retrieval.index.config import CombineConfig
from clip_retrieval.index.folder.joined_manifests import join_folders, write_beside
from clip_retrieval.index.folder.publish import IndexRevision
from clip_retrieval.layout import INDEX_SUFFIX, METADATA_ARROW, METADATA_FOLDER, IndexFolder, Modality, check_not_inside
from clip_retrieval.local_files import check_regular
from clip_retrieval.metadata import count_rows
from clip_retrieval.revision import finish_revision, only_one
from clip_retrieval.search.files import LISTS, POPULATED, read_file
from clip_retrieval.search.outlines import open_to_describe
from clip_retrieval.search.settings import Settings, format_settings, settings_of, widest
from clip_retrieval.search.stored_settings import store_settings
from clip_retrieval.storage import Folder, leaving_nothing_empty
from clip_retrieval.words import with_article

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CombinedIndex:
    """The merged index: its folder and its parts."""

    index_path: str
    files: Sequence[str]
    row_count: int
    seconds: float

    def sentence(self) -> str:
        return f"{self.row_count:,} rows of {len(self.files)} files in {self.index_path} ({self.seconds:.1f} s)"

    def to_json(self) -> dict[str, Any]:
        return {
            "index_path": self.index_path,
            "files": list(self.files),
            "rows": self.row_count,
            "seconds": round(self.seconds, 2),
        }


def run_combine(config: CombineConfig) -> CombinedIndex:
    """Merge all indices of one modality below a folder; nothing is published unless all of them could be merged."""
    start = time.perf_counter()
    source, target = Folder(config.input_folder), IndexFolder(config.output_folder)
    check_local(source, target)
    names = find_files(source, config.modality, target)
    name = target.index_name(config.modality)
    check_free(target, name, overwrite=config.overwrite)
    spans = read_spans(source, names)
    starts = find_starts(source, names, spans, config.modality)
    joined = join_folders(source, names, starts, config.modality)
    if joined.row_count is not None:
        check_metadata(target, joined.row_count)  # before the work, if it is known
    settings = joined.settings or find_settings(source, names)
    with leaving_nothing_empty(target), only_one(target):
        finish_revision(target)
        revision = IndexRevision(target.url)
        with target.staging() as scratch:
            staged = scratch / name
            if config.on_disk:
                staged.mkdir()
                rows = merge_on_disk(source, names, starts, staged)
            else:
                rows = merge_to_file(source, names, starts, staged)
            check_metadata(target, rows if joined.row_count is None else joined.row_count)
            store_settings(staged, settings)
            sums = sum_files(Folder(str(scratch)), name)
            size = sum(file["bytes"] for file in sums.values())
            info = describe_merged(staged, joined.key, rows, size)
            info |= {"index_param": format_settings(settings), "index_path": target.path(name)}
            revision.publish(staged, name)
        revision.write_json(target.info_name(config.modality), info)
        write_beside(revision, config.modality, joined, info, sums)
        revision.commit()
    tell_lacking(source, names, starts, spans, joined.empty_rows)
    tell_no_metadata(target)
    return CombinedIndex(target.path(name), names, rows, time.perf_counter() - start)


def check_free(target: IndexFolder, name: str, *, overwrite: bool) -> None:
    if target.exists(name) and not overwrite:
        raise IndexBuildError(
            f"{target.url} already has {with_article(name)}; name another folder, or give --overwrite True"
        )


def tell_no_metadata(target: IndexFolder) -> None:
    if not target.names(METADATA_FOLDER, ".parquet") and not target.exists(METADATA_ARROW):
        logger.warning(
            "%s has no metadata, since it is not merged: hits are only ids and scores, until the parquet files of all "
            "parts are in its %s folder, named in the order of the parts",
            target.url, METADATA_FOLDER,
        )  # fmt: skip


def check_metadata(target: IndexFolder, row_count: int) -> None:
    """Raise IndexBuildError if the folder has metadata of another number of rows: then it could not be opened."""
    there = count_rows(target)
    if there is not None and there != row_count:
        raise IndexBuildError(
            f"{target.url} has {there:,} rows of metadata, and the merged index {row_count:,}: put the parquet files "
            f"of all parts into its {METADATA_FOLDER} folder, named in the order of the parts, or name another folder"
        )


def combine_folder(input_folder: str, output_folder: str) -> CombinedIndex:
    """Merge every *.index file of a folder into merged_index.ivfdata and populated.index, as clip-retrieval 2 does."""
    start = time.perf_counter()
    source, target = Folder(input_folder), Folder(output_folder)
    check_local(source, target)
    names = source.names("", INDEX_SUFFIX)
    if not names:
        raise IndexBuildError(f"there is no *.index file in {source.url}")
    spans = read_spans(source, names)
    starts = find_starts(source, names, spans)
    with leaving_nothing_empty(target), target.staging() as scratch:
        rows = merge_on_disk(source, names, starts, scratch)
        store_settings(scratch / POPULATED, find_settings(source, names))
        for name in (LISTS, POPULATED):
            target.publish(scratch / name, name)
    tell_lacking(source, names, starts, spans)
    return CombinedIndex(target.path(POPULATED), names, rows, time.perf_counter() - start)


def check_local(source: Folder, target: Folder) -> None:
    if not source.exists():
        raise IndexBuildError(f"there is no folder {source.url}")
    if not (source.is_local and target.is_local):
        raise StorageError("indices are merged in folders on this machine; copy them first")
    if source.place == target.place:
        raise IndexBuildError(f"{source.url} is where the parts are; give the merged index its own folder")
    check_not_inside(target, IndexBuildError)


def find_files(source: Folder, modality: Modality, target: IndexFolder) -> list[str]:
    """Return the parts in name order: of index folders below, of one index (in parts or not), or any *.index files.

    Raises IndexBuildError if the target is among them, since it may be a part or an earlier merge.
    """
    name = IndexFolder.index_name(modality)
    root = Path(source.root)
    found = sorted(path for path in root.glob(f"*/{name}") if path.is_file())
    if any(path.parent.resolve() == Path(target.root).resolve() for path in found):
        raise IndexBuildError(
            f"{target.url} is among the parts and already holds an index, which would be replaced; name another "
            "folder, or remove the result of an earlier merge there"
        )
    found = (
        found or sorted((root / name).glob(f"*{INDEX_SUFFIX}")) or [path for path in [root / name] if path.is_file()]
    )
    found = found or sorted(root.glob(f"*{INDEX_SUFFIX}"))
    if not found:
        raise IndexBuildError(f"{source.url} holds no {modality} index: neither */{name} nor *.index")
    if any(path.name == POPULATED for path in found):
        raise IndexBuildError(f"{source.url} already holds an index with its lists on disk; name a folder of parts")
    for path in found:
        check_regular(str(path))
    return [str(path.relative_to(root)) for path in found]


def find_settings(source: Folder, names: Sequence[str]) -> Settings:
    """Return the slowest settings stored in the parts' faiss files; used if their json files have none."""
    found = widest([settings_of(open_to_describe(source.path(name))) for name in names])
    if found.get("nprobe", 1) <= 1 and found.get("k_factor_rf", 1) <= 1 and "nprobe" in found:
        logger.warning("the parts have no search settings: `index score --tune True` chooses them")
    return found


def describe_merged(path: Path, key: str | None, rows: int, size: int) -> dict[str, Any]:
    """Return the json file's content without settings; `key` is the parts' common index key, if any."""
    index = read_file(str(path / POPULATED), faiss.IO_FLAG_MMAP) if path.is_dir() else open_to_describe(str(path))
    return {
        "index_key": key or type(faiss.downcast_index(index)).__name__,
        "size in bytes": size,
        "nb vectors": rows,
        "vectors dimension": int(index.d),
    }
