"""Row groups of records: what a run holds does not depend on how many it wrote."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROLLUP = Path("/proc/self/smaps_rollup")
MOST_GROWTH = 12.0  # MB: 3 with mimalloc, 9 with jemalloc; 22 to 30 where Arrow keeps what a group took
PROBE = """
import sys
from pathlib import Path
from clip_retrieval.inference.output.groups import RECORDS_PER_GROUP
from clip_retrieval.inference.output.ledger import LedgerWriter

def held():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024

writer = LedgerWriter(Path(sys.argv[1]))
sizes = [held()]
for number in range(3 * RECORDS_PER_GROUP + 1):
    name = b"%05d/%08d.jpg" % (number // 1000, number)
    state = {"image_file": name, "image_size": 700, "image_stamp": f"{number}.5", "image_digest": bytes(16)}
    writer.add({"row": number, "deleted": False, "key": name, **state})
    if number and number % RECORDS_PER_GROUP == 0:
        sizes.append(held())
writer.finish()
print(*sizes)
"""


@pytest.mark.skipif(not ROLLUP.exists(), reason="the memory of a process is read from Linux's /proc")
def test_memory_of_a_written_group_is_given_back(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROBE, str(tmp_path / "ledger")]
    before, *after = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert max(after) < before + MOST_GROWTH, (before, after)
