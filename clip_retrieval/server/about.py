"""Endpoints that only read: names of indices, pictures of rows, figures, and settings for a front."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from clip_retrieval.server.asking import Asker
from clip_retrieval.server.builds import Build, describe_absent_row
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.files import find_range
from clip_retrieval.server.legacy import GENERATION, bad, check_generation
from clip_retrieval.server.messages import TEXT, Header, HttpError, Request, Response, Stream, json_response
from clip_retrieval.server.pictures import media_type
from clip_retrieval.server.served import Indices

PICTURES, FILES = "/v1/pictures/", "/v1/files/"
LARGEST_SIDE = 1024
DIGITS_OF_A_SIDE = 9
USUAL_SIDE = 256
DIGITS_OF_AN_ID = 18


@dataclass(frozen=True)
class Endpoints:
    """The endpoints for GET."""

    config: BackConfig
    indices: Indices
    asker: Asker

    async def list_names(self, request: Request, said: Any) -> Response:  # noqa: ARG002 -- what every endpoint takes
        return json_response(list(self.indices.served))

    async def list_indices(self, request: Request, said: Any) -> Response:  # noqa: ARG002
        """Return name, generation, model, dimension, rows and columns of each index."""
        listed = [build.describe() for build in self.indices.all()]
        limits = self.config.limits
        most = {"max_results": limits.max_results, "max_queries": limits.max_queries}
        return json_response({"indices": listed, **most})

    async def read_metrics(self, request: Request, said: Any) -> Response:  # noqa: ARG002
        return Response(*self.asker.metrics.text())

    async def summarize(self, request: Request, said: Any) -> Response:  # noqa: ARG002
        return Response(self.asker.metrics.summary().encode(), TEXT)

    async def configure_front(self, request: Request, said: Any) -> Response:  # noqa: ARG002
        """Return the settings that a front reads next to its page."""
        return json_response(front_settings(request, self.config.default_backend, "", self.config.url_column))

    async def show_picture(self, request: Request, said: Any) -> Response:  # noqa: ARG002
        """Return the picture of a row: a small JPEG, or with ?original=1 its bytes. Raises HttpError 404."""
        build, row = self.find_row(request, PICTURES)
        parameters = request.parameters
        is_original = parameters.get("original", "").lower() in ("1", "true")
        data = await build.picture(row, None if is_original else read_side(parameters.get("size")))
        kind = None if data is None else media_type(data)
        if data is None or kind is None:
            raise HttpError(HTTPStatus.NOT_FOUND, f"row {row} of {build.name} has no picture that is served")
        return Response(data, kind.encode(), headers=headers_of(build))

    async def show_file(self, request: Request, said: Any) -> Response:
        """Return the PDF or video that the picture of a row is in, or a range of it. Raises HttpError 404 and 416."""
        build, row = self.find_row(request, FILES)
        held = await build.file(row)
        if held is None:
            said = f"row {row} of {build.name} is not a page or frame, or its PDF or video is gone or not served"
            raise HttpError(HTTPStatus.NOT_FOUND, said)
        kind, headers = held.media_type.encode(), (*headers_of(build), (b"accept-ranges", b"bytes"))
        span = find_range(request, held.size)
        if span is not None:
            place = (b"content-range", f"bytes {span[0]}-{span[1] - 1}/{held.size}".encode())
            return Response(await held.read(*span), kind, HTTPStatus.PARTIAL_CONTENT, (*headers, place))
        return Response(b"", kind, headers=headers, stream=Stream(held.size, held.pieces(request)))

    def find_row(self, request: Request, beginning: str) -> tuple[Build, int]:
        """Return the index and the row at the end of a path. Raises HttpError; 404 if either does not exist."""
        name, _, row = request.path.removeprefix(beginning).rpartition("/")
        if not name:
            raise HttpError(HTTPStatus.NOT_FOUND, f"the path is {beginning}INDEX/ROW")
        build = self.indices.get(name)
        check_generation(request, build, request.parameters.get("generation"))
        if not (row.isascii() and row.isdigit()):
            raise bad(f"the id of a row is a whole number from 0 on, not {row[:50]!r}")
        if len(row) > DIGITS_OF_AN_ID or int(row) >= build.row_count:
            raise HttpError(HTTPStatus.NOT_FOUND, describe_absent_row(build, row))
        return build, int(row)


def headers_of(build: Build) -> tuple[Header, ...]:
    return (GENERATION, build.id.encode()), (b"cache-control", b"private, max-age=3600")


def front_settings(request: Request, backend: str | None, index: str, url_column: str) -> dict[str, str]:
    """Return clip-retrieval 2's config.json.

    Without a backend, this server is the backend. Our page uses `backend`, relative to itself, since behind a proxy
    this server does not know its name for the browser.
    """
    host = (request.header(b"host") or b"").decode("latin-1")
    own = f"{request.scope.get('scheme', 'http')}://{host}"
    said = {"defaultBackend": backend or own, "defaultIndex": index, "urlColumn": url_column}
    return said if backend else {**said, "backend": "."}


def read_side(text: str | None) -> int:
    """Return the longest side that is asked for. Raises HttpError if it is invalid."""
    if text is None:
        return USUAL_SIDE
    if not (text.isascii() and text.isdigit() and len(text) <= DIGITS_OF_A_SIDE and 1 <= int(text) <= LARGEST_SIDE):
        raise bad(f"size is 1 to {LARGEST_SIDE} pixels")
    return int(text)
