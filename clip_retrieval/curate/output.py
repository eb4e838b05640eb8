"""The folder of a result: whether it is ours, what may be replaced in it, and the recipe that makes it again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from clip_retrieval.curate.config import DedupConfig, Form, SelectConfig
from clip_retrieval.curate.embedded import Embedded, identity
from clip_retrieval.curate.workspace import KEY, WORK_FOLDER
from clip_retrieval.errors import ConfigError
from clip_retrieval.filter.output import TARS_FOLDER, check_no_data, is_inside
from clip_retrieval.filter.sheet import SHEET
from clip_retrieval.layout import COLUMNS_FOLDER, MANIFEST, METADATA_FOLDER, SHARD, STALE, STATS_FOLDER, read_manifest
from clip_retrieval.metadata.joined import column_files
from clip_retrieval.options import to_json
from clip_retrieval.storage import PARTIAL_FOLDER, Folder, check_writable
from clip_retrieval.version import __version__

RECIPE, GROUPS = "recipe.json", "groups.parquet"
FAILURES = "failures.parquet"  # rows whose sample could not be copied
IDS, KEPT, UIDS, EMBEDDINGS = "ids.txt", "kept.parquet", "uids.npy", "embeddings"
FILES: dict[Form, str] = {
    "ids": IDS,
    "parquet": KEPT,
    "datacomp": UIDS,
    "webdataset": f"{TARS_FOLDER}/",
    "embeddings": f"{EMBEDDINGS}/",
}
# The files in the folders of FILES, including the columns of `label`: only these are ever removed.
PARTITION = r"\d+(?:_\d{4})*"
FILES_WITHIN = {
    FILES["webdataset"]: re.compile(r"\d{5,}\.tar"),
    FILES["embeddings"]: re.compile(
        rf"{MANIFEST}|(img|text)_emb/\1_emb_{PARTITION}\.npy|{METADATA_FOLDER}/metadata_{PARTITION}\.parquet"
        rf"|{STATS_FOLDER}/{PARTITION}\.json"
        rf"|{COLUMNS_FOLDER}/[^/]+/({RECIPE}|{STALE}|[^/]+\.parquet)"
    ),
}
COMMAND, OPTIONS, OUTCOME, STATE, FOLDERS = "command", "options", "outcome", "state", "folders"  # keys of a recipe
NO_MATTER = {"embeddings_folder", "against", "output_folder", "overwrite", "max_memory"}  # FOLDERS has the first two
ADVICE = "name another output folder, or give --overwrite to replace it"


@dataclass(frozen=True, kw_only=True)
class FolderResult:
    """What this run or an earlier one wrote into a folder."""

    output_folder: str
    files: list[str]
    notes: list[str]
    is_new: bool = True  # False: an earlier run has written it, and nothing was done

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, outcome: Mapping[str, Any]) -> Self:
        """Return the result that an earlier run wrote down."""
        named = {field.name: outcome[field.name] for field in fields(cls) if field.name in outcome}
        return cls(**{**named, "is_new": False})


@dataclass(frozen=True, eq=False)
class Job:
    """A run of a command, and what it reads."""

    command: str
    config: DedupConfig | SelectConfig
    sources: Sequence[Embedded]

    @property
    def names(self) -> list[str]:
        """Everything that it may write next to its recipe."""
        return names_by(self.command, flat(to_json(self.config)))


def claim_folder(folder: Folder, job: Job) -> dict[str, Any] | None:
    """Check that a result may go into a folder; return the outcome if the same run has finished there already.

    Raises ConfigError if the folder holds anything that this command did not write, or (unless `overwrite`) a result
    of other options or rows, or if one of the folder and the input is inside the other.
    """
    for source in job.sources:
        check_apart(folder, source)
    check_no_data(folder, "the result", ConfigError)
    recipe = folder.read_json(RECIPE) if folder.exists(RECIPE) else None
    if recipe is None:
        check_empty(folder, job.command)
    elif recipe.get(COMMAND) != job.command:
        raise ConfigError(f"{folder.url} holds the result of another command; name another output folder")
    else:
        owned = owned_names(recipe)
        if not job.config.written.overwrite:
            check_same(folder, recipe, job)
            if recipe.get(OUTCOME):
                check_whole(folder, owned)
                return dict(recipe[OUTCOME])
        foreign = [name for name in job.names if name not in owned and folder.exists(name.rstrip("/"))]
        if foreign:
            raise ConfigError(
                f"{folder.url} has {foreign[0]}, which no {job.command} wrote; name another output folder"
            )
        check_inside_owned(folder, owned, job.command)
    check_writable(folder)
    return None


@contextmanager
def removed_if_empty(folder: Folder) -> Iterator[None]:
    """Remove a local folder that the block made and, as it failed, left empty."""
    was_there = folder.exists()
    try:
        yield
    except BaseException:
        if folder.is_local and not was_there:
            with suppress(OSError):  # it holds something
                Path(folder.root).rmdir()
        raise


def check_apart(folder: Folder, source: Embedded) -> None:
    """Raise ConfigError if the result would be inside the input, or around it."""
    own = folder.place
    tars = source.column(SHARD).unique().drop_null().to_pylist() if SHARD in source.column_names else []
    inside = [place for place in map(str, tars) if is_inside(place, [f"{own}/{TARS_FOLDER}"])]
    if is_inside(source.folder.place, [own]):
        inside.append(source.folder.place)
    if inside and own != source.folder.place:
        raise ConfigError(f"{inside[0]} is read, and is in the output folder {folder.url}; name another output folder")
    if own != source.folder.place and is_inside(own, [source.folder.place]):
        raise ConfigError(f"{folder.url} is in {source.folder.url}, which is read; name another output folder")


def check_empty(folder: Folder, command: str) -> None:
    """Raise ConfigError if a folder without a recipe holds more than the working files of a stopped run."""
    if not folder.exists():
        return
    is_begun = folder.exists(f"{WORK_FOLDER}/{KEY}")
    foreign = [name for name in folder.names("", "") if not (is_begun and name == WORK_FOLDER)]
    if foreign:
        raise ConfigError(f"{folder.url} has {foreign[0]}, which no {command} wrote; name another output folder")


def owned_names(recipe: Mapping[str, Any]) -> list[str]:
    """Return the names of what the run of a recipe wrote or, if it was stopped, may have written."""
    if recipe.get(OUTCOME):
        there = recipe[OUTCOME].get("files", ())
    else:
        there = names_by(recipe[COMMAND], flat(recipe.get(OPTIONS, {})))
    return [name for name in (GROUPS, SHEET, FAILURES, *FILES.values()) if name in there]


def check_inside_owned(folder: Folder, owned: Sequence[str], command: str) -> None:
    """Raise ConfigError if a folder that would be replaced holds a file that is not ours."""
    for name in owned:
        ours = FILES_WITHIN.get(name)
        if ours is None:
            continue
        start = len(folder.path(name))
        within = sorted(str(entry["name"])[start:] for entry in folder.entries(name.rstrip("/"), below=True))
        within = [file for file in within if not file.startswith(f"{PARTIAL_FOLDER}/")]
        foreign = next((file for file in within if not ours.fullmatch(file)), None)
        if foreign is not None:
            raise ConfigError(
                f"{folder.url} has {name}{foreign}, which no {command} wrote, in what would be replaced; move it away, "
                "or name another output folder"
            )


def names_by(command: str, options: Mapping[str, Any]) -> list[str]:
    groups = [GROUPS] if command == "dedup" else []
    sheet = [SHEET] if options.get("sheet_groups", options.get("sheet_rows")) else []
    failures = [FAILURES] if "webdataset" in options.get("write", ()) else []
    return [*groups, *sheet, *failures, *(FILES[form] for form in options.get("write", ()) if form in FILES)]


def check_same(folder: Folder, recipe: Mapping[str, Any], job: Job) -> None:
    """Raise ConfigError if the recipe is of other options, or of rows that have changed since."""
    now = recipe_of(job, {})
    then_all, now_all = ({**made.get(OPTIONS, {}), FOLDERS: made.get(FOLDERS)} for made in (recipe, now))
    others = compare_options(then_all, now_all)
    if others:
        raise ConfigError(f"{folder.url} holds a result of other options ({'; '.join(others)}); {ADVICE}")
    if recipe.get(STATE) != now[STATE]:
        raise ConfigError(f"{folder.url} holds a result from before its input changed; {ADVICE}")


def compare_options(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words how the options of two runs differ, except options that do not change the result."""
    before, after = flat(then), flat(now)
    names = [name for name in {**after, **before} if name not in NO_MATTER]
    return [
        f"{name}: {as_text(before.get(name))} there, {as_text(after.get(name))} now"
        for name in names
        if before.get(name) != after.get(name)
    ]


