"""Memory of a run's listing and output alone, without readers and model: a million files take minutes.

    python benchmarks/output_memory.py FOLDER

Lists a folder of pictures, and writes a partition with a row for each and a failure for every thousandth. Prints MB of
anonymous memory when that many rows are written, their peak until then, looked at every 2 ms, and CPU seconds.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.manifest import describe_input
from clip_retrieval.inference.output.columns import Columns
from clip_retrieval.inference.output.sink import Sink, open_sink
from clip_retrieval.inference.types import Row
from clip_retrieval.layout import EmbeddingsFolder, Partition
from clip_retrieval.options import build_config
from clip_retrieval.sources import open_source
from clip_retrieval.sources.types import Failure, Inventory, Sample

DIM = 64
BATCH = 256
FAILS_EVERY = 1000
MARKS = (9_984, 10_240, 30_208, 100_096, 300_032, 600_064)
ROLLUP = Path("/proc/self/smaps_rollup")


class Peak:
    """Looks at this process's anonymous memory all the time."""

    def __init__(self) -> None:
        self.most = 0.0
        threading.Thread(target=self.look_on, daemon=True).start()

    def look_on(self) -> None:
        while True:
            self.look()
            time.sleep(0.002)

    def look(self) -> float:
        lines = ROLLUP.read_text(encoding="utf-8").splitlines()
        now = next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024
        self.most = max(self.most, now)
        return now

    def say(self, what: str) -> None:
        print(f"{what:>18} {self.look():5.1f} MB, peak {self.most:5.1f}, {time.process_time():6.1f} CPU s", flush=True)


def row_of(sample: Sample) -> Row:
    row = Row.of(sample)
    row.has_image, row.digests = True, {"image": hashlib.md5(sample.key.encode()).digest()}
    return row


def write(sink: Sink, rows: list[Row], written: int, peak: Peak) -> int:
    sink.add_embeddings("image", np.ones((len(rows), DIM), np.float32))
    sink.add_rows(rows)
    written += len(rows)
    if written in MARKS:
        peak.say(f"{written:,} rows")
    return written


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    peak = Peak()
    peak.say("start")
    with tempfile.TemporaryDirectory() as output:
        config = build_config(
            InferenceConfig, {"input_dataset": sys.argv[1], "output_folder": output, "input_format": "files"}, ()
        )
        source = open_source(config.source, output)
        peak.say("listed")
        count = int(describe_input(source)["units"])
        peak.say("planned")
        assert isinstance(source, Inventory)
        partition, columns = Partition(0, 1, 0, count), Columns(["image_path"], has_fields=False)
        written, rows = 0, list[Row]()
        with open_sink(EmbeddingsFolder(output), partition, {"image": DIM}, columns, source) as sink:
            for number, sample in enumerate(source.read(0, count)):
                if isinstance(sample, Failure):
                    continue
                if number % FAILS_EVERY == FAILS_EVERY - 1:
                    sink.add_failures([Failure(sample.key, "", "image", "decode", "cut off")])
                    continue
                rows.append(row_of(sample))
                if len(rows) == BATCH:
                    written, rows = write(sink, rows, written, peak), []
            written = write(sink, rows, written, peak)
            peak.say(f"{written:,} rows, the last")
        peak.say("published")


if __name__ == "__main__":
    main()
