"""The whole of `index info`: what the indices of a folder are."""

from __future__ import annotations

from typing import Any

import faiss
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clip_retrieval.errors import QueryError
from clip_retrieval.index.files import open_parts
from clip_retrieval.index.kept import OPTIONS
from clip_retrieval.index.parameters import format_settings, settings_of
from clip_retrieval.index.search import read_settings
from clip_retrieval.layout import MODALITIES, IndexFolder, Modality, read_manifest
from clip_retrieval.sizes import in_bytes


def describe_folder(url: str) -> dict[str, Any]:
    """Return what there is to say of each index; raises ClipRetrievalError where there is none, or one is damaged."""
    folder = IndexFolder(url)
    if not folder.exists():
        raise QueryError(f"there is no index folder {folder.url}")
    there = [modality for modality in MODALITIES if folder.exists(folder.index_name(modality))]
    if not there:
        raise QueryError(f"{folder.url} has neither image.index nor text.index; name a folder that `index` wrote")
    manifest = read_manifest(folder) or {}
    return {
        "index_folder": folder.url,
        "encoder": manifest.get("encoder"),
        "made_by": manifest.get("made_by"),
        "options": manifest.get(OPTIONS),
        "indices": {modality: describe_index(folder, modality) for modality in there},
    }


def describe_index(folder: IndexFolder, modality: Modality) -> dict[str, Any]:
    parts = open_parts(folder, modality, memory_map=True)
    index, info = parts[0].index, folder.info_name(modality)
    said = folder.read_json(info) if folder.exists(info) else {}
    return {
        "kind": said.get("index_key") or describe_tree(index),
        "tree": describe_tree(index),
        "files": len(parts),
        "rows": sum(int(part.index.ntotal) for part in parts),
        "dimension": int(index.d),
        "bytes": count_bytes(folder, folder.index_name(modality)),
        "metric": "inner product" if index.metric_type == faiss.METRIC_INNER_PRODUCT else "L2",
        "settings": format_settings(settings_of(index) | read_settings(folder, modality, index)),
        "memory_map": "all but the lists" if has_packed_lists(index) else "all",
        "said": said,
    }


def count_bytes(folder: IndexFolder, name: str) -> int:
    return int(folder.fs.du(folder.path(name)))


def describe_tree(index: Any) -> str:
    """Return faiss's classes from the outside in, such as IndexRefine(IndexIVFPQFastScan, IndexScalarQuantizer)."""
    index = faiss.downcast_index(index)
    names = ("index", "base_index", "refine_index")
    inner = [describe_tree(getattr(index, name)) for name in names if hasattr(index, name)]
    return type(index).__name__ + (f"({', '.join(inner)})" if inner else "")


def has_packed_lists(index: Any) -> bool:
    """Say whether lists of fast scan are in it, which faiss cannot map."""
    return "IndexIVF" in describe_tree(index) and "FastScan" in describe_tree(index)


def recall_at_ten(said: dict[str, Any], asked: Modality) -> str:
    measured = (said.get("quality") or {}).get(asked) or {}
    return str(measured.get("recall@10", "not measured"))


def name_model(found: dict[str, Any]) -> str:
    if found["made_by"] is None and found["encoder"] is None:
        return "unknown: the folder has no manifest.json"
    return str((found["encoder"] or {}).get("clip_model", "unknown: the embeddings had no manifest.json"))


def print_info(found: dict[str, Any]) -> None:
    """Print a column for each index."""
    table = Table(title=Text(f"indices in {found['index_folder']}"), title_justify="left")
    table.add_column("")
    for modality in found["indices"]:
        table.add_column(modality, overflow="fold")
    for name in ("kind", "tree", "rows", "dimension", "size", "files", "metric", "settings", "memory_map"):
        values = [in_bytes(index["bytes"]) if name == "size" else index[name] for index in found["indices"].values()]
        table.add_row(name, *(f"{value:,}" if isinstance(value, int) else str(value) for value in values))
    for asked in MODALITIES:
        found_at = [recall_at_ten(index["said"], asked) for index in found["indices"].values()]
        table.add_row(f"recall@10, {asked} queries", *found_at)
    recalls = sorted({name for index in found["indices"].values() for name in index["said"] if "recall" in name})
    for name in recalls:
        table.add_row(name, *(str(index["said"].get(name, "")) for index in found["indices"].values()))
    table.add_row("model", *([name_model(found)] * len(found["indices"])))
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    if found["options"]:
        kept = " ".join(f"--{name} {value}" for name, value in found["options"].items() if value is not None)
        console.print(f"built with {kept}", soft_wrap=True)  # to be copied
