"""The ledger of a partition: every record comes back, in order, from row groups of a fixed size."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clip_retrieval.inference.output.groups import RECORDS_PER_GROUP
from clip_retrieval.inference.output.ledger import LedgerWriter, read_ledger
from clip_retrieval.metadata import RECORDS_AT_ONCE
from clip_retrieval.storage import Folder


@pytest.mark.parametrize(
    "count", [0, 1, RECORDS_AT_ONCE, RECORDS_PER_GROUP - 1, 2 * RECORDS_PER_GROUP + RECORDS_AT_ONCE + 1]
)
def test_records_come_back_in_order(tmp_path: Path, count: int) -> None:
    writer = LedgerWriter(tmp_path / "ledger.parquet")
    for number in range(count):
        writer.add({"row": number, "deleted": False, "key": b"%d.jpg" % number})
    writer.finish()

    records = list(read_ledger(Folder(str(tmp_path)), "ledger.parquet"))
    assert [record["row"] for record in records] == list(range(count))
    assert [record["key"] for record in records] == [b"%d.jpg" % number for number in range(count)]
    with pq.ParquetFile(tmp_path / "ledger.parquet") as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert sizes == [RECORDS_PER_GROUP] * (count // RECORDS_PER_GROUP) + (
        [count % RECORDS_PER_GROUP] if count % RECORDS_PER_GROUP or not count else []
    )
