"""The build options that an index stores; updates and tuning use them as defaults."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from clip_retrieval.errors import ConfigError
from clip_retrieval.index.config import IndexConfig, ScoreConfig, TuningConfig
from clip_retrieval.layout import MANIFEST, IndexFolder, read_manifest
from clip_retrieval.options import Path, assemble, flags_of, parse_value, read_given
from clip_retrieval.revision import settle

logger = logging.getLogger(__name__)

OPTIONS = "options"  # the manifest's key
TARGET = tuple(flag.name for flag in flags_of(TuningConfig))
KIND = ("engine", "index_key")  # one choice: giving either option overrides both kept values
KEPT = tuple(flag.name for flag in flags_of(IndexConfig) if flag.facts.get("kept"))


def read_index_config(values: Mapping[str, object], arguments: Sequence[object] = ()) -> IndexConfig:
    """Return the config of flat keyword values and positional arguments; an update defaults to options of the index.

    Raises ConfigError if they are invalid, alone or together.
    """
    given = read_given(IndexConfig, values, arguments)
    if not given.get(("update",)):
        return assemble(IndexConfig, given)
    folder = IndexFolder(str(given["index_folder",]))
    kept = {path: value for path, value in read_kept(IndexConfig, folder, KEPT).items() if path not in given}
    kind = [(name,) for name in KIND]
    if given.get(("dry_run",)):
        warn_of_kind(kept)
    if given.get(("dry_run",)) or any(path in given for path in kind):
        kept = {path: value for path, value in kept.items() if path not in kind}
    say_kept(kept)
    return assemble(IndexConfig, {**kept, **given})


def read_score_config(values: Mapping[str, object], arguments: Sequence[object] = ()) -> ScoreConfig:
    """Return the config of `index score`; tuning uses the targets of the index as defaults."""
    given = read_given(ScoreConfig, values, arguments)
    if not given.get(("tune",)):
        return assemble(ScoreConfig, given)
    kept = read_kept(ScoreConfig, IndexFolder(str(given["index_folder",])), TARGET)
    return assemble(ScoreConfig, {**kept, **given})


def read_kept(config: type[Any], folder: IndexFolder, names: Sequence[str]) -> dict[Path, object]:
    """Return an index's stored options by path; empty if there is no index, or an older one."""
    if not folder.exists():
        return {}
    settle(folder)
    options = (read_manifest(folder) or {}).get(OPTIONS) or {}
    flags = [flag for flag in flags_of(config) if flag.name in names and flag.name in options]
    try:
        return {flag.path: parse_value(flag, options[flag.name]) for flag in flags}
    except ConfigError as error:
        raise ConfigError(f"{folder.path(MANIFEST)}, options: {error}; build the index again") from error


def kept_options(config: IndexConfig | ScoreConfig, names: Sequence[str] = KEPT) -> dict[str, Any]:
    """Return the config's options to store in the manifest."""
    found = {}
    for flag in flags_of(type(config)):
        if flag.name in names:
            value: Any = config
            for attribute in flag.path:
                value = getattr(value, attribute)
            found[flag.name] = value
    return found


def keep_options(folder: IndexFolder, options: Mapping[str, Any]) -> bool:
    """Update the options in an existing manifest; return whether any differed."""
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    new = with_options(manifest, options)
    if new == manifest:
        return False
    folder.write_json(MANIFEST, new)
    return True


def with_options(manifest: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest with some options changed."""
    return {**manifest, OPTIONS: {**(manifest.get(OPTIONS) or {}), **options}}


def say_kept(kept: Mapping[Path, object]) -> None:
    """Log the index's stored options that differ from the defaults."""
    usual = {flag.path: flag.default for flag in flags_of(IndexConfig)}
    told = [f"--{path[-1]} {value}" for path, value in kept.items() if value != usual[path]]
    if told:
        logger.info("as the index was built: %s", " ".join(told))


def warn_of_kind(kept: Mapping[Path, object]) -> None:
    asked = [kept.get((name,)) for name in KIND]
    if asked[1] is not None or asked[0] == "autofaiss":
        logger.warning("--update keeps to %s; this is what our planner would build", asked[1] or asked[0])
