"""Equipment of this process: opened when a partition needs it, kept if an engine reuses the process."""

from __future__ import annotations

import atexit
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from clip_retrieval.inference.manifest import describe_run
from clip_retrieval.inference.plan import Plan
from clip_retrieval.inference.resume import check_folder, claim_folder, settled_precision
from clip_retrieval.inference.worker.equipment import Equipment, open_equipment
from clip_retrieval.options import to_json


class Shelf:
    """One equipment for each device, for one run at a time; a worker of another run replaces it."""

    def __init__(self) -> None:
        self.is_kept = False  # between calls of run_worker
        self.held: dict[str, tuple[str, ExitStack, Equipment]] = {}

    def take(self, plan: Plan, device: str) -> Equipment:
        """Return the equipment of a plan's options on a device, opened if necessary; then its folder is claimed."""
        key = key_of(plan)
        held = self.held.get(device)
        if held is not None and held[0] == key:
            return held[2]
        self.put_away(device)
        with ExitStack() as stack:
            opened = open_equipment(plan.config, device, plan.source, settled_precision(plan.folder, plan.described))
            equipment = stack.enter_context(opened)
            claim_folder(plan.folder, describe_run(plan.described, equipment.encoder.info, equipment.check))
            self.held[device] = key, stack.pop_all(), equipment
        return equipment

    def has(self, plan: Plan, device: str) -> bool:
        return device in self.held and self.held[device][0] == key_of(plan)

    def put_away(self, device: str) -> None:
        held = self.held.pop(device, None)
        if held is not None:
            held[1].close()

    def close(self) -> None:
        for device in [*self.held]:
            self.put_away(device)


SHELF = Shelf()


def key_of(plan: Plan) -> str:
    return json.dumps([to_json(plan.config), to_json(plan.source.config), plan.described["input"]])


def keep_equipment() -> None:
    """Keep encoders and reader processes open until this process ends, or makes partitions of another run.

    It is for processes that an engine reuses for one task after the other.
    """
    if not SHELF.is_kept:
        SHELF.is_kept = True
        atexit.register(SHELF.close)


class Borrowed:
    """A worker's equipment, opened at the first call."""

    def __init__(self, plan: Plan, device: str, shelf: Shelf) -> None:
        self.plan, self.device, self.shelf = plan, device, shelf

    def open(self) -> Equipment:
        return self.shelf.take(self.plan, self.device)

    def put_away(self) -> None:
        """Close it; the next call opens it again."""
        self.shelf.put_away(self.device)


@contextmanager
def borrowed_equipment(plan: Plan, device: str) -> Iterator[Borrowed]:
    """Yield what opens the equipment; raises ConfigError if the folder holds a run with other options.

    After the block it is closed, unless this process keeps it; after an error it is always closed.
    """
    shelf = SHELF if SHELF.is_kept else Shelf()
    if not shelf.has(plan, device):
        check_folder(plan.folder, plan.described)
    try:
        yield Borrowed(plan, device, shelf)
    except BaseException:
        shelf.put_away(device)
        raise
    finally:
        if not shelf.is_kept:
            shelf.close()
