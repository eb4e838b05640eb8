"""Files of a web front, read once at the start: a request names a key of a dictionary, never a path."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from clip_retrieval.errors import ConfigError
from clip_retrieval.server.messages import Header, HttpError, Request, Response

LARGEST_FRONT = 64 << 20  # bytes of all its files
INDEX = "index.html"
OURS = Path(__file__).parents[1] / "pages" / "front"  # built from front/ by `make front`


@dataclass(frozen=True)
class File:
    body: bytes
    media_type: bytes
    tag: bytes
    packed: bytes | None = None  # gzip, if that is smaller


def read_front(folder: Path) -> dict[str, File]:
    """Return the files below a folder by their relative paths, without hidden files and links that lead outside."""
    if not (folder / INDEX).is_file():
        raise ConfigError(f"{folder} holds no {INDEX}; name the folder that a front was built into")
    root, files, total = folder.resolve(), {}, 0
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        if not path.is_file() or not path.resolve().is_relative_to(root) or any(part[0] == "." for part in name.parts):
            continue
        total += path.stat().st_size
        if total > LARGEST_FRONT:
            raise ConfigError(f"{folder} has more than {LARGEST_FRONT >> 20} MiB; is it a front?")
        files[name.as_posix()] = read_file(path)
    return files


def read_file(path: Path) -> File:
    body = path.read_bytes()
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    is_text = kind.startswith("text/") or kind in ("application/javascript", "application/json")
    media_type = f"{kind}; charset=utf-8" if is_text else kind
    packed = gzip.compress(body, mtime=0) if is_text or kind == "image/svg+xml" else body
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'.encode()
    return File(body, media_type.encode(), tag, packed if len(packed) < len(body) else None)


def serve_file(files: dict[str, File], request: Request) -> Response:
    """Return a file of the front. Raises HttpError 404."""
    file = files.get(request.path.lstrip("/") or INDEX)
    if file is None:
        raise HttpError(HTTPStatus.NOT_FOUND, f"there is nothing at {request.path[:200]}")
    is_packed = file.packed is not None and b"gzip" in (request.header(b"accept-encoding") or b"")
    tag = file.tag[:-1] + b'-gzip"' if is_packed else file.tag
    headers: tuple[Header, ...] = ((b"etag", tag), (b"cache-control", b"no-cache"), (b"vary", b"Accept-Encoding"))
    if request.header(b"if-none-match") == tag:
        return Response(b"", file.media_type, HTTPStatus.NOT_MODIFIED, headers)
    if file.packed is not None and is_packed:
        return Response(file.packed, file.media_type, headers=(*headers, (b"content-encoding", b"gzip")))
    return Response(file.body, file.media_type, headers=headers)
