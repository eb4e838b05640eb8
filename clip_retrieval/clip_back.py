"""The names of clip-retrieval 2's `clip_back` that notebooks use: indices opened and asked without a server.

The module itself can be called, as `from clip_retrieval import clip_back` gave a function there.
"""

from __future__ import annotations

import sys
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any, TypedDict, Unpack

import numpy as np

from clip_retrieval.errors import QueryError
from clip_retrieval.network.fetch import fetch
from clip_retrieval.network.limits import FetchLimits
from clip_retrieval.options import build_config
from clip_retrieval.query.answer import answer, without_duplicates
from clip_retrieval.query.config import SelectionConfig
from clip_retrieval.query.embed import Query
from clip_retrieval.query.searcher import Searcher
from clip_retrieval.query.selection import NEAR_DUPLICATE
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.indices import EncoderPool, Generation, open_generation
from clip_retrieval.server.named import list_served
from clip_retrieval.server.pictures import Thumbnails
from clip_retrieval.server.rows import read_rows
from clip_retrieval.server.start import run_back

__all__ = ["ClipOptions", "ClipResource", "KnnService", "clip_back", "load_clip_indices"]

ClipResource = Generation
THUMBNAIL_SIDE = 256
USUAL_COUNT = 100


@dataclass
class ClipOptions:
    """Options of opened indices, as clip-retrieval 2 has them; the json file's settings take precedence.

    Some change nothing here, and a model of unsafe pictures or of violence is refused: `clip-retrieval back --help`.
    """

    indice_folder: str = ""  # unused: the json file names the folders
    clip_model: str | None = None  # None: the one that the index names
    enable_hdf5: bool = False
    enable_faiss_memory_mapping: bool = True
    columns_to_return: Sequence[str] | None = None
    reorder_metadata_by_ivf_index: bool = False
    enable_mclip_option: bool = False
    use_jit: bool = False
    use_arrow: bool = False
    provide_safety_model: bool = False
    provide_violence_detector: bool = False
    provide_aesthetic_embeddings: bool = False


class KnnOptions(TypedDict, total=False):
    """The other options of a query; the last five change nothing, as in clip-retrieval 2 without their models."""

    modality: str
    num_images: int
    num_result_ids: int
    indice_name: str | None
    deduplicate: bool
    use_mclip: bool
    use_safety_model: bool
    use_violence_detector: bool
    aesthetic_score: int | None
    aesthetic_weight: float | None


def clip_back(*arguments: object, **options: object) -> None:
    """Serve indices until a signal says stop; takes the flags of `clip-retrieval back` as keywords, or by position."""
    run_back(build_config(BackConfig, options, arguments))


def load_clip_indices(indices_paths: str, clip_options: ClipOptions | None = None) -> dict[str, ClipResource]:
    """Open the indices of a json file, or of one index folder, by name. Raises ClipRetrievalError."""
    said = clip_options or ClipOptions()
    given = {
        field.name: getattr(said, field.name)
        for field in fields(ClipOptions)
        if field.name != "indice_folder" and getattr(said, field.name) != field.default
    }
    served = list_served(build_config(BackConfig, given, [indices_paths]))
    encoders = EncoderPool()
    return {index.name: open_generation(index, encoders) for index in served}


class KnnService:
    """Searches opened indices, with the answers of /knn-service."""

    def __init__(self, clip_resources: Mapping[str, ClipResource]) -> None:
        self.clip_resources = clip_resources
        self.thumbnails = Thumbnails(THUMBNAIL_SIDE)

    def query(
        self,
        text_input: str | None = None,
        image_input: str | None = None,
        image_url_input: str | None = None,
        embedding_input: Any = None,
        **options: Unpack[KnnOptions],
    ) -> list[dict[str, Any]]:
        """Return hits, best first: id, similarity, and for the first `num_images` their metadata.

        `image_input` is base64; of several inputs the first is used. Raises QueryError if there is none.
        """
        index = self.choose(options.get("indice_name"))
        searcher = choose_searcher(index, options.get("modality", "image"))
        query, length = embed(searcher, (text_input, image_input, image_url_input, embedding_input))
        searcher.check_dimension(query)
        shown = options.get("num_images", USUAL_COUNT)
        count = max(shown, options.get("num_result_ids", USUAL_COUNT))
        found = answer(searcher, query, SelectionConfig(num_results=max(1, count)))
        if options.get("deduplicate", True):
            found = without_duplicates(found, searcher, NEAR_DUPLICATE)
        ids, scores = found.found.ids[:count], found.found.scores[:count] * length
        rows = self.thumbnails.add(index, ids[:shown], read_rows(index, ids[:shown], index.usual_columns))
        rows += [{} for _ in ids[shown:]]
        own = zip(rows, ids.tolist(), scores.tolist(), strict=True)
        return [{**row, "id": row_id, "similarity": score} for row, row_id, score in own]

    def choose(self, name: str | None) -> ClipResource:
        if name is None:
            return next(iter(self.clip_resources.values()))
        if name not in self.clip_resources:
            raise QueryError(f"there is no index {name!r}; there are {', '.join(self.clip_resources)}")
        return self.clip_resources[name]


def choose_searcher(index: ClipResource, modality: str) -> Searcher:
    """Return the index of pictures, or of captions. Raises QueryError if the folder has none."""
    found = index.searchers.get("image" if modality == "image" else "text")
    if found is None:
        raise QueryError(f"the index {index.name} has only {' and '.join(index.searchers)} rows, no {modality} rows")
    return found


def embed(searcher: Searcher, inputs: tuple[str | None, str | None, str | None, Any]) -> tuple[Query, float]:
    """Return the query of the first input that is given, and the length of its vector, which scales similarities."""
    text, picture, url, vector = inputs
    if text:
        return searcher.embed_text(text), 1.0
    if picture:
        return searcher.embed_picture(read_base64(picture), "image_input"), 1.0
    if url:
        return searcher.embed_picture(fetch(url, FetchLimits()), url), 1.0
    if vector is None:
        raise QueryError("give one of text_input, image_input (base64), image_url_input and embedding_input")
    values = np.asarray(vector)
    return searcher.embed_vector(values, "embedding_input"), float(np.linalg.norm(values.astype(np.float64)))


def read_base64(text: str) -> bytes:
    try:
        return b64decode(text)
    except ValueError as error:
        raise QueryError("image_input is not base64") from error


class CallableModule(ModuleType):
    def __call__(self, *arguments: object, **options: object) -> None:
        clip_back(*arguments, **options)


sys.modules[__name__].__class__ = CallableModule