def check_whole(folder: Folder, owned: Sequence[str]) -> None:
    lost = next((name for name in owned if not folder.exists(name.rstrip("/"))), None)
    if lost is not None:
        raise ConfigError(f"{folder.url} holds a result whose {lost} is gone; {ADVICE}")


def begin_folder(folder: Folder, job: Job) -> None:
    """Remove the result that is replaced, and write the recipe of the new one; a folder always has a recipe."""
    if folder.exists(RECIPE):
        old = folder.read_json(RECIPE)
        owned = owned_names(old)
        folder.write_json(RECIPE, {**old, OUTCOME: {}})  # a run that is stopped from here on is not a finished one
        for name in owned:
            folder.remove(name.rstrip("/"))
    write_recipe(folder, job, {})


def write_recipe(folder: Folder, job: Job, outcome: Mapping[str, Any]) -> None:
    """Write recipe.json: the options, the input, and the outcome, which is empty while files are written."""
    folder.write_json(RECIPE, recipe_of(job, outcome))


def recipe_of(job: Job, outcome: Mapping[str, Any]) -> dict[str, Any]:
    made = {
        "version": __version__,
        COMMAND: job.command,
        OPTIONS: to_json(job.config),
        FOLDERS: [source.folder.place for source in job.sources],
        STATE: digest_state(job),
        OUTCOME: dict(outcome),
    }
    found: dict[str, Any] = json.loads(json.dumps(made))
    return found


