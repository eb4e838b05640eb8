"""What was built, for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clip_retrieval.index.build import BuiltIndices


def print_indices(result: BuiltIndices) -> None:
    """Print a row for each index."""
    table = Table(title=Text(f"indices in {result.index_folder} ({result.seconds:.1f} s)"), title_justify="left")
    table.add_column("index")
    for heading in ("vectors", "dim", "size", "ms/query"):
        table.add_column(heading, justify="right")
    table.add_column("kind")
    for modality, info in result.infos.items():
        table.add_row(
            modality,
            f"{info['nb vectors']:,}",
            str(info["vectors dimension"]),
            f"{info['size in bytes'] / 1e6:,.1f} MB",
            f"{info['avg_search_speed_ms']:.2f}",
            info["index_key"],
        )
    Console(highlight=False, markup=False, emoji=False).print(table)
