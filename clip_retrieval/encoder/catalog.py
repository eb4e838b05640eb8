"""The models that open_clip can open by name."""

from __future__ import annotations

import open_clip


def list_open_clip() -> dict[str, list[str]]:
    """Return open_clip's architectures, each with the tags of its published weights; needs no network."""
    return {name: list(open_clip.list_pretrained_tags_by_model(name)) for name in sorted(open_clip.list_models())}
