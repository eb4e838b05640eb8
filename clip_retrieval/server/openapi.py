"""The API as an OpenAPI 3.1 document, and as a page without scripts or foreign files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from html import escape
from typing import Any

import msgspec

from clip_retrieval.server.app import Handler
from clip_retrieval.server.messages import HTML, Request, Response, json_response
from clip_retrieval.server.schemas import ERROR, EXAMPLES, KNN_REQUEST, METADATA_REQUEST, PARAMETERS, RESULTS
from clip_retrieval.server.v1 import EmbedRequest, RowsRequest, SearchRequest
from clip_retrieval.version import __version__

POSTS: Mapping[str, tuple[str, str, Any]] = {  # path -> name, what it does, shape of the body
    "/v1/search": (
        "search",
        "Search with one query or several; each is a text, or terms that are added up.",
        SearchRequest,
    ),
    "/v1/rows": ("rows", "Rows by their ids: metadata, and on request thumbnails and embeddings.", RowsRequest),
    "/v1/embed": ("embed", "Embed texts and pictures, as OpenAI's embeddings endpoint does.", EmbedRequest),
    "/v1/embeddings": ("embeddings", "The same as /v1/embed, by the name that OpenAI's clients use.", EmbedRequest),
    "/knn-service": (
        "knn_service",
        "Search as clip-retrieval 2 does, with one text, picture, url or vector.",
        KNN_REQUEST,
    ),
    "/metadata": ("metadata", "Metadata of rows by their ids, as in clip-retrieval 2.", METADATA_REQUEST),
}
GETS: Mapping[str, tuple[str, str, str]] = {  # path -> name, what it does, media type
    "/v1/indices": (
        "indices",
        "Name, generation, model, dimension, rows and columns of each index.",
        "application/json",
    ),
    "/v1/pictures/{index}/{id}": ("picture", "The picture of a row: a small JPEG, or the original.", "image/*"),
    "/v1/files/{index}/{id}": ("file", "The PDF or video that the picture of a row is in; supports Range.", "*/*"),
    "/indices-list": ("indices_list", "The names of the indices.", "application/json"),
    "/healthz": ("healthz", "Whether the server's threads work.", "application/json"),
    "/readyz": ("readyz", "Whether every index has just answered a test search.", "application/json"),
    "/metrics": ("metrics", "Figures in Prometheus's format.", "text/plain"),
    "/metrics-summary": ("metrics_summary", "How long the steps of a search take.", "text/plain"),
    "/config.json": ("config", "The settings that clip-retrieval 2's front reads.", "application/json"),
}
STATUSES = {
    "400": "The request is invalid; `message` says why.",
    "401": "A key is missing.",
    "403": "The server fetches no image_url.",
    "404": "There is no such index, row or picture.",
    "409": "The index was rebuilt; `Index-Generation` is the new generation.",
    "413": "The body is too large.",
    "416": "The file has nothing in the requested range; `Content-Range` has its size.",
    "429": "Too many requests are waiting; try again after `Retry-After` seconds.",
    "503": "The model or a file of the index cannot be used at the moment, or the answer took too long.",
}
OF_EVERY_POST = ("400", "401", "403", "404", "409", "413", "429", "503")
OF_A_GET = ("400", "401", "404", "409", "429", "503")
OF_A_FILE = ("400", "401", "404", "409", "416", "429", "503")


@cache
def document() -> dict[str, Any]:
    """Return the OpenAPI document."""
    _, components = msgspec.json.schema_components(
        [SearchRequest, RowsRequest, EmbedRequest], ref_template="#/components/schemas/{name}"
    )
    schemas = {**components, "Error": ERROR, **RESULTS}
    paths: dict[str, Any] = {path: {"post": describe_post(path)} for path in POSTS}
    paths |= {path: {"get": describe_get(path)} for path in GETS}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "clip-retrieval back",
            "version": __version__,
            "description": "Search in indices of pictures and captions. Bodies are JSON with any content type.",
        },
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def describe_post(path: str) -> dict[str, Any]:
    name, what, shape = POSTS[path]
    schema = shape if isinstance(shape, dict) else {"$ref": f"#/components/schemas/{shape.__name__}"}
    return {
        "operationId": name,
        "summary": what,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": EXAMPLES[path]}},
        },
        "responses": {
            "200": {"description": "The answer.", "content": {"application/json": {"schema": answer_schema(name)}}},
            **refusals(OF_EVERY_POST),
        },
    }


def describe_get(path: str) -> dict[str, Any]:
    name, what, media_type = GETS[path]
    schema = answer_schema(name) if media_type == "application/json" else {"type": "string"}
    content = {media_type: {"schema": schema}}
    part = {"206": {"description": "The range, or the beginning of a long one.", "content": content}}
    return {
        "operationId": name,
        "summary": what,
        **({"parameters": PARAMETERS[path]} if path in PARAMETERS else {}),
        "responses": {
            "200": {"description": "The answer.", "content": content},
            **(part if name == "file" else {}),
            **refusals(OF_A_FILE if name == "file" else OF_A_GET),
        },
    }


def answer_schema(name: str) -> dict[str, Any]:
    title = "embed_result" if name == "embeddings" else f"{name}_result"
    return {"$ref": f"#/components/schemas/{title}"} if title in RESULTS else {}


def refusals(statuses: tuple[str, ...]) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": STATUSES[status], "content": content} for status in statuses}


def as_json() -> Response:
    return json_response(document())


def as_page() -> Response:
    """Return the document as a page for people."""
    sections = "".join(
        section(path, method, about) for path, ways in document()["paths"].items() for method, about in ways.items()
    )
    shapes = "".join(table(name, schema) for name, schema in document()["components"]["schemas"].items())
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>clip-retrieval: the API</title>'
        f'<link rel="stylesheet" href="/style.css"></head><body><h1>clip-retrieval {escape(__version__)}: the API</h1>'
        f'<p>{escape(document()["info"]["description"])} As <a href="/v1/openapi.json">OpenAPI</a>.</p>'
        f"{sections}<h2>Shapes</h2>{shapes}</body></html>"
    )
    return Response(page.encode(), HTML)


def section(path: str, method: str, about: dict[str, Any]) -> str:
    """Return one endpoint as HTML."""
    lines = [
        f'<h2><span class="method">{method.upper()}</span> <code>{escape(path)}</code></h2>',
        f"<p>{escape(about['summary'])}</p>",
    ]
    if "requestBody" in about:
        content = about["requestBody"]["content"]["application/json"]
        lines.append(f"<pre>{escape(json.dumps(content['example'], indent=2))}</pre>")
        lines.append(table("", content["schema"]) if "properties" in content["schema"] else link_to(content["schema"]))
    lines += [
        f"<p><code>{escape(parameter['name'])}</code>: {escape(parameter['description'])}</p>"
        for parameter in about.get("parameters", ())
    ]
    answers = "".join(
        f"<li>{status}: {escape(said['description'])}</li>" for status, said in about["responses"].items()
    )
    return "".join([*lines, f"<ul>{answers}</ul>"])


def link_to(schema: dict[str, Any]) -> str:
    name = escape(str(schema.get("$ref", "")).rpartition("/")[2])
    return f'<p>Body: <a href="#{name}">{name}</a></p>' if name else ""


def table(name: str, schema: dict[str, Any]) -> str:
    """Return the fields of a shape as a table."""
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code></td><td>{escape(words(about))}</td>"
        f"<td>{escape(str(about.get('description', '')))}</td></tr>"
        for field, about in schema.get("properties", {}).items()
    )
    head = f'<h3 id="{escape(name)}">{escape(name)}</h3>' if name else ""
    return f"{head}<p>{escape(str(schema.get('description', '')))}</p><table>{rows}</table>"


def words(schema: dict[str, Any]) -> str:
    """Return a field's type, and its default if it has one."""
    if "anyOf" in schema:
        kind = " or ".join(words({**part}) for part in schema["anyOf"])
    elif "enum" in schema:
        kind = " or ".join(map(repr, schema["enum"]))
    elif "$ref" in schema:
        kind = schema["$ref"].rpartition("/")[2]
    else:
        kind = str(schema.get("type", "anything"))
        kind = f"list of {words(schema['items'])}" if kind == "array" and schema.get("items") else kind
    return f"{kind}; default {json.dumps(schema['default'])}" if "default" in schema else kind


def answer(response: Response) -> Handler:
    """Return an endpoint that always gives the same answer."""

    async def always(request: Request, said: Any) -> Response:  # noqa: ARG001 -- what every endpoint takes
        return response

    return always
