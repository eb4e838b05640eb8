"""What `convert` and `quantize` made, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from clip_retrieval.commands.reports.console import make_table, open_console, print_table
from clip_retrieval.encoder.base import BOTH_TOWERS

if TYPE_CHECKING:
    from clip_retrieval.encoder.export.compare import Agreement
    from clip_retrieval.encoder.export.convert import Converted
    from clip_retrieval.encoder.export.quantize import Quantized
    from clip_retrieval.tools.model_list import ModelList

MIB = 2**20


def print_converted(result: Converted) -> None:
    console = open_console()
    console.print(f"{result.source} as {result.format} in {result.out}: {result.size_bytes / MIB:,.1f} MiB")
    print_table(agreement_table(result.agreement))
    if len(result.towers) == len(BOTH_TOWERS):
        name = result.out if result.format != "onnx" else f"onnx:{result.out}"
        console.print(f"use it: clip-retrieval similarity PICTURE --text TEXT --clip_model {name}")


def print_quantized(result: Quantized) -> None:
    before, after = result.source_bytes / MIB, result.size_bytes / MIB
    open_console().print(f"{result.type} in {result.out}: {before:,.1f} MiB -> {after:,.1f} MiB")
    print_table(agreement_table(result.agreement))


def agreement_table(agreement: dict[str, Agreement]) -> Table:
    headings = ["encoder", "compared", "least cosine", "mean cosine"]
    table = make_table(headings, title="embeddings compared with the original's")
    for tower, found in agreement.items():
        table.add_row(tower, f"{found.count}", f"{found.least_cosine:.6f}", f"{found.mean_cosine:.6f}")
    return table


def print_models(result: ModelList) -> None:
    """Print the names, and the forms of names that are not listed."""
    console = open_console()
    console.print("OpenAI:   " + "  ".join(result.openai))
    console.print("embedded: " + "  ".join(result.embedded))
    console.print("open_clip, as open_clip:ARCH/TAG:")
    for name, tags in result.open_clip.items():
        console.print(f"  {name}  {', '.join(tags) or '(no published weights)'}")
    console.print(f"a model is {result.forms}")
