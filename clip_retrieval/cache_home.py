"""Where this machine keeps what can be made again: converted models, and what `search` knows of folders."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "CLIP_RETRIEVAL_CACHE"


def cache_home() -> Path:
    """Return the folder that CLIP_RETRIEVAL_CACHE names, else clip-retrieval below XDG_CACHE_HOME or ~/.cache."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/clip-retrieval").expanduser()
