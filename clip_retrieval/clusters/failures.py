"""Turns the tracebacks of clusters, in Java and Python, into one sentence."""

from __future__ import annotations

import re

from clip_retrieval.errors import ClipRetrievalError, first_line

RAISED = re.compile(r"^(?P<name>[A-Za-z_][\w.]*): (?P<said>\S.*)$", re.MULTILINE)
JAVA_FRAMES = re.compile(r"^\s+at |^Driver stacktrace:", re.MULTILINE)
LAST_TRY = re.compile(
    r"most recent failure: (?:Lost task \S+ in stage \S+ \(TID \d+\) )?(?:\((?P<host>\S+) executor \S+\): )?"
    r"(?:[\w.]+Exception: )?(?P<rest>.*)"
)
ADVICE_OF_SPARK = re.compile(r"\.? Consider setting .*")
OURS = "clip_retrieval.errors."
KILLED = "it was killed, as the system does when memory runs out"
ADVICE = (
    (
        "No module named 'clip_retrieval'",
        "install clip-retrieval on every node; for Spark, name a Python that has it in PYSPARK_PYTHON",
    ),
    ("No module named", "install clip-retrieval with what it needs on every node"),
    ("Can't get attribute", "install the same version of clip-retrieval on every node"),
    ("PYTHON_VERSION_MISMATCH", "name a Python of the same version for the executors in PYSPARK_PYTHON"),
    ("Version mismatch", "install Ray and Python of one version here and on the cluster"),
    ("Cannot run program", "name a Python that every node has in PYSPARK_PYTHON"),
    ("exited unexpectedly", f"{KILLED}: give executors fewer cores or more memory"),
    ("The worker died unexpectedly", f"{KILLED}: have a task take more of a node with --ray_resources"),
    ("low on memory", "have a task take more of a node with --ray_resources"),
    ("ExecutorLostFailure", "the executor was killed, as the system does when memory runs out, or its machine is gone"),
    ("JAVA_GATEWAY_EXITED", "pyspark needs Java 17 or later: install it, or name its folder in JAVA_HOME"),
    ("stopped SparkContext", "no master answers there, or it ended the session"),
)


def explain_failure(error: BaseException) -> str:
    """Return the error that a task raised, with advice for known ones."""
    cause = getattr(error, "cause", None)  # of Ray's error
    java = getattr(error, "java_exception", None)
    if isinstance(cause, ClipRetrievalError):
        return str(cause)
    if isinstance(cause, Exception):
        text, said = str(cause), f"{type(cause).__name__}: {first_line(cause)}"
    else:
        text = str(error) if java is None else str(java.toString())
        said = raised_in_python(text) or last_try(text) or first_line(ValueError(text))
    advice = next((advice for mark, advice in ADVICE if mark in text and advice not in said), "")
    return f"{said.rstrip('.')}; {advice}" if advice else said


def raised_in_python(text: str) -> str:
    """Return the last line of the traceback that a task in Python ended with; empty if there is none."""
    _, mark, traceback = text.partition("Traceback (most recent call last)")
    found = RAISED.findall(JAVA_FRAMES.split(traceback)[0]) if mark else []
    if not found:
        return ""
    name, said = found[-1]
    return str(said) if name.startswith(OURS) else f"{name.rpartition('.')[2]}: {said}"


def last_try(text: str) -> str:
    """Return why the last try of a task failed, if no Python code raised."""
    match = LAST_TRY.search(text)
    if match is None:
        return ""
    place = f"on {match['host']}: " if match["host"] else ""
    return place + ADVICE_OF_SPARK.sub("", match["rest"]).strip()
