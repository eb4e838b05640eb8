"""What notebooks of clip-retrieval 2 import of clip_back."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import clip_retrieval
from clip_retrieval import load_encoder
from clip_retrieval.clip_back import ClipOptions, KnnService, load_clip_indices
from clip_retrieval.errors import ConfigError, QueryError

MODEL = "hash:16?size=32"
WORDS = ["cat", "dog", "rocket", "sun"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, write_index: Callable[..., Path]) -> str:
    """Give a json file of two indices, the second of which has its own option."""
    folder = tmp_path_factory.mktemp("indices")
    captions = pd.DataFrame({"caption": WORDS, "url": [f"http://example.org/{word}" for word in WORDS]})
    write_index(folder / "words", captions)
    said = {"words": "words", "urls": {"indice_folder": "words", "columns_to_return": ["url"]}}
    (folder / "indices_paths.json").write_text(json.dumps(said))
    return str(folder / "indices_paths.json")


@pytest.fixture(scope="module")
def service(paths: str) -> KnnService:
    """Give a service, made as clip-retrieval 2's notebook does."""
    options = ClipOptions(
        indice_folder="", clip_model=MODEL, enable_hdf5=False, enable_faiss_memory_mapping=True,
        columns_to_return=["caption"], reorder_metadata_by_ivf_index=False, enable_mclip_option=False, use_jit=False,
        use_arrow=False, provide_safety_model=False, provide_violence_detector=False,
        provide_aesthetic_embeddings=False,
    )  # fmt: skip
    return KnnService(clip_resources=load_clip_indices(paths, clip_options=options))


def test_texts_pictures_and_vectors_are_asked_as_in_the_notebook(service: KnnService) -> None:
    hits = service.query(text_input="dog", num_images=1, num_result_ids=3)
    assert [hit.keys() for hit in hits] == [{"id", "similarity", "caption"}, *2 * [{"id", "similarity"}]]
    assert (hits[0]["id"], hits[0]["caption"]) == (1, "dog")
    assert hits[0]["similarity"] == pytest.approx(1, abs=1e-5)
    vector = 2 * load_encoder(MODEL).encode_texts(["sun"])[0]
    (hit,) = service.query(embedding_input=vector.tolist(), num_images=1, num_result_ids=1)
    assert (hit["caption"], hit["similarity"]) == ("sun", pytest.approx(2, abs=1e-4))
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (200, 90, 20)).save(file, "PNG")
    assert len(service.query(image_input=base64.b64encode(file.getvalue()).decode())) == len(WORDS)


def test_each_index_has_its_own_options(service: KnnService) -> None:
    (hit,) = service.query(text_input="dog", indice_name="urls", num_images=1, num_result_ids=1, use_mclip=True)
    assert hit.keys() == {"id", "similarity", "url"}


def test_near_duplicates_are_left_out_unless_asked_for(tmp_path: Path, write_index: Callable[..., Path]) -> None:
    index = write_index(tmp_path / "twice", pd.DataFrame({"caption": ["dog", "dog", "cat"]}))
    service = KnnService(load_clip_indices(str(index)))
    assert [hit["caption"] for hit in service.query("dog")] == ["dog", "cat"]
    assert [hit["caption"] for hit in service.query("dog", deduplicate=False)] == ["dog", "dog", "cat"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "give one of"),
        ({"text_input": "a", "indice_name": "x"}, "no index 'x'; there are words, urls"),
        ({"text_input": "a", "modality": "text"}, "has only image rows"),
        ({"image_input": "=a="}, "not base64"),
        ({"embedding_input": np.ones(3)}, "the query has 3 dimensions, the index has 16"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(service: KnnService, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(QueryError, match=said):
        service.query(**asked)


def test_models_that_are_not_there_are_refused_by_name(paths: str) -> None:
    with pytest.raises(ConfigError, match="provide_safety_model is not supported"):
        load_clip_indices(paths, ClipOptions(provide_safety_model=True))


def test_the_module_is_called_as_the_function_was(tmp_path: Path) -> None:
    called: Any = clip_retrieval.clip_back
    for function in (called, called.clip_back):
        with pytest.raises(ConfigError, match="neither an index folder nor a json file"):
            function(str(tmp_path / "nothing.json"), port=0)
