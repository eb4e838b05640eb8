"""How an index folder is opened and searched: the options that every command which asks an index shares."""

from __future__ import annotations

from dataclasses import dataclass

from clip_retrieval.layout import Modality
from clip_retrieval.options import option


@dataclass(frozen=True, kw_only=True)
class SearcherConfig:
    """Which index of a folder is asked, with which model, and how it is searched."""

    modality: Modality = option("image", help="Search pictures or captions.")
    clip_model: str | None = option(None, help="The model of the index; only for folders that do not name theirs.")
    device: str = option("cpu", help="Where the query is embedded.")
    clip_cache_path: str | None = option(None, help="Folder that model downloads are kept in.")
    index_param: str | None = option(
        None, help="Search settings such as nprobe=64,efSearch=128; None: those of the index."
    )
    memory_map: bool = option(True, help="Leave the index on disk and read what the query needs, where faiss can.")
    refine_from: str | None = option(
        None, help="The embeddings folder of the index: compare ten times as many candidates by the stored embeddings."
    )
