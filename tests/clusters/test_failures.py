"""What an engine says of a failed task becomes one sentence."""

from __future__ import annotations

import pytest

from clip_retrieval.clusters.failures import explain_failure
from clip_retrieval.errors import StorageError

JAVA = """Job aborted due to stage failure: Task 3 in stage 0.0 failed 4 times, most recent failure: Lost task 3.3 in \
stage 0.0 (TID 7) (10.0.0.2 executor 1): {why}
\tat org.apache.spark.api.python.BasePythonRunner.handlePythonException(PythonRunner.scala:572)

Driver stacktrace:
java.lang.Error: Exception: of the driver's own"""
RAISED = """org.apache.spark.api.python.PythonException: Traceback (most recent call last):
  File "/x/worker.py", line 1, in main
    process()
{last}
"""


@pytest.mark.parametrize(
    ("why", "sentence"),
    [
        (RAISED.format(last="clip_retrieval.errors.StorageError: /a: is full"), "/a: is full"),
        (RAISED.format(last="numpy.linalg.LinAlgError: singular"), "LinAlgError: singular"),
        (
            RAISED.format(last="ModuleNotFoundError: No module named 'clip_retrieval'"),
            "ModuleNotFoundError: No module named 'clip_retrieval'; install clip-retrieval on every node",
        ),
        (
            "org.apache.spark.SparkException: Python worker exited unexpectedly (crashed). Consider setting 'spark.x' "
            "configuration to 'true' for the better Python traceback",
            "on 10.0.0.2: Python worker exited unexpectedly (crashed); it was killed, as the system does when memory",
        ),
        ("ExecutorLostFailure (executor 1 exited caused by one of the running tasks)", "its machine is gone"),
        ('java.io.IOException: Cannot run program "/x/python": error=2', "that every node has in PYSPARK_PYTHON"),
    ],
)
def test_a_failed_task_is_one_sentence(why: str, sentence: str) -> None:
    said = explain_failure(RuntimeError(JAVA.format(why=why)))
    assert sentence in said
    assert "\n" not in said
    assert "at org." not in said


class RayTaskError(Exception):
    """As Ray raises it: the traceback of the worker is the text, and what was raised there its cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f'\x1b[36mray::run_task()\x1b[39m (pid=7, ip=10.0.0.2)\n  File "/x.py"\n{cause!r}')
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RayTaskError(StorageError("/a: is full")), "/a: is full"),
        (RayTaskError(ValueError("x is 3")), "ValueError: x is 3"),
        (
            RayTaskError(
                RuntimeError("The remote function failed to import on the worker. No module named 'clip_retrieval'")
            ),
            "install clip-retrieval on every node",
        ),
        (RuntimeError("The worker died unexpectedly while executing this task. Check x.log"), "when memory runs out"),
        (
            RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.50\n    Python: 3.12"),
            "of one version",
        ),
    ],
)
def test_what_ray_says_is_one_sentence(error: Exception, sentence: str) -> None:
    said = explain_failure(error)
    assert sentence in said
    assert "\n" not in said
    assert "ray::" not in said
