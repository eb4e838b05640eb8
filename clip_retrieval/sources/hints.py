"""Suggests an --input_format for an input that has no loose pictures."""

from __future__ import annotations

from collections.abc import Iterable

from clip_retrieval.media.places import VIDEO_SUFFIXES

FORMAT_OF_SUFFIX = {
    **dict.fromkeys((".parquet", ".pq", ".parq"), "parquet"),
    ".zip": "archive",
    ".arrow": "datasets",
    **dict.fromkeys(sorted(VIDEO_SUFFIXES), "video"),
    **dict.fromkeys((".csv", ".tsv", ".csv.gz", ".tsv.gz", ".jsonl", ".ndjson"), "urls"),
    **dict.fromkeys((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"), "webdataset"),
}
WORDS = {
    "parquet": "a parquet table (or, if it holds urls, --input_format urls)",
    "archive": "a zip",
    "datasets": "a folder of Hugging Face's datasets",
    "urls": "a table of urls",
    "video": "videos (or, next to pictures, --video_frames rate)",
    "webdataset": "a tar (or, if its pictures are loose, --input_format archive)",
}
PRECEDENCE = ("datasets", "parquet", "webdataset", "archive", "video", "urls")


def hint_of(names: Iterable[str]) -> str:
    """Return advice for an input with files of these names, to be appended to an error; may be empty."""
    formats = {form for name in names for suffix, form in FORMAT_OF_SUFFIX.items() if name.lower().endswith(suffix)}
    form = next((form for form in PRECEDENCE if form in formats), None)
    return "" if form is None else f"; it looks like --input_format {form}, {WORDS[form]}"
