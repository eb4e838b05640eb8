"""--enable_wandb: figures of a run to Weights & Biases, from a thread: the run never waits for its network."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clip_retrieval.errors import ConfigError, first_line
from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.telemetry.live import Live, View
from clip_retrieval.installed import need
from clip_retrieval.options import to_json

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOGS = 10.0
SECONDS_TO_START = 10
SECONDS_TO_FINISH = 10.0


class WandbThread(threading.Thread):
    """Logs figures of the run until it is stopped. Any error of wandb is a warning."""

    def __init__(self, wandb: Any, live: Live, config: InferenceConfig) -> None:
        super().__init__(daemon=True)
        self.wandb, self.live, self.config = wandb, live, config
        self.stopped = threading.Event()
        self.is_abandoned = False

    def run(self) -> None:
        try:
            self.log()
        except Exception as error:  # wandb may raise anything, and the embeddings matter more  # noqa: BLE001
            if not self.is_abandoned:
                logger.warning("wandb: %s; the run goes on without it", first_line(error))

    def log(self) -> None:
        settings = self.wandb.Settings(console="off", silent=True, init_timeout=SECONDS_TO_START)
        project, config = self.config.telemetry.wandb_project, to_json(self.config)
        run = self.wandb.init(project=project, config=config, settings=settings)
        if run.url:
            logger.info("wandb: %s", run.url)
        while not self.stopped.wait(SECONDS_BETWEEN_LOGS):
            run.log(figures(self.live.look()))
        last = self.live.look()
        run.log(figures(last))
        run.summary.update({f"total/{name}": value for name, value in last.stats.to_json().items()})
        run.finish()


def figures(view: View) -> dict[str, float]:
    """Return what is logged at one moment."""
    shares = {f"share/{name}": value for name, value in view.shares.to_json().items()}
    counts = {"rows": view.rows, "skipped": view.dropped, "partitions_done": view.partitions_done}
    return {"samples_per_second": view.rate, **counts, **shares}


@contextmanager
def log_to_wandb(live: Live, config: InferenceConfig) -> Iterator[None]:
    """Log while the block runs; raises ConfigError if wandb is not installed."""
    need("wandb", "--enable_wandb", ConfigError, extra="wandb")
    wandb = importlib.import_module("wandb")
    thread = WandbThread(wandb, live, config)
    thread.start()
    try:
        yield
    finally:
        thread.stopped.set()
        thread.join(SECONDS_TO_FINISH)
        if thread.is_alive():
            thread.is_abandoned = True
            logger.warning("wandb does not answer: it does not have all figures of this run")
