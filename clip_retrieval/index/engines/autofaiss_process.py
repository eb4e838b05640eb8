"""Runs autofaiss.build_index with the task on stdin; exit code 0 and an infos file only if an index was built."""

from __future__ import annotations

import json
import logging
import sys

from autofaiss import build_index


def main() -> None:
    index, infos = build_index(**json.load(sys.stdin), save_on_disk=True, verbose=logging.INFO)
    if index is None or infos is None:
        sys.exit(3)


if __name__ == "__main__":
    main()
