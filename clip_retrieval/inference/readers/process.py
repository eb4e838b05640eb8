"""A reader process: takes chunks of samples on stdin, decodes and resizes, answers rows on stdout.

Pixels go straight into memory that is shared with the worker. Started by `link.py` as a plain program, so
that it imports neither the caller's main module nor torch.
"""

from __future__ import annotations

import logging
import os
import pickle
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

from clip_retrieval.inference.readers.prepare import Wanted, prepare_chunk
from clip_retrieval.inference.readers.shared_pixels import Note, SharedPixels
from clip_retrieval.process.standard_streams import log_to_stderr, take_stdout
from clip_retrieval.process.subprocesses import end_with_parent
from clip_retrieval.sources.types import Sample

LENGTH = struct.Struct("<Q")


def send(stream: IO[bytes], message: object) -> None:
    payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(LENGTH.pack(len(payload)))
    stream.write(payload)
    stream.flush()


def receive(stream: IO[bytes]) -> Any:
    """Return the next message; raises EOFError when the other side is gone."""
    header = stream.read(LENGTH.size)
    if len(header) < LENGTH.size:
        raise EOFError
    (length,) = LENGTH.unpack(header)
    payload = stream.read(length)
    if len(payload) < length:
        raise EOFError
    return pickle.loads(payload)


def serve(commands: IO[bytes], answers: IO[bytes]) -> None:
    """Prepare chunks until the worker closes the pipe."""
    wanted, path, shape, number = receive(commands)
    if not isinstance(wanted, Wanted):
        raise TypeError(wanted)
    try:
        pixels = SharedPixels.attach(path, shape)
    except FileNotFoundError as error:  # it vanished with the worker
        raise EOFError from error
    note = pixels.note(number)
    send(answers, "ready")
    while True:
        try:
            slot, samples = receive(commands)
        except EOFError:
            return
        rows = prepare_chunk(noting(samples, note), wanted, pixels.slots[slot])
        note.rest()
        send(answers, rows)


def noting(samples: Sequence[Sample], note: Note) -> Iterator[Sample]:
    """Note the sample under way, so that the worker knows which one killed this process."""
    for place, sample in enumerate(samples):
        note.begin(place)
        yield sample


def main() -> None:
    answers = take_stdout()
    end_with_parent()
    log_to_stderr(logging.WARNING)
    try:
        serve(sys.stdin.buffer, answers)
    except (BrokenPipeError, EOFError):
        os._exit(1)  # the worker has ended


if __name__ == "__main__":
    main()
