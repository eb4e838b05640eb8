"""The result of `benchmark`: a comparison for people, and as markdown, csv or json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path, PurePath

from clip_retrieval.storage import Folder
from clip_retrieval.tools.benchmark import BenchmarkResult, ClassScore, ModelScore

SHOWN_CLASSES = 40


def headings(result: BenchmarkResult) -> list[str]:
    top = f"acc@{result.top}"
    numbers = ["images/s", "texts/s", "load s", "parameters", "bytes"]
    return ["model", "images", "acc@1", top, "macro acc@1", f"macro {top}", *numbers]


def cells(score: ModelScore) -> list[str]:
    accuracy, speed = score.accuracy, score.speed
    shares = (accuracy.micro_1, accuracy.micro_5, accuracy.macro_1, accuracy.macro_5)
    return [
        score.model,
        str(accuracy.images),
        *(f"{share:.4f}" for share in shares),
        f"{speed.images_per_second:.1f}",
        f"{speed.texts_per_second:.1f}",
        f"{speed.load_seconds:.2f}",
        *("" if number is None else str(number) for number in (score.parameters, score.bytes_on_disk)),
    ]


def class_headings(result: BenchmarkResult) -> list[str]:
    pairs = [f"{name} of {score.model}" for score in result.models for name in ("acc@1", f"acc@{result.top}")]
    return ["class", "images", *pairs]


def class_rows(result: BenchmarkResult) -> list[list[str]]:
    """Return a row for each class, with two shares for each model."""
    by_class: list[tuple[ClassScore, ...]] = list(
        zip(*(score.accuracy.classes for score in result.models), strict=True)
    )
    return [
        [
            found[0].name,
            str(found[0].images),
            *(share(value) for one in found for value in (one.accuracy_1, one.accuracy_5)),
        ]
        for found in by_class
    ]


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def all_notes(result: BenchmarkResult) -> list[str]:
    return [*result.notes, *(f"{score.model}: {note}" for score in result.models for note in score.notes)]


def write_result(result: BenchmarkResult, output: str) -> None:
    """Write the result in the format of the file's suffix; csv has only the comparison."""
    forms: dict[str, Callable[[BenchmarkResult], str]] = {".md": as_markdown, ".csv": as_csv, ".json": as_json}
    text = forms[PurePath(output).suffix.lower()](result)
    with Folder(str(Path(output).parent)).staged(Path(output).name) as staged:
        staged.write_text(text, encoding="utf-8")


def as_json(result: BenchmarkResult) -> str:
    return json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n"


def as_csv(result: BenchmarkResult) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([headings(result), *(cells(score) for score in result.models)])
    return file.getvalue()


def as_markdown(result: BenchmarkResult) -> str:
    """Return the comparison, the classes and the notes as a page."""
    parts = [
        f"# Zero-shot accuracy on {result.folder}",
        markdown_table(headings(result), [cells(score) for score in result.models]),
        markdown_table(class_headings(result), class_rows(result)),
    ]
    remarks = [f"* {note}" for note in all_notes(result)]
    remarks += [f"* not used: {failure.image}: {failure.detail}" for failure in result.failures]
    return "\n\n".join([*parts, *(["\n".join(remarks)] if remarks else [])]) + "\n"


def markdown_table(names: list[str], rows: list[list[str]]) -> str:
    lines = [names, ["---", *("---:" for _ in names[1:])], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
