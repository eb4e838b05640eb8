"""Every error a user can cause: one tree, each message says what, where and what to do.

ClipRetrievalError
  ConfigError       an option, or options that do not fit together
  SourceError       the input cannot be read at all, or holds nothing
  ImageError        one picture cannot be used (becomes a row in failures/)
  EncoderError      a model cannot be found, loaded or used
  StorageError      an output cannot be written, a file of ours cannot be read
  WorkerError       a process of ours died
  IndexBuildError   no index can be built
  QueryError        a query cannot be answered
"""

from __future__ import annotations


class ClipRetrievalError(Exception):
    """Base of all errors that are shown as one sentence, without a traceback."""


class ConfigError(ClipRetrievalError):
    """An option is wrong, or options do not fit together."""


class SourceError(ClipRetrievalError):
    """The input cannot be read at all, or holds no sample."""


class ImageError(ClipRetrievalError):
    """One picture cannot be used; `reason` is the word that failures/ counts by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class EncoderError(ClipRetrievalError):
    """A model cannot be found, loaded or used."""


class StorageError(ClipRetrievalError):
    """An output cannot be written, or a file of this project's formats cannot be read."""


class WorkerError(ClipRetrievalError):
    """A reader or worker process died."""


class IndexBuildError(ClipRetrievalError):
    """No index can be built from these vectors within these bounds."""


class QueryError(ClipRetrievalError):
    """A query cannot be answered by this index."""


def first_line(error: BaseException) -> str:
    """Return the first line of a foreign error's message, shortened, to stand in a sentence of ours."""
    lines = str(error).strip().splitlines()
    return lines[0][:600].rstrip(".") if lines else type(error).__name__


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
