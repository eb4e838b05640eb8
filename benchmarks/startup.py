"""What starting costs: CPU seconds and modules of --help for each command, and of importing what each one runs.

    python benchmarks/startup.py [--runs 5] [--before OLD_CHECKOUT]

Processor time of a fresh process, least of the runs. With --before the runs of both checkouts take turns, and the ratio
now / before is printed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "open_clip", "faiss", "pandas", "pyarrow", "transformers", "numpy")
HELP = """
import contextlib, os
from clip_retrieval.cli import cli
with open(os.devnull, "w") as void, contextlib.redirect_stdout(void):
    cli([*{command!r}.split(), "--help"], standalone_mode=False)
"""
REPORT = f"""
import resource, sys
used = resource.getrusage(resource.RUSAGE_SELF)
own = sum(name.partition(".")[0] == "clip_retrieval" for name in sys.modules)
print(used.ru_utime + used.ru_stime, len(sys.modules), own, *[name for name in {HEAVY!r} if name in sys.modules])
"""
COMMANDS = ("", "inference", "index", "index combine", "filter", "similarity", "models list", "convert")
FACES = ("clip_inference", "clip_index", "clip_filter", "load")
CASES = {
    "import clip_retrieval": "import clip_retrieval",
    "import clip_retrieval.cli": "import clip_retrieval.cli",
    **{f"clip-retrieval {command} --help".replace("  ", " "): HELP.format(command=command) for command in COMMANDS},
    **{f"from clip_retrieval import {name}": f"from clip_retrieval import {name}" for name in FACES},
}


def start(code: str, checkout: Path) -> tuple[float, str, list[str]]:
    """Return CPU seconds, how many modules (all / own) a fresh process loads, and the heavy ones of them."""
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        cwd="/",
    )
    seconds, every, own, *heavy = done.stdout.split()
    return float(seconds), f"{every} / {own}", heavy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--before", type=Path)
    args = parser.parse_args()
    here = Path(__file__).resolve().parent.parent
    print("| what | CPU s before | now | ratio | modules / own before | now | heavy ones now |")
    print("|---|---|---|---|---|---|---|")
    for name, code in CASES.items():
        sides = [args.before.resolve(), here] if args.before else [here]
        runs = [[start(code, side) for side in sides] for _ in range(args.runs)]
        seconds = [min(run[side][0] for run in runs) for side in range(len(sides))]
        modules = [run[1] for run in runs[0]]
        before = (f"{seconds[0]:.2f}", f"{seconds[-1] / seconds[0]:.2f}") if args.before else ("", "")
        heavy = ", ".join(runs[0][-1][2]) or "none"
        figures = (before[0], f"{seconds[-1]:.2f}", before[1], modules[0] if args.before else "", modules[-1])
        print("|", " | ".join((f"`{name}`", *figures, heavy)), "|", flush=True)


if __name__ == "__main__":
    main()
