"""Joins the files next to merged indices: their lists of zero rows, and their manifests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.checksums import FileSums, find_damage, sum_files
from clip_retrieval.errors import IndexBuildError
from clip_retrieval.index.folder.build_options import OPTIONS
from clip_retrieval.layout import (
    FORMAT_VERSION,
    MANIFEST,
    PICTURES_BELOW,
    IndexFolder,
    Modality,
    about_index,
    read_manifest,
)
from clip_retrieval.search.index import read_empty_rows
from clip_retrieval.search.settings import Settings, parse_settings, widest
from clip_retrieval.storage import Folder
from clip_retrieval.version import __version__


@dataclass(frozen=True, kw_only=True)
class JoinedManifests:
    """Joined facts of the index folders of all parts."""

    empty_rows: NDArray[np.int64]  # ids of the merged index
    row_count: int | None  # None: not every part is in an index folder with a manifest
    encoder: Any
    pictures_below: list[str]
    settings: Settings  # the slowest of each part
    key: str | None  # None: the parts' json files name several kinds, or none


def join_folders(source: Folder, names: Sequence[str], starts: Sequence[int], modality: Modality) -> JoinedManifests:
    """Read the manifests of parts, whose ids begin at `starts` in the merged index.

    Raises IndexBuildError if they hold embeddings of different models.
    """
    firsts: dict[str | None, int] = {}
    for name, start in zip(names, starts, strict=True):
        firsts.setdefault(folder_of(name, modality), start)
    folders = {IndexFolder(source.path(place)): start for place, start in firsts.items() if place is not None}
    empty = [read_empty_rows(folder, modality) + start for folder, start in folders.items()]
    manifests = {folder.url: read_manifest(folder) for folder in folders}
    for folder in folders:
        damage = find_damage(folder, about_index(manifests[folder.url], modality).get("sums") or {})
        if damage is not None:
            raise damage
    known = {url: manifest for url, manifest in manifests.items() if manifest is not None}
    encoder = check_encoders(known)
    counts: list[Any] = [about_index(manifest, modality).get("rows") for manifest in known.values()]
    is_known = bool(known) and len(known) == len(firsts) and None not in counts
    infos = [folder.read_info(modality) for folder in folders]
    keys = {info.get("index_key") for info in infos}
    return JoinedManifests(
        empty_rows=np.concatenate([np.empty(0, np.int64), *empty]),
        row_count=sum(counts) if is_known else None,
        encoder=encoder,
        pictures_below=list_all_roots(known.values()),
        settings=widest([parse_settings(info.get("index_param") or "") for info in infos]),
        key=keys.pop() if len(keys) == 1 else None,
    )


def list_all_roots(manifests: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the folders of the pictures of all parts."""
    return list(dict.fromkeys(root for manifest in manifests for root in manifest.get(PICTURES_BELOW) or ()))


def folder_of(name: str, modality: Modality) -> str | None:
    """Return the index folder that a file belongs to, below the folder where it was found; None if there is none."""
    path, wanted = PurePosixPath(name), IndexFolder.index_name(modality)
    places = [at.parent for at in (path, path.parent) if at.name == wanted]
    return str(places[0]) if places else None


def check_encoders(manifests: dict[str, dict[str, Any]]) -> Any:
    """Return the encoder of all manifests."""
    encoders = {url: manifest.get("encoder") or {} for url, manifest in manifests.items()}
    prints = {url: encoder.get("fingerprint") for url, encoder in encoders.items()}
    first = next(iter(prints), "")
    for url, found in prints.items():
        if found != prints[first]:
            raise IndexBuildError(f"{url} and {first} hold embeddings of different models, which cannot be compared")
    return encoders[first] if first and encoders[first] else None


def write_beside(
    target: IndexFolder, modality: Modality, joined: JoinedManifests, info: dict[str, Any], sums: FileSums
) -> None:
    """Write the files next to a merged index, and remove those of an earlier one."""
    for name in (target.empty_rows_name(modality), target.checksums_name(modality)):
        target.remove(name)
    if len(joined.empty_rows):
        with target.staged(target.empty_rows_name(modality)) as staged:
            np.save(staged, joined.empty_rows)
            sums = sums | sum_files(Folder(str(staged.parent)), staged.name)
    manifest = read_manifest(target) or {}
    others = {other: said for other, said in manifest.get("indices", {}).items() if other != modality}
    if joined.row_count is None and not others:
        target.remove(MANIFEST)
        return
    here = {
        "rows": joined.row_count, "dimension": info["vectors dimension"], "key": info["index_key"], "sums": sums,
    }  # fmt: skip
    target.write_json(
        MANIFEST,
        {
            "format_version": FORMAT_VERSION,
            "made_by": f"clip-retrieval {__version__}",
            "encoder": manifest.get("encoder") if others else joined.encoder,
            PICTURES_BELOW: list_all_roots([{PICTURES_BELOW: joined.pictures_below}, manifest if others else {}]),
            "indices": {**others, **({modality: here} if joined.row_count is not None else {})},
            **{key: manifest[key] for key in ("sums", OPTIONS) if others and key in manifest},
        },
    )
