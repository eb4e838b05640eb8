"""The helper's process: answers questions about files on stdin, one after the other, on stdout."""

from __future__ import annotations

import logging
import os
import pickle
import sys
from collections.abc import Callable
from typing import IO, Any

from clip_retrieval.blobs import LostError
from clip_retrieval.errors import ImageError, one_line
from clip_retrieval.media.frames import find_spans, list_frames
from clip_retrieval.media.pdf import count_pages, picture_of_page
from clip_retrieval.media.scenes import list_changes
from clip_retrieval.media.video import picture_of_frame
from clip_retrieval.process.standard_streams import log_to_stderr, take_stdout
from clip_retrieval.process.subprocesses import end_with_parent

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "count_pages": count_pages,
    "find_spans": find_spans,
    "list_changes": list_changes,
    "list_frames": list_frames,
    "picture_of_frame": picture_of_frame,
    "picture_of_page": picture_of_page,
}


def serve(questions: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until the pipe is closed."""
    while True:
        try:
            name, arguments = pickle.load(questions)
        except EOFError:
            return
        pickle.dump(answer(name, arguments), answers)
        answers.flush()


def answer(name: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "done", FUNCTIONS[name](*arguments)
    except (ImageError, LostError) as error:
        return "failed", (error.reason, str(error))
    except Exception as error:  # a stranger's file may make a library raise anything  # noqa: BLE001
        return "failed", ("unreadable" if isinstance(error, OSError) else "decode", one_line(error))


def main() -> None:
    answers = take_stdout()
    end_with_parent()
    log_to_stderr(logging.WARNING)
    try:
        serve(sys.stdin.buffer, answers)
    except BrokenPipeError:
        os._exit(1)


if __name__ == "__main__":
    main()
