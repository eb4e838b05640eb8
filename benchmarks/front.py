"""What the web page costs: its size, its first picture, and its frames while ten thousand hits scroll past.

    python benchmarks/front.py [--other BUILT_FRONT] [--runs 5]

Needs Chromium and playwright. An index of 10,000 rows is made, with pictures of the demo's gallery; the server is a
process of its own. --other is the build folder of clip-retrieval 2's front: it is served by our server too, and asked
the same. Frames: the window is scrolled by 40, then by 120 pixels in each frame, once all hits are there.
On a machine that is not quiet: chrt -f 50 python benchmarks/front.py
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
from playwright.sync_api import Browser, Page, sync_playwright

from clip_retrieval.demo.run import GALLERY
from clip_retrieval.layout import PICTURES_BELOW
from clip_retrieval.server.static import OURS

ROWS, DIMENSION = 10_000, 16
STEPS = (40, 120)  # pixels a frame: pictures come as they pass; so fast that they wait until it is slower
ENCODER = {"clip_model": "hash:16?size=32", "fingerprint": "hash-16-0", "dimension": DIMENSION, "precision": "fp32"}
FIRST_PICTURE = """() => new Promise((resolve) => {
    const look = () => {
        const inside = (part) => part.shadowRoot ? [part, ...every(part.shadowRoot)] : [part];
        const every = (root) => [...root.querySelectorAll("*")].flatMap(inside);
        const is = (part) => part.tagName === "IMG" && /pictures.*generation|^data:image/.test(part.src);
        const there = every(document).some((part) => is(part) && part.complete && part.naturalWidth > 0);
        if (there) requestAnimationFrame(() => resolve(performance.now()));
        else setTimeout(look, 5);
    };
    look();
})"""
FETCH_ALL = """() => new Promise((resolve) => {
    const down = () => {
        if (document.body) scrollTo(0, document.body.scrollHeight);
        if (/^10,000 hits$/m.test(document.body?.innerText)) resolve(document.body.scrollHeight);
        else setTimeout(down, 50);
    };
    down();
})"""
SCROLL = """([frames, pixels]) => new Promise((resolve) => {
    scrollTo(0, 0);
    const times = [];
    let last = performance.now(), way = 1;
    const step = (now) => {
        times.push(now - last);
        last = now;
        if (scrollY + innerHeight >= document.body.scrollHeight - 2) way = -1;
        scrollBy(0, way * pixels);
        if (times.length < frames) requestAnimationFrame(step); else resolve(times.slice(10));
    };
    requestAnimationFrame(step);
})"""


def make_index(folder: Path) -> Path:
    """Write an index of random rows with the gallery's pictures."""
    with tarfile.open(GALLERY / "00000.tar") as tar:
        tar.extractall(folder / "photos", filter="data")
    pictures = sorted((folder / "photos").glob("*.jpg"))
    vectors = np.random.default_rng(0).standard_normal((ROWS, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = faiss.IndexFlatIP(DIMENSION)
    index.add(vectors)
    place = folder / "index"
    (place / "metadata").mkdir(parents=True)
    faiss.write_index(index, str(place / "image.index"))
    captions = [f"row {row} {pictures[row % len(pictures)].with_suffix('.txt').read_text()}" for row in range(ROWS)]
    paths = [str(pictures[row % len(pictures)]) for row in range(ROWS)]
    pd.DataFrame({"caption": captions, "image_path": paths}).to_parquet(place / "metadata" / "metadata_0.parquet")
    manifest = {"format_version": 1, "encoder": ENCODER, PICTURES_BELOW: [str(folder / "photos")]}
    (place / "manifest.json").write_text(json.dumps(manifest))
    return place


@contextmanager
def serving(index: Path, front: Path) -> Iterator[str]:
    """Yield the address of a server in a process of its own."""
    command = [sys.executable, "-m", "clip_retrieval", "back", str(index), "--port", "0"]
    options = [] if front == OURS else ["--front_folder", str(front)]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            while " answers" not in (line := process.stderr.readline()):
                assert line
            yield line.split()[0]
        finally:
            process.terminate()


def sizes(folder: Path) -> tuple[int, int]:
    """Return the bytes of a front's files as they are and compressed, source maps and licenses left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".map", ".txt")]
    bodies = [path.read_bytes() for path in files]
    return sum(map(len, bodies)), sum(len(gzip.compress(body, mtime=0)) for body in bodies)


def open_page(browser: Browser, url: str) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.set_default_timeout(600_000)
    page.goto(url, wait_until="commit")
    return page


def first_picture(browser: Browser, url: str, runs: int) -> tuple[float, float]:
    """Return the median ms from the start of the navigation to the first picture, and kB that were transferred."""
    found, transferred = [], 0.0
    for _ in range(runs):
        page = open_page(browser, url)
        found.append(page.evaluate(FIRST_PICTURE))
        sent = "performance.getEntriesByType('resource').reduce((sum, part) => sum + part.transferSize, 0) / 1000"
        transferred = page.evaluate(sent)
        page.context.close()
    return statistics.median(found), transferred


def frames(browser: Browser, url: str, pixels: int) -> dict[str, float]:
    """Return frame times in ms, how many were later than at 60 a second, and the main thread's CPU for each."""
    page = open_page(browser, url)
    page.evaluate(FETCH_ALL)
    asked = page.context.new_cdp_session(page)
    asked.send("Performance.setTimeDomain", {"timeDomain": "threadTicks"})  # CPU of the main thread, not wall time
    asked.send("Performance.enable")

    def busy() -> dict[str, Any]:
        return {entry["name"]: entry["value"] for entry in asked.send("Performance.getMetrics")["metrics"]}

    before = busy()
    times = sorted(page.evaluate(SCROLL, [600, pixels]))
    after = busy()
    page.context.close()
    return {
        "median": statistics.median(times),
        "p95": times[int(len(times) * 0.95)],
        "worst": times[-1],
        "% late": 100 * sum(ms > 17.5 for ms in times) / len(times),
        "CPU of the main thread": 1000 * (after["TaskDuration"] - before["TaskDuration"]) / len(times),
        "of which script": 1000 * (after["ScriptDuration"] - before["ScriptDuration"]) / len(times),
        "style and layout": 1000
        * sum(after[name] - before[name] for name in ("RecalcStyleDuration", "LayoutDuration"))
        / len(times),
        "nodes": after["Nodes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    fronts = {"ours": (OURS, "?q=dog")}
    if arguments.other:
        fronts["clip-retrieval 2"] = (arguments.other, "?query=dog&index=index&useMclip=false&back=")
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        index = make_index(Path(name))
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for which, (folder, query) in fronts.items():
            plain, packed = sizes(folder)
            print(f"{which}: {plain / 1000:.1f} kB, {packed / 1000:.1f} kB gzipped")
            with serving(index, folder) as server:
                url = f"{server}/{query}{server if query.endswith('back=') else ''}"
                ms, sent = first_picture(browser, url, arguments.runs)
                print(f"{which}: first picture after {ms:.0f} ms; {sent:.0f} kB transferred by then")
                if folder == OURS:
                    for pixels in STEPS:
                        found = frames(browser, url, pixels)
                        said = ", ".join(f"{key} {value:.1f}" for key, value in found.items())
                        print(f"{which}: {pixels} pixels a frame, frames in ms: {said}")
        browser.close()


if __name__ == "__main__":
    main()
