"""Pictures of urls as tars, by the program img2dataset."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

from clip_retrieval.end2end.config import IMAGES, End2EndConfig
from clip_retrieval.errors import ConfigError, SourceError, StorageError
from clip_retrieval.json_files import read_json
from clip_retrieval.storage import Folder

logger = logging.getLogger(__name__)

PROGRAM = "img2dataset"
FINISHED = "finished.json"  # the options, in the folder of the tars, once the program has ended well
PROCESSES, THREADS = 4, 128  # as in clip-retrieval 2
FORMATS = ("parquet", "csv", "tsv", "json", "jsonl", "txt", "csv.gz", "tsv.gz", "txt.gz", "jsonl.gz")


def find_program() -> str:
    """Return img2dataset's path. Raises ConfigError if it is not installed."""
    found = shutil.which(PROGRAM) or shutil.which(PROGRAM, path=str(Path(sys.executable).parent))
    if found is None:
        raise ConfigError(
            f"--downloader {PROGRAM} needs that program on the path: pip install {PROGRAM} (a separate environment is "
            "fine), or leave --downloader out"
        )
    return found


def download(config: End2EndConfig) -> str:
    """Write the pictures into tars with img2dataset, unless that is done; return their folder.

    Raises SourceError if it fails, and ConfigError if the folder has tars of other options. When called again, it goes
    on where it was.
    """
    folder = Path(config.output_folder, IMAGES)
    asked = arguments(config, folder)
    if (folder / FINISHED).exists():
        if read_json(folder / FINISHED, list[str], StorageError) != asked:
            raise ConfigError(
                f"the pictures in {folder} are of another list or other options; name another output_folder"
            )
        logger.info("%s is finished", folder)
        return str(folder)
    program = find_program()
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([program, *asked], check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SourceError(
            f"{PROGRAM} ended with code {done.returncode}; its messages are above; run the same command again to go on "
            "where it was"
        )
    if not any(folder.glob("*.tar")):
        raise SourceError(f"{PROGRAM} wrote no tar into {folder}: it found no picture at the urls of {config.url_list}")
    Folder(str(folder)).write_json(FINISHED, asked)
    return str(folder)


def arguments(config: End2EndConfig, folder: Path) -> list[str]:
    """Return the options that clip-retrieval 2 used, and options that let img2dataset go on where it was."""
    kind = next((kind for kind in sorted(FORMATS, key=len, reverse=True) if config.url_list.endswith(kind)), "parquet")
    captions = [] if kind.startswith("txt") else ["--caption_col", config.caption_column or "TEXT"]
    return [
        "--url_list", config.url_list, "--input_format", kind, "--output_folder", str(folder),
        "--output_format", "webdataset", "--url_col", config.url_column or "URL", *captions,
        "--image_size", str(config.image_size), "--processes_count", str(PROCESSES), "--thread_count", str(THREADS),
        "--incremental_mode", "incremental",
    ]  # fmt: skip
