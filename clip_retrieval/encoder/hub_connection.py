"""Whether Hugging Face's hub can be reached: huggingface_hub tries for minutes, file by file, if it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from clip_retrieval.errors import first_line

# Names of errors of the hub's client, which is requests, httpx or httpx2 by its version, after a connection was made.
CONNECTED = {"ReadTimeout", "ReadError", "WriteTimeout", "WriteError", "RemoteProtocolError"}

obstacles: list[str] = []  # why the hub cannot be reached, in the blocks that are active in any thread


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Have huggingface_hub use its cache, or fail at once, if no connection to the hub can be made."""
    from huggingface_hub import constants

    is_set_offline = constants.HF_HUB_OFFLINE and not obstacles
    obstacle = None
    if not is_set_offline:
        obstacle = obstacles[0] if obstacles else find_obstacle(constants.HF_HUB_ETAG_TIMEOUT)
    if obstacle is None:
        yield
        return
    obstacles.append(obstacle)
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        obstacles.remove(obstacle)
        constants.HF_HUB_OFFLINE = bool(obstacles)


def find_obstacle(seconds: float) -> str | None:
    """Return why no connection to the hub can be made within some seconds; None if it gives any answer."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]  # before 1.0 it is here alone

    if constants.HF_HUB_OFFLINE:
        return "offline mode is enabled by HF_HUB_OFFLINE"
    errors: list[Exception | None] = []

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=seconds)
        except Exception as error:  # of any HTTP client  # noqa: BLE001
            errors.append(error)
        else:
            errors.append(None)

    asking = Thread(target=ask, daemon=True)  # a resolver that does not answer has no time limit
    asking.start()
    asking.join(seconds + 1)
    if not errors:
        return f"{constants.ENDPOINT} does not answer within {seconds:g} seconds"
    error = errors[0]
    if error is None or type(error).__name__ in CONNECTED:
        return None
    return f"no connection to {constants.ENDPOINT}: {first_line(error)}"


def why_not_fetched(error: BaseException) -> str:
    """Return the first line of the hub's error, or in a block of `hub_or_cache` why the hub cannot be reached."""
    return obstacles[0] if obstacles else first_line(error)
