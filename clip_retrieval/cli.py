"""The command `clip-retrieval`: its commands, errors as sentences, and how it ends."""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from clip_retrieval.errors import ClipRetrievalError, describe_os_error
from clip_retrieval.option_flags import with_underscores
from clip_retrieval.process.interrupts import STOPPED_CODES, StoppedError, stopping_in_time
from clip_retrieval.process.quick_start import without_garbage
from clip_retrieval.process.standard_streams import (
    flush_streams,
    log_to_stderr,
    open_missing_streams,
    say_error,
    tell_unprinted,
)
from clip_retrieval.version import __version__
from clip_retrieval.words import printable

logger = logging.getLogger(__name__)

# Each command's module below `commands/` and its function there: only the command that runs is imported.
COMMANDS = {
    "back": ("serve", "back"),
    "benchmark": ("tools", "benchmark"),
    "convert": ("models", "convert"),
    "dedup": ("curate", "dedup"),
    "demo": ("tools", "demo"),
    "end2end": ("end2end", "end2end"),
    "export": ("export", "export"),
    "extract": ("tools", "extract"),
    "filter": ("filter", "filter_command"),
    "front": ("serve", "front"),
    "index": ("index", "index"),
    "index_combiner": ("index", "index_combiner"),
    "inference": ("inference", "inference"),
    "inference.slurm_worker": ("inference", "slurm_worker"),
    "inference.worker": ("inference", "inference_worker"),
    "label": ("curate", "label"),
    "map": ("map", "map_command"),
    "mcp": ("mcp", "mcp"),
    "models": ("models", "models"),
    "parquet_to_arrow": ("tools", "parquet_to_arrow"),
    "quantize": ("models", "quantize"),
    "report": ("curate", "report"),
    "search": ("search", "search"),
    "select": ("curate", "select"),
    "similarity": ("tools", "similarity"),
    "status": ("inference", "status"),
    "zsl": ("tools", "zsl"),
}
HELP = ("-h", "--help")
CONTEXT = {"help_option_names": HELP, "max_content_width": 110, "token_normalize_func": with_underscores}


class Cli(click.Group):
    """Turns errors that a user can cause into one sentence and exit code 1; bugs keep their traceback."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, without_separator(args))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with stopping_in_time():
                return super().invoke(ctx)
        except ClipRetrievalError as error:
            raise click.ClickException(printable(str(error))) from error
        except OSError as error:
            logger.debug("%s", error, exc_info=True)
            raise click.ClickException(printable(describe_os_error(error))) from error
        except click.ClickException as error:  # it may repeat a file's name that was taken for an option
            vars(error).update(message=printable(error.message))
            raise
        except KeyboardInterrupt as stop:
            say_error(str(stop) or "stopped")
            ctx.exit(stop.exit_code if isinstance(stop, StoppedError) else StoppedError().exit_code)


class LazyCli(Cli):
    """Imports a command on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name]
        with without_garbage():
            command: click.Command = getattr(importlib.import_module(f"clip_retrieval.commands.{module}"), function)
        return command


def without_separator(args: list[str]) -> list[str]:
    """Return `inference -- --help`, which python-fire took, as `inference --help`."""
    if "--" not in args:
        return args
    at = args.index("--")
    before, after = args[:at], args[at + 1 :]
    return [*before, *after] if after and set(after) <= set(HELP) else args


@click.group(cls=LazyCli, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="clip-retrieval")
@click.option("--verbose", is_flag=True, help="Show more of what happens.")
def cli(*, verbose: bool) -> None:
    """Turn pictures and captions into CLIP embeddings, index them, and find things in them.

    Every option can be written --like_this or --like-this, --with value or --with=value; booleans take
    True or False. The required ones may also be given by position.
    """
    log_to_stderr(logging.DEBUG if verbose else logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
    logging.getLogger("clip_retrieval").setLevel(logging.DEBUG if verbose else logging.INFO)


def main() -> None:
    """Run the command line."""
    open_missing_streams()
    kept: list[object] = []  # outcomes: freeing an index and a model takes 15 ms, and the process is about to end
    code = flush_streams(run_command(kept))
    if code in STOPPED_CODES:
        os._exit(code)  # skips waiting for threads that are still in native code
    if "wandb" in sys.modules:
        sys.exit(code)  # its threads still send
    atexit._run_exitfuncs()
    os._exit(code)  # Python's own end would only free memory: 0.2 s if a model or an index is open


def run_command(kept: list[object] | None = None) -> int:
    """Run the command; return its exit code. Its outcome is added to `kept`, so that nothing frees it."""
    try:
        Path.cwd()
    except FileNotFoundError:
        say_error("Error: the working folder was removed; change into one that exists")
        return 1
    try:
        cli(obj=kept)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except OSError as error:  # a text of click's, such as --help, could not be written
        tell_unprinted(error)
    return 1
