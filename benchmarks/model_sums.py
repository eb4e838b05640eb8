"""What it costs to compare the weights of a converted model with their checksums: first text of a fresh process.

python benchmarks/model_sums.py [MODEL] [--runs 9]

"noted" is the usual opening, "read" the first one of a day, in turns; "cold" has the files' pages dropped before.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CONVERT = "from clip_retrieval import load_encoder\nload_encoder({!r}, workload='bulk').encode_texts(['a dog'])"
FIRST_TEXT = """import time
from clip_retrieval.encoder.load import load_encoder
from clip_retrieval.encoder.config import EncoderConfig
start = time.perf_counter()
encoder = load_encoder(EncoderConfig(clip_model={!r}, device='cpu'), workload='once')
encoder.start_text_side(['a dog'])
encoder.encode_texts(['a dog'])
print(time.perf_counter() - start)"""


def drop_pages(folder: Path) -> None:
    for path in folder.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="random:ViT-B-32")
    parser.add_argument("--runs", type=int, default=9)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "CLIP_RETRIEVAL_CACHE": cache, "CUDA_VISIBLE_DEVICES": ""}

        def run(code: str) -> str:
            done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
            return done.stdout.decode()

        run(CONVERT.format(given.model))
        (folder,) = (Path(cache) / "models").iterdir()
        found: dict[str, list[float]] = {}
        for _ in range(given.runs):
            for is_cold in (False, True):
                for way in ("noted", "read"):
                    if way == "read":
                        shutil.rmtree(Path(cache, "compared"))
                    if is_cold:
                        drop_pages(folder)
                    seconds = float(run(FIRST_TEXT.format(given.model)))
                    found.setdefault(f"{'cold' if is_cold else 'warm'}, {way}", []).append(seconds)
        for name, times in found.items():
            print(f"{name}: {statistics.median(times):.3f} s ({min(times):.3f}-{max(times):.3f})")


if __name__ == "__main__":
    main()
