"""The displays of a run: a bar or lines, Prometheus, wandb. The one place that imports what only some runs need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console

from clip_retrieval.inference.config import InferenceConfig
from clip_retrieval.inference.telemetry.bar import log_lines, show_bar
from clip_retrieval.inference.telemetry.live import Live


@contextmanager
def watching(config: InferenceConfig, live: Live) -> Iterator[None]:
    """Show the run on all displays that the options name; raises ConfigError if one is not available."""
    telemetry = config.telemetry
    with ExitStack() as stack:
        if telemetry.metrics_port:
            from clip_retrieval.inference.telemetry.prometheus import serve_metrics

            stack.enter_context(serve_metrics(live, telemetry.metrics_port))
        if telemetry.enable_wandb:
            from clip_retrieval.inference.telemetry.wandb_log import log_to_wandb

            stack.enter_context(log_to_wandb(live, config))
        console = Console(stderr=True)
        stack.enter_context(show_bar(live, console) if console.is_terminal else log_lines(live))
        yield
