"""Runs that are stopped at a chosen step of what they do to a folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from clip_retrieval.storage import Folder

STEPS = ("publish", "move", "remove")


class StoppedError(BaseException):
    """Ends a run like a kill: nothing may catch it."""


@pytest.fixture
def run_until() -> Callable[[int | None, Callable[[], object]], list[str]]:
    """Give a function that runs something up to a step, or wholly with None, and returns the steps that it did."""

    def run(last: int | None, action: Callable[[], object]) -> list[str]:
        steps: list[str] = []

        def counted(name: str) -> Callable[..., Any]:
            real = getattr(Folder, name)

            def step(folder: Folder, *arguments: Any) -> Any:
                if name == "remove" and not folder.exists(*arguments):
                    return None  # no step: there is nothing to remove
                if last is not None and len(steps) >= last:
                    raise StoppedError
                steps.append(name)
                return real(folder, *arguments)

            return step

        with pytest.MonkeyPatch.context() as patch:
            for name in STEPS:
                patch.setattr(Folder, name, counted(name))
            if last is None:
                action()
            else:
                with pytest.raises(StoppedError):
                    action()
        return steps

    return run
