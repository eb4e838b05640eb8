"""Load and frame times of a sheet and a map in headless Chromium: pages.py SHEET.html MAP.html

`--large FOLDER` writes an embeddings folder of 100,000 rows first, whose pictures are those of the demo's embeddings
(`clip-retrieval demo`): pages.py --large FOLDER DEMO_EMBEDDINGS
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from playwright.sync_api import sync_playwright

ROWS, DIM, CENTERS, SPREAD = 100_000, 512, 300, 1.1
FRAMES = 120
MOVES = {
    "sheet": "scrollBy(0, 120)",
    "map": "document.dispatchEvent(new KeyboardEvent('keydown', {key: KEY, bubbles: true}))",
}
MEASURE = """(move) => new Promise((done) => {
  const act = new Function("frame", move), times = [];
  let last = performance.now(), frame = 0;
  const step = (now) => {
    times.push(now - last);
    last = now;
    act(frame);
    if (++frame < FRAMES) requestAnimationFrame(step); else done(times.slice(1));
  };
  requestAnimationFrame(step);
})"""


def write_large(folder: Path, demo: Path) -> None:
    random = np.random.default_rng(0)
    group = random.integers(0, CENTERS, ROWS)
    rows = random.normal(size=(CENTERS, DIM))[group] + random.normal(scale=SPREAD, size=(ROWS, DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    np.save(folder / "img_emb" / "img_emb_0.npy", rows.astype(np.float16))
    known = pq.read_table(demo / "metadata")
    pq.write_table(known.take(pa.array(group * 5 % len(known))), folder / "metadata" / "metadata_0.parquet")


def measure(page: Any, path: Path, kind: str) -> str:
    """Return a line: bytes, load, busy time of the main thread while loading and per frame, and frame times."""
    tools = page.context.new_cdp_session(page)
    tools.send("Performance.enable")

    def busy() -> float:
        metrics = tools.send("Performance.getMetrics")["metrics"]
        return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))

    page.goto(path.resolve().as_uri())
    page.wait_for_selector("li.card" if kind == "sheet" else "canvas[data-frames]")
    page.wait_for_timeout(1500)
    loaded = busy()
    first = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    move = MOVES[kind].replace("KEY", "frame % 2 ? 'ArrowLeft' : 'ArrowRight'")
    times = page.evaluate(MEASURE.replace("FRAMES", str(FRAMES)), move)
    each = (busy() - loaded) / FRAMES * 1000
    ordered = sorted(times)
    return (
        f"{kind}: {path.stat().st_size / 1e6:.1f} MB, first paint {first:.0f} ms, main thread {loaded * 1000:.0f} ms "
        f"while loading and {each:.1f} ms a frame; frames of {statistics.median(times):.1f} ms (median), "
        f"{ordered[int(0.95 * len(ordered))]:.1f} ms (95 %), {ordered[-1]:.1f} ms (longest)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("map", type=Path)
    parser.add_argument("--large", action="store_true", help="write the embeddings FOLDER (first) out of the DEMO's")
    given = parser.parse_args()
    if given.large:
        write_large(given.sheet, given.map)
        return
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for kind in ("sheet", "map"):
            context = browser.new_context(viewport={"width": 1280, "height": 800}, bypass_csp=True)
            print(measure(context.new_page(), getattr(given, kind), kind))
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
