"""The command `index info`: describes the indices of a folder."""

from __future__ import annotations

from typing import Any

import faiss

from clip_retrieval.checksums import find_damage, find_damage_beside
from clip_retrieval.errors import QueryError
from clip_retrieval.index.folder.build_options import OPTIONS
from clip_retrieval.layout import IndexFolder, Modality, about_index, read_manifest
from clip_retrieval.search.files import list_indices, open_parts
from clip_retrieval.search.index import read_settings
from clip_retrieval.search.row_ids import check_ids
from clip_retrieval.search.settings import format_settings, settings_of, widest
from clip_retrieval.search.tree import describe_tree, keeps_lists_in_memory


def describe_folder(url: str, *, check: bool = False) -> dict[str, Any]:
    """Describe each index; raises ClipRetrievalError if there is none, or one is damaged.

    With `check`, every byte of their files and of metadata.arrow is compared with the checksums in the manifest.
    """
    folder = IndexFolder(url)
    if not folder.exists():
        raise QueryError(f"there is no index folder {folder.url}")
    there = list_indices(folder)
    manifest = read_manifest(folder) or {}
    sums = {modality: about_index(manifest, modality).get("sums") or {} for modality in there}
    if check:
        damages = (find_damage_beside(folder), *(find_damage(folder, sums[modality]) for modality in there))
        for damage in filter(None, damages):
            raise damage
    return {
        "index_folder": folder.url,
        "encoder": manifest.get("encoder"),
        "made_by": manifest.get("made_by"),
        "options": manifest.get(OPTIONS),
        "indices": {
            modality: describe_index(folder, modality) | ({"checked": len(sums[modality])} if check else {})
            for modality in there
        },
    }


def describe_index(folder: IndexFolder, modality: Modality) -> dict[str, Any]:
    parts = open_parts(folder, modality, memory_map=True)
    about = about_index(read_manifest(folder), modality)
    if not about.get("sums"):
        check_ids(folder, parts, about.get("rows"))
    index, said = parts[0].index, folder.read_info(modality)
    trees = ", ".join(dict.fromkeys(describe_tree(part.index) for part in parts))  # files may be of different kinds
    settings = widest([settings_of(part.index) for part in parts])
    return {
        "kind": said.get("index_key") or trees,
        "tree": trees,
        "files": len(parts),
        "rows": sum(int(part.index.ntotal) for part in parts),
        "dimension": int(index.d),
        "bytes": count_bytes(folder, folder.index_name(modality)),
        "metric": "inner product" if index.metric_type == faiss.METRIC_INNER_PRODUCT else "L2",
        "settings": format_settings(settings | read_settings(folder, modality, settings)),
        "memory_map": "all but the lists" if any(keeps_lists_in_memory(part.index) for part in parts) else "all",
        "said": said,
    }


def count_bytes(folder: IndexFolder, name: str) -> int:
    return int(folder.fs.du(folder.path(name)))
