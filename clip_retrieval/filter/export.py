"""What is written of the hits: pictures, tars, tables and the sheet, in the order of their dependencies."""

from __future__ import annotations

from collections.abc import Sequence

from clip_retrieval.filter.config import Export, Format
from clip_retrieval.filter.hits import Hits
from clip_retrieval.filter.output import TARS_FOLDER, claim_output
from clip_retrieval.filter.pictures import PictureExport
from clip_retrieval.filter.sheet import SHEET, shown_ranges, write_sheet
from clip_retrieval.filter.tables import TABLES, write_tables
from clip_retrieval.storage import Folder
from clip_retrieval.words import counted

FILES: dict[Format, str] = {"html": SHEET, **TABLES, "webdataset": f"{TARS_FOLDER}/"}


def write_hits(target: Folder, hits: Hits, formats: Sequence[Format], mode: Export) -> list[str]:
    """Write the hits, tables last, since they list problems of pictures and tars; return notes on what differs."""
    has_sheet = "html" in formats
    claim_output(target, hits, mode)
    pictures = PictureExport(target, hits, mode, shown_ranges(hits) if has_sheet else ())
    pictures.run()
    if "webdataset" in formats:
        from clip_retrieval.filter.tars import write_tars

        write_tars(target, hits)
    notes = write_tables(target, hits, formats)
    if has_sheet:
        write_sheet(target, hits, pictures.cards)
    target.remove_leftovers()
    if pictures.copied_instead:
        notes.append(f"{counted(pictures.copied_instead, 'picture')} could not be linked from here and were copied")
    return notes