def digest_state(job: Job) -> str:
    """Return what changes when embeddings, metadata, columns or a list of ids do."""
    state: list[Any] = []
    for source in job.sources:
        names = [f"{METADATA_FOLDER}/{name}" for name in source.folder.names(METADATA_FOLDER, "")]
        state.append([identity(source.vectors), *files_of(source.folder, [*names, *column_files(source.folder)])])
    if isinstance(job.config, SelectConfig) and job.config.ids is not None:
        state.append(hashlib.sha256(Path(job.config.ids).read_bytes()).hexdigest())
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]


def files_of(folder: Folder, names: Sequence[str]) -> Iterator[list[Any]]:
    """Yield name, bytes and, if they are local, the time of files."""
    for name in names:
        path = folder.path(name)
        yield [name, int(folder.fs.size(path)), Path(path).stat().st_mtime_ns if folder.is_local else None]


def flat(options: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        found |= flat(value) if isinstance(value, dict) else {name: value}
    return found


def as_text(value: object) -> str:
    return (",".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def about_folder(folder: Folder, row_count: int) -> dict[str, Any]:
    """Return what identifies an embeddings folder."""
    encoder = (read_manifest(folder) or {}).get("encoder") or {}
    return {
        "place": folder.place,
        "rows": row_count,
        "model": encoder.get("clip_model"),
        "model_fingerprint": encoder.get("fingerprint"),
    }
