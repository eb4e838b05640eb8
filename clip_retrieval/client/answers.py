"""Answers to a client: JSON or an error in a sentence, and when to try again."""

from __future__ import annotations

import logging
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import ModuleType
from typing import Any

from clip_retrieval.client.calls import Call, Settings
from clip_retrieval.errors import ClientError, ConfigError, one_line

logger = logging.getLogger(__name__)

BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
LONGEST_PAUSE = 30.0  # seconds between two tries, unless the server asks for more
LONGEST_ASKED = 120.0  # seconds; a server that asks for more has its answer shown


def load_httpx() -> ModuleType:
    """Return httpx, which takes longer to import than all else here. Raises ConfigError if it is missing."""
    try:
        import httpx
    except ImportError as error:
        raise ConfigError("the client needs httpx: pip install httpx") from error
    return httpx


def find_pause(settings: Settings, answer: Any, tries: int) -> float | None:
    """Return the seconds until the next try; None if this answer or error is final."""
    asked = read_retry_after(answer) if is_passing(answer) else None
    if asked is None or asked > LONGEST_ASKED or tries >= settings.retries:
        return None
    own: float = min(settings.backoff * 2**tries, LONGEST_PAUSE)
    return asked + random.uniform(0.5, 1) * own


def is_passing(answer: Any) -> bool:
    """Say whether a later try may succeed: the server is busy, or hung up."""
    httpx = load_httpx()
    if isinstance(answer, Exception):
        hung_up = isinstance(answer, (httpx.NetworkError, httpx.RemoteProtocolError))
        return hung_up and not isinstance(answer, httpx.ConnectError)
    return answer.status_code in BUSY


def read_retry_after(answer: Any) -> float:
    """Return the seconds that a server asks to wait, in either form of the header; 0 if it says nothing."""
    said = "" if isinstance(answer, Exception) else answer.headers.get("retry-after", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # no date, or one without a time zone
        return 0.0


def read_answer(settings: Settings, call: Call, answer: Any) -> Any:
    """Return the content of an answer. Raises ClientError if it is not what was asked for."""
    place = call.url.partition("?")[0]
    if isinstance(answer, Exception):
        raise ClientError(explain(settings, answer, place)) from answer
    if not answer.is_success:
        raise ClientError(f"{place} answers {answer.status_code}: {read_message(answer)}", answer.status_code)
    if (partial := answer.headers.get("index-partial")) is not None:
        logger.warning("%s answers without some of its rows: %s", place, partial)
    if not call.is_json:
        return answer.content
    try:
        said = answer.json()
    except ValueError as error:
        raise not_ours(answer, place) from error
    listed = said.get(call.part) if call.part is not None and isinstance(said, dict) else said
    if not isinstance(listed, list):
        raise not_ours(answer, place)
    return listed


def not_ours(answer: Any, place: str) -> ClientError:
    kind = answer.headers.get("content-type", "something")
    return ClientError(
        f"{place} answers {kind} that is not what clip-retrieval answers; is this the address of such a server?",
        answer.status_code,
    )


def read_message(answer: Any) -> str:
    """Return a server's description of an error: its message, its redirect, or what its status means."""
    if answer.is_redirect:
        return f"it has moved to {answer.headers.get('location')}; give that address"
    try:
        return one_line(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return one_line(answer.reason_phrase)


def explain(settings: Settings, error: Exception, place: str) -> str:
    """Return a sentence on a request that was not answered."""
    httpx = load_httpx()
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return f"{settings.server} cannot be reached ({one_line(error)}); does `clip-retrieval back` run there?"
    if isinstance(error, httpx.TimeoutException):
        return f"{place} did not answer within {settings.timeout:g} seconds (timeout)"
    return f"{place} cannot be asked: {one_line(error)}"
