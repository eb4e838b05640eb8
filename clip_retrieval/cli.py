"""The command `clip-retrieval`: its commands, errors as sentences, and how it ends."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import click

from clip_retrieval.commands.filter import filter_command
from clip_retrieval.commands.index import index, index_combiner
from clip_retrieval.commands.inference import inference, inference_worker
from clip_retrieval.commands.models import convert, models, quantize
from clip_retrieval.commands.tools import benchmark, demo, extract, parquet_to_arrow, similarity, zsl
from clip_retrieval.errors import ClipRetrievalError
from clip_retrieval.option_flags import with_underscores
from clip_retrieval.process.interrupts import STOPPED_CODES, StoppedError, stopping_in_time
from clip_retrieval.version import __version__

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "token_normalize_func": with_underscores}


class Cli(click.Group):
    """Turns errors that a user can cause into one sentence and exit code 1; bugs keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with stopping_in_time():
                return super().invoke(ctx)
        except ClipRetrievalError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt as stop:
            click.echo(str(stop) or "stopped", err=True)
            ctx.exit(stop.exit_code if isinstance(stop, StoppedError) else StoppedError().exit_code)


@click.group(cls=Cli, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="clip-retrieval")
@click.option("--verbose", is_flag=True, help="Show more of what happens.")
def cli(*, verbose: bool) -> None:
    """Turn pictures and captions into CLIP embeddings, index them, and find things in them.

    Every option can be written --like_this or --like-this, --with value or --with=value; booleans take
    True or False. The required ones may also be given by position.
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING, format="%(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    logging.getLogger("clip_retrieval").setLevel(logging.DEBUG if verbose else logging.INFO)


for command in (
    *(inference, inference_worker, index, index_combiner, filter_command, convert, quantize, models),
    *(demo, similarity, zsl, extract, benchmark, parquet_to_arrow),
):
    cli.add_command(command)


def main() -> None:
    """Run the command line."""
    try:
        cli()
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        if not isinstance(code, int) or not (code in STOPPED_CODES or has_only_memory_to_free()):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # all is tidy, and threads that are still in native code are not waited for


def has_only_memory_to_free() -> bool:
    """Say whether Python would take half a second to free what the process's end frees at once, and do nothing else."""
    return "openvino" in sys.modules and "wandb" not in sys.modules
