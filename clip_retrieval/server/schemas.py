"""Shapes of requests and answers for the OpenAPI document that have no message class."""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "number"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}


def nullable(kind: str, description: str, **more: Any) -> dict[str, Any]:
    return {"type": [kind, "null"], "description": description, **more}


def record(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def listing(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


ERROR = record({"message": {"type": "string", "description": "What is wrong, in a sentence."}}, ("message",))
METADATA: dict[str, Any] = {"type": "object", "description": "Columns of the metadata that have a value."}
GENERATION = {"type": "string", "description": "The build of the index; it changes when ids may mean other rows."}

KNN_REQUEST = record(
    {
        "text": nullable("string", "Search by a text; only the first given one of the four inputs counts."),
        "image": nullable("string", "Search by a picture, as base64."),
        "image_url": nullable("string", "Search by the picture at a url, if the server may fetch pictures."),
        "embedding_input": nullable("array", "Search by a vector.", items=NUMBER),
        "modality": {"type": "string", "description": "image: search pictures; anything else: search captions."},
        "num_images": {**COUNT, "description": "Hits with metadata."},
        "num_result_ids": nullable("integer", "Hits in all; after num_images, they have only id and similarity."),
        "indice_name": nullable("string", "Which index; null: the first."),
        "deduplicate": {
            "type": "boolean",
            "default": False,
            "description": "Leave out near-duplicates of better hits.",
        },
        "use_mclip": {"type": "boolean", "description": "Ignored."},
        "use_safety_model": {"type": "boolean", "description": "Ignored: there is no such model."},
        "use_violence_detector": {"type": "boolean", "description": "Ignored: there is no such model."},
        "aesthetic_score": {"description": "Ignored."},
        "aesthetic_weight": {"description": "Ignored."},
    },
    ("num_images",),
)
METADATA_REQUEST = record(
    {
        "ids": {**listing({"type": "integer"}), "description": "Rows of the index."},
        "indice_name": nullable("string", "Which index; null: the first."),
        "columns": nullable(
            "array", "Columns to return; null: url, image_path, caption and NSFW, or --columns_to_return.", items=TEXT
        ),
        "generation": nullable("string", "The build of the ids; another one is refused with 409."),
    },
    ("ids",),
)
HIT = record(
    {
        "rank": COUNT,
        "id": COUNT,
        "similarity": NUMBER,
        "metadata": METADATA,
        "surprise": {**NUMBER, "description": "Rows that would score as high by chance; only with `surprise`."},
        "embedding": {"description": "Only with `embeddings`: numbers, or base64 of float32 in little-endian order."},
    },
    ("rank", "id", "similarity", "metadata"),
)
ANSWER = record(
    {
        "query": TEXT,
        "kind": TEXT,
        "hits": listing(HIT),
        "how": {**listing(TEXT), "description": "How the hits were found, if there is something to note."},
        "warning": {"type": "string", "description": "Words that the model does not know."},
        "background": {
            **listing(record({"row_count": NUMBER, "middle": NUMBER, "deviation": NUMBER})),
            "description": "Only with `surprise`: the normal distribution of the scores of unrelated rows; for an "
            "index in parts, one distribution for each part.",
        },
    },
    ("query", "kind", "hits", "how"),
)
EMBEDDING = record({"object": TEXT, "index": COUNT, "embedding": {}, "warning": TEXT}, ("object", "index", "embedding"))
ROW = record({"id": COUNT, "metadata": METADATA, "embedding": {}}, ("id", "metadata"))
PARTIAL = {
    **listing(record({"part": COUNT, "first_id": COUNT, "rows": COUNT, "problem": TEXT}, ("part", "first_id", "rows"))),
    "description": "Parts of the index that did not answer, and which rows they have; absent if all did.",
}
ABOUT_INDEX = record(
    {
        "name": TEXT, "generation": GENERATION, "clip_model": {"type": ["string", "null"]}, "dimension": COUNT,
        "rows": {"type": "object", "description": "Rows of each index, image and text."}, "columns": listing(TEXT),
        "pictures": {"type": "boolean", "description": "The server has pictures of its rows."},
        "files": {"type": "boolean", "description": "The server has the PDFs and videos of its rows."},
        "fingerprint": {"type": ["string", "null"], "description": "The weights of the model."},
        "metric": TEXT, "usual_columns": {**listing(TEXT), "description": "What /knn-service and /metadata return."},
        "parts": {**listing({"type": "object"}), "description": "Of an index in parts: which rows each part has."},
    }
)  # fmt: skip
RESULTS: dict[str, Any] = {
    "search_result": record(
        {"index": TEXT, "generation": GENERATION, "results": listing(ANSWER), "partial": PARTIAL},
        ("index", "generation", "results"),
    ),
    "rows_result": record(
        {"index": TEXT, "generation": GENERATION, "rows": listing(ROW), "partial": PARTIAL},
        ("index", "generation", "rows"),
    ),
    "embed_result": record(
        {"object": TEXT, "data": listing(EMBEDDING), "model": {"type": ["string", "null"]}}, ("object", "data")
    ),
    "knn_service_result": listing(record({"id": COUNT, "similarity": NUMBER, "image": TEXT}, ("id", "similarity"))),
    "metadata_result": listing(record({"id": COUNT, "metadata": METADATA}, ("id", "metadata"))),
    "indices_result": record(
        {"indices": listing(ABOUT_INDEX), "max_results": COUNT, "max_queries": COUNT}, ("indices",)
    ),
    "indices_list_result": listing(TEXT),
}
WHICH_ROW: list[dict[str, Any]] = [
    {"name": "index", "in": "path", "required": True, "schema": TEXT, "description": "Name of the index."},
    {"name": "id", "in": "path", "required": True, "schema": COUNT, "description": "Row of the index."},
    {"name": "generation", "in": "query", "schema": TEXT, "description": "The build that the id is of."},
]
PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "/v1/files/{index}/{id}": [
        *WHICH_ROW,
        {
            "name": "expires", "in": "query", "schema": COUNT,
            "description": "When a signed link expires, in seconds since 1970; at most a day from now.",
        },
        {
            "name": "signature", "in": "query", "schema": TEXT,
            "description": "Instead of a key: HMAC-SHA256 with it, in hex, of the path, a line end and `expires`.",
        },
    ],
    "/v1/pictures/{index}/{id}": [
        *WHICH_ROW,
        {
            "name": "size", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1024},
            "description": "Longest side in pixels.",
        },
        {
            "name": "original", "in": "query", "schema": {"type": "string", "enum": ["1", "true"]},
            "description": "The original bytes of the file.",
        },
    ],
}  # fmt: skip
EXAMPLES: dict[str, Any] = {
    "/v1/search": {
        "queries": ["beach - people", [{"text": "a dog"}, {"id": 17, "weight": 0.5}]],
        "limit": 10,
        "where": "width >= 512",
        "deduplicate": 0.94,
    },
    "/v1/rows": {"ids": [0, 1], "embeddings": True},
    "/v1/embed": {"input": ["a dog", "a cat"]},
    "/v1/embeddings": {"input": "a dog", "encoding_format": "base64"},
    "/knn-service": {"text": "a dog", "modality": "image", "num_images": 20, "indice_name": None},
    "/metadata": {"ids": [0, 1], "indice_name": None},
}
