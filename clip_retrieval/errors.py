"""Every error a user can cause: one tree, each message says what, where and what to do.

ClipRetrievalError
  ConfigError       an option, or options that do not fit together
  SourceError       the input cannot be read, or holds nothing
  ImageError        one picture cannot be used (becomes a row in failures/)
  EncoderError      a model cannot be found, loaded or used
  StorageError      an output cannot be written, a file of ours cannot be read
    BusyError         another process is changing the folder
  WorkerError       a process of ours died
  ClusterError      a cluster cannot be reached, or one of its tasks failed for good
  IndexBuildError   no index can be built
  QueryError        a query cannot be answered
  ExportError       another engine cannot take rows, or returns different ones
  ClientError       a server cannot be reached, or refuses
"""

from __future__ import annotations

import errno
from tokenize import TokenError

DAMAGED_NPY = (ValueError, EOFError, SyntaxError, TokenError)  # what NumPy raises: it parses headers as Python

OS_ADVICE = {
    errno.EMFILE: "a process may have too few files open here; raise the limit with ulimit -n",
    errno.EFBIG: "the largest size of a file is limited here; see ulimit -f",
    errno.ENOSPC: "make room there",
    errno.EACCES: "make it accessible to this user, or name another path",
}


class ClipRetrievalError(Exception):
    """Base of all errors that are shown as one sentence, without a traceback.

    `what` is the sentence without its advice, for callers that follow the advice themselves or know a better one.
    """

    def __init__(self, message: object = "", *, advice: str | None = None) -> None:
        super().__init__(message if advice is None else f"{message}; {advice}")
        self.what = str(message)


class ConfigError(ClipRetrievalError):
    """An option is wrong, or options do not fit together."""


class SourceError(ClipRetrievalError):
    """The input cannot be read, or holds no sample."""


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


class ClusterError(ClipRetrievalError):
    """A cluster cannot be reached, or a task failed there for good."""


class ReplacedError(StorageError):
    """A file was replaced after it was opened."""


class BusyError(StorageError):
    """Another process is changing the folder."""


class IndexBuildError(ClipRetrievalError):
    """No index can be built from these vectors within these bounds."""


class QueryError(ClipRetrievalError):
    """A query cannot be answered by this index."""


class ExportError(ClipRetrievalError):
    """An engine cannot be reached, or cannot take the rows of an export."""


class ClientError(ClipRetrievalError):
    """A server cannot be reached, or refuses; `status` is that of its answer, None without one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message, shortened to fit into our sentence."""
    lines = str(error).strip().splitlines()
    return lines[0][:600].rstrip(".") if lines else type(error).__name__


def one_line(said: object) -> str:
    """Return a library's error or a stranger's text in one line of at most 200 characters; its type if it is empty."""
    return " ".join(str(said).split())[:200] or type(said).__name__


def describe_os_error(error: OSError) -> str:
    """Return a sentence on an OSError: the file, the reason, and what to do."""
    reason = error.strerror or one_line(error)
    subject = f"{error.filename}: " if error.filename else ""
    advice = OS_ADVICE.get(error.errno or 0)
    return f"{subject}{reason}" + (f"; {advice}" if advice else "")
