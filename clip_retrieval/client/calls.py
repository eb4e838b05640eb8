"""Requests of a client: bodies exactly as clip-retrieval 2's client sends them, and those of /v1."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TypedDict
from urllib.parse import quote, urlencode, urlsplit

from clip_retrieval.errors import ConfigError

KNN_SERVICE = "/knn-service"

Json = dict[str, Any]
Query = str | Sequence[Mapping[str, Any]]  # "beach - people", or terms that are added up
Input = str | bytes | Path  # a text, or a picture


class Array(Protocol):
    """An array of numpy, or a tensor of torch."""

    def tolist(self) -> Any: ...


Vector = Sequence[float] | Array


class Modality(Enum):
    """What is searched: pictures or captions."""

    IMAGE = "image"
    TEXT = "text"


class SearchOptions(TypedDict, total=False):
    """What /v1/search takes besides its queries; see docs/server.md."""

    modality: str  # image or text, instead of the client's
    limit: int
    offset: int
    threshold: float | None
    where: str | None
    surprise: float | None
    deduplicate: float | None
    diverse: float | None
    columns: Sequence[str] | None
    thumbnails: bool
    embeddings: bool
    generation: str | None


@dataclass(frozen=True)
class Call:
    """One request: what is sent, and what comes back: bytes, or JSON that is a list or an object with a list `part`."""

    url: str
    body: Json | None = None
    is_json: bool = True
    part: str | None = None

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"

    @property
    def content(self) -> str | None:
        return None if self.body is None else json.dumps(self.body)


@dataclass(eq=False)
class Settings:
    """What every request of a client says, in the order of clip-retrieval 2's ClipClient; then how it is sent."""

    url: str  # of the endpoint, such as http://localhost:1234/knn-service, or of the server alone
    indice_name: str | None = None  # None: the server's first index
    use_mclip: bool = False
    aesthetic_score: int = 9
    aesthetic_weight: float = 0.5
    modality: Modality = Modality.IMAGE
    num_images: int = 40
    deduplicate: bool = True
    use_safety_model: bool = True
    use_violence_detector: bool = True
    _: KW_ONLY
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0  # seconds that one try may take
    retries: int = 5  # further tries if the server is busy (429, 503) or hangs up
    backoff: float = 0.25  # seconds before the second try, twice as many before each further one

    def __post_init__(self) -> None:
        if not is_address(self.url):
            raise ConfigError(f"url is the address of a server, such as http://localhost:1234, not {self.url!r}")
        self.modality = Modality(self.modality)
        if self.api_key is not None:
            self.api_key = self.api_key.strip()  # it may be the line of a file
            if not (self.api_key.isascii() and self.api_key.isprintable()):
                raise ConfigError("api_key has characters that are not allowed in a header")

    @property
    def server(self) -> str:
        return self.url.rstrip("/").removesuffix(KNN_SERVICE).rstrip("/")

    @property
    def http_options(self) -> dict[str, Any]:
        headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        return {"timeout": self.timeout, "headers": headers}

    def query_call(self, text: str | None, image: str | Path | None, embedding_input: Vector | None) -> Call:
        """Return the request of `query`, as clip-retrieval 2's client sends it."""
        if sum(given is not None for given in (text, image, embedding_input)) != 1:
            raise ValueError("give one of text, image and embedding_input")
        is_url = isinstance(image, str) and image.startswith("http")
        body = {
            "text": text,
            "image": None if image is None or is_url else encode(Path(image)),
            "image_url": image if is_url else None,
            "embedding_input": None if embedding_input is None else as_numbers(embedding_input),
            "deduplicate": self.deduplicate,
            "use_safety_model": self.use_safety_model,
            "use_violence_detector": self.use_violence_detector,
            "indice_name": self.indice_name,
            "use_mclip": self.use_mclip,
            "aesthetic_score": self.aesthetic_score,
            "aesthetic_weight": self.aesthetic_weight,
            "modality": self.modality.value,
            "num_images": self.num_images,
            "num_result_ids": self.num_images,
        }
        return Call(f"{self.server}{KNN_SERVICE}", body)

    def metadata_call(self, ids: Iterable[int]) -> Call:
        return Call(f"{self.server}/metadata", {"ids": [int(row) for row in ids], "indice_name": self.indice_name})

    def search_call(self, queries: Sequence[Query], options: SearchOptions) -> Call:
        asked = [query if isinstance(query, str) else [as_term(term) for term in query] for query in queries]
        said = {"queries": asked, "index": self.indice_name, "modality": self.modality.value}
        return Call(f"{self.server}/v1/search", {**said, **options}, part="results")

    def embed_call(self, inputs: Sequence[Input]) -> Call:
        items = [item if isinstance(item, str) else {"image": encode(item)} for item in inputs]
        return Call(f"{self.server}/v1/embed", {"input": items, "index": self.indice_name}, part="data")

    def picture_call(self, index: str, row_id: int, size: int | None) -> Call:
        query = urlencode({"original": 1} if size is None else {"size": size})
        return Call(f"{self.server}/v1/pictures/{quote(index, safe='')}/{int(row_id)}?{query}", is_json=False)


def is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port or an address in brackets is invalid
        return False


def encode(picture: bytes | Path) -> str:
    """Return a picture as base64. Raises OSError if its file cannot be read."""
    return base64.b64encode(picture if isinstance(picture, bytes) else picture.read_bytes()).decode()


def as_term(term: Mapping[str, Any]) -> Json:
    """Return a term as JSON: pictures as base64, vectors as lists."""
    said = dict(term)
    if isinstance(said.get("image"), bytes | Path):
        said["image"] = encode(said["image"])
    if said.get("embedding") is not None:
        said["embedding"] = as_numbers(said["embedding"])
    return said


def as_numbers(vector: Vector) -> list[float]:
    """Return a vector [d] or [1, d] as a list, of any library. Raises ValueError for several vectors."""
    values: list[Any] = list(vector) if isinstance(vector, Sequence) else vector.tolist()
    if values and isinstance(values[0], list):
        if len(values) > 1:
            raise ValueError(f"embedding_input has {len(values)} rows; ask with one at a time")
        values = values[0]
    return [float(value) for value in values]
