"""Whether two checkouts write the same bytes: the folders of every command from seeded inputs, file by file.

    python benchmarks/same_bytes.py --before OLD_CHECKOUT --after . [--scratch FOLDER]

Each side runs in SCRATCH/run, with one thread for BLAS and OpenMP, and is moved to SCRATCH/before or SCRATCH/after.
Not compared: measured times, and the list of settings that were among the fastest. Keys that only the new side writes
into a json file are told, and count as equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from same_bytes_input import change_photos, make_inputs, mend_table

TIMED = {
    "start_time",
    "end_time",
    "rate",
    "seconds",
    "ms",
    "avg_search_speed_ms",
    "99p_search_speed_ms",
    "curve",
    "shortfall",
}
ENVIRONMENT = {
    **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")},
    "CLIP_RETRIEVAL_CORES": "1",
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
}
HASH = ("--clip_model", "hash:64?size=224", "--num_prepro_workers", "1")
SEVERAL = ("--enable_metadata", "True", "--output_partition_count", "3")
BOUNDS = ("4G", "900KB", "500KB", "250KB")
MODELS = {"onnx": "model onnx", "open_clip": "model open_clip", "hf": "model hf", "gguf": "model gguf/m.gguf"}


@dataclass(frozen=True)
class Step:
    """One command and the folder that it writes, from a copy of another one where it changes that."""

    output: str
    arguments: tuple[str, ...]
    copy: str | None = None
    before: Callable[[Path], None] | None = None


def embed(output: str, source: str, *options: str, **step: Any) -> Step:
    return Step(output, ("inference", f"in/{source}", output, *options), **step)


def steps() -> Iterator[Step]:
    demo = ("--clip_model", "demo", "--enable_metadata", "True")
    yield embed("files", "photos", *demo)
    yield embed("webdataset", "tars/{000..002}.tar", *HASH, *SEVERAL, "--input_format", "webdataset")
    yield embed("exact", "tars", *HASH, "--input_format", "webdataset", "--decode", "exact", "--require_all", "True")
    yield embed("parquet", "table.parquet", *HASH, *SEVERAL, "--input_format", "parquet")
    yield embed(
        "archive", "archives", *HASH, "--input_format", "archive", "--exif_orientation", "True", "--cache_path", "cache"
    )
    yield embed("datasets", "saved", *HASH, "--enable_metadata", "True", "--input_format", "datasets")
    fetch = ("--input_format", "urls", "--allow_private_addresses", "True", "--fetch_retries", "0")
    yield embed("urls", "urls.csv", *HASH, *SEVERAL, *fetch)
    paths = (*HASH, "--input_format", "parquet")
    yield embed("paths", "paths.parquet", *paths)
    yield embed("retried", "paths.parquet", *paths, "--retry_failed", "True", copy="paths", before=mend_table)
    yield Step("index files", ("index", "files", "index files", "--nb_cores", "1"))
    yield Step("hits", ("filter", "red boat", "hits", "index files", "--num_results", "8"))
    for bound in BOUNDS:
        sizes = ("--max_index_memory_usage", bound, "--nb_cores", "1")
        yield Step(f"index {bound}", ("index", "in/vectors", f"index {bound}", *sizes))
    yield embed("updated", "photos", *demo, "--update", "True", copy="files", before=change_photos)
    update = ("index", "updated", "index updated", "--update", "True", "--nb_cores", "1")
    yield Step("index updated", update, copy="index files")
    yield Step("combined", ("index", "combine", "in/parts", "combined"))
    for form, output in MODELS.items():
        yield Step(output.partition("/")[0], ("convert", "in/model", output, "--to", form))
    yield Step("model int8", ("quantize", MODELS["onnx"], "model int8", "--type", "int8"))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


def write_side(checkout: Path, run: Path, server: ThreadingHTTPServer) -> dict[str, str]:
    """Run every command of a checkout in a fresh folder; return the end of its output where it failed."""
    shutil.rmtree(run, ignore_errors=True)
    make_inputs(run / "in", f"http://127.0.0.1:{server.server_port}")
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(checkout), "CLIP_RETRIEVAL_CACHE": str(run / "cache")}
    failed = {}
    for step in steps():
        if step.copy is not None:
            shutil.copytree(run / step.copy, run / step.output)
        if step.before is not None:
            step.before(run / "in")
        (run / step.output).parent.mkdir(exist_ok=True)
        if step.output == "model gguf":
            (run / step.output).mkdir()
        command = [sys.executable, "-m", "clip_retrieval", *step.arguments]
        done = subprocess.run(command, cwd=run, env=environment, capture_output=True, text=True, check=False)
        print(f"{checkout.name or checkout}: {step.output}: {done.returncode}", file=sys.stderr, flush=True)
        if done.returncode:
            failed[step.output] = f"{done.returncode}: {(done.stderr or done.stdout)[-300:].strip()}"
    return failed


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of what was not measured."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            if key not in TIMED and not key.endswith("_duration"):
                yield from flatten(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


def facts(path: Path) -> dict[str, Any]:
    """Return what a file says: the keys of a json file, the digest of another one."""
    content = path.read_bytes()
    if path.suffix == ".json" and isinstance(value := json.loads(content), dict):
        return dict(flatten(value))
    return {"bytes": hashlib.sha256(content).hexdigest()}


def digest(found: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def explain(before: Path, after: Path) -> str:
    """Say how far two files of other bytes differ."""
    if before.suffix == ".parquet":
        one, other = pq.read_table(before), pq.read_table(after)
        if one.equals(other):
            return "the same table in other bytes"
        if one.column_names != other.column_names or len(one) != len(other):
            return f"{len(one)} rows of {one.column_names}; now {len(other)} of {other.column_names}"
        rows = [pair for pair in zip(one.to_pylist(), other.to_pylist(), strict=True) if pair[0] != pair[1]]
        return f"{len(rows)} of {len(one)} rows: {rows[:1]}" if rows else f"types: {one.schema}; now {other.schema}"
    if before.suffix == ".npy":
        one, other = np.load(before), np.load(after)
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"{one.shape} {one.dtype}; now {other.shape} {other.dtype}"
        apart = np.flatnonzero((one != other).reshape(len(one), -1).any(axis=1))
        return f"{len(apart)} of {len(one)} rows, up to {np.abs(one - other).max()}: {apart[:9].tolist()}"
    return f"{before.stat().st_size} bytes; now {after.stat().st_size}"


def compare(before: Path, after: Path) -> Iterator[tuple[str, str, str, list[str], bool]]:
    """Yield name, both digests, remarks and whether it is a difference, of every file of the two sides."""
    outputs = dict.fromkeys(step.output for step in steps())
    names = dict.fromkeys(
        str(path.relative_to(side))
        for output in outputs
        for side in (before, after)
        for path in sorted((side / output).rglob("*"))
        if path.is_file()
    )
    for name in names:
        paths = before / name, after / name
        if not all(path.exists() for path in paths):
            one, other = ("-" if not path.exists() else digest(facts(path)) for path in paths)
            yield name, one, other, ["only on one side"], True
            continue
        one, other = (facts(path) for path in paths)
        remarks = [f"now has {key}: {other[key]}" for key in other if key not in one]
        changed = [f"{key}: {one[key]!r}; now {other.get(key)!r}" for key in one if one[key] != other.get(key)]
        if "bytes" in one and changed:
            changed = [explain(*paths)]
        yield name, digest(one), digest({key: other.get(key) for key in one}), remarks + changed, bool(changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--after", type=Path, required=True)
    parser.add_argument("--scratch", type=Path, help="where the folders stay; without it they are removed")
    parser.add_argument("--reuse", action="store_true", help="take SCRATCH/before as an earlier run left it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as removed:
        scratch = (args.scratch or Path(removed)).resolve()
        run, kept = scratch / "run", scratch / "before.json"
        earlier = json.loads(kept.read_text()) if args.reuse else {"port": 0}
        server = ThreadingHTTPServer(("127.0.0.1", earlier["port"]), partial(Quiet, directory=run / "in" / "web"))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        failed = {"before": earlier["failed"]} if args.reuse else {}
        for side in ("after",) if args.reuse else ("before", "after"):
            failed[side] = write_side(getattr(args, side).resolve(), run, server)
            shutil.rmtree(scratch / side, ignore_errors=True)
            run.rename(scratch / side)
            kept.write_text(json.dumps({"port": server.server_port, "failed": failed["before"]}))
        server.shutdown()
        count = differences = 0
        for name, one, other, remarks, differs in compare(scratch / "before", scratch / "after"):
            count, differences = count + 1, differences + differs
            print(f"{one:16} {other:16} {'DIFFERS' if differs else 'same':8} {name}")
            for remark in remarks:
                print(f"{'':34} {remark}")
    for output in {*failed["before"], *failed["after"]}:
        print(f"{output} fails: before {failed['before'].get(output)}; after {failed['after'].get(output)}")
    print(f"{count} files, {differences} differ")
    sys.exit(bool(differences or failed["before"] != failed["after"]))


if __name__ == "__main__":
    main()
