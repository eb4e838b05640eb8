"""Addresses of parts, as users type them."""

from __future__ import annotations

import pytest

from clip_retrieval.errors import ConfigError
from clip_retrieval.options import build_config
from clip_retrieval.server.config import BackConfig
from clip_retrieval.server.named import list_served


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("", "parts is empty"),
        (" ", "parts is empty"),
        (",", "parts is empty"),
        ("http://", "unlike 'http://'"),
        ("http://127.0.0.1:99999", "the port in http://127.0.0.1:99999 must be between 1 and 65535"),
        ("http://a:1,http://b:65536/prefix?index=c", "the port in http://b:65536/"),
        ("http://a:port", "must be between"),
        ("http://[::1]:0", "must be between"),
        (f"http://a:{'9' * 5000}", "must be between"),
    ],
)
def test_an_address_that_cannot_be_is_refused_at_once(typed: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        list_served(build_config(BackConfig, {"parts": typed}, []))

    assert message in str(caught.value)


def test_addresses_are_taken_without_a_slash_at_their_end() -> None:
    typed = "http://a:1/, https://b:65535/prefix?index=c:99999, http://[2001:db8::1], http://a"
    served = list_served(build_config(BackConfig, {"parts": typed}, []))

    assert served[0].parts == ("http://a:1", "https://b:65535/prefix?index=c:99999", "http://[2001:db8::1]", "http://a")
