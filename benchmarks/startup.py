"""How long the command takes to answer --help, and what importing the package loads.

python benchmarks/startup.py [--runs 11]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

HEAVY = ("torch", "open_clip", "faiss", "pandas", "pyarrow", "transformers", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11)
    args = parser.parse_args()
    seconds = []
    for _ in range(args.runs):
        start = time.perf_counter()
        subprocess.run([Path(sys.executable).with_name("clip-retrieval"), "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    print(f"clip-retrieval --help: median {statistics.median(seconds):.3f} s ({min(seconds):.3f}-{max(seconds):.3f})")
    for module in ("clip_retrieval", "clip_retrieval.cli"):
        code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
        loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
        print(f"import {module} loads of {', '.join(HEAVY)}: {', '.join(loaded) or 'none'}")


if __name__ == "__main__":
    main()
