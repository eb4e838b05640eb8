"""Peak memory of one command: what it holds itself, and that with the files that it maps.

    python benchmarks/peak_memory.py clip-retrieval index combine PARTS OUTPUT

Prints MB of RssAnon, looked at every 5 ms, the kernel's VmHWM, wall and CPU seconds. Processes that the command starts
are not counted.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.005


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    start = time.perf_counter()
    process = subprocess.Popen(sys.argv[1:])
    peaks = {"RssAnon": 0, "VmHWM": 0}
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:  # it ended just now
            break
        for name, peak in peaks.items():
            found = re.search(rf"{name}:\s+(\d+)", status)
            peaks[name] = max(peak, int(found[1]) if found else 0)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    code = process.wait()
    used = os.times()
    print(
        f"{' '.join(f'{name} {peak * 1024 / 1e6:,.0f} MB' for name, peak in peaks.items())} "
        f"{time.perf_counter() - start:.1f} s {used.children_user + used.children_system:.1f} CPU s",
        file=sys.stderr,
    )
    sys.exit(code)


if __name__ == "__main__":
    main()
