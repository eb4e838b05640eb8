"""With closed, full or missing standard streams a command loses its messages, never its files."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from clip_retrieval.cli import Cli
from clip_retrieval.process.subprocesses import module_environment

FULL = Path("/dev/full")


@pytest.fixture
def command(tmp_path: Path) -> str:
    """Return a shell command that writes out/0.arrow and prints what it did."""
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"caption": ["a dog"]}), tmp_path / "in" / "0.parquet")
    words = ["-m", "clip_retrieval", "parquet_to_arrow", str(tmp_path / "in"), str(tmp_path / "out"), "caption"]
    return shlex.join([sys.executable, *words])


@pytest.mark.parametrize("level", ["warning", "info"])
def test_log_lines_cannot_talk_to_the_terminal(level: str) -> None:
    code = (
        "import logging\nfrom clip_retrieval.process.standard_streams import log_to_stderr\n"
        f"log_to_stderr(logging.WARNING)\nlogging.getLogger('any').{level}('%s is odd', 'a\x1b]0;b\x07.jpg')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ("a\\x1b]0;b\\x07.jpg is odd\n" if level == "warning" else "")


def run(shell_command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = module_environment()
    return subprocess.run(
        shell_command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not FULL.exists(), reason="/dev/full is Linux's")
def test_a_full_stdout_is_one_sentence_after_the_work_is_done(command: str, tmp_path: Path) -> None:
    done = run(f"{command} > {FULL}", tmp_path)

    sentence = f"Error: the outcome cannot be printed: {os.strerror(errno.ENOSPC)}; make room there\n"
    assert (done.returncode, done.stderr) == (1, sentence)
    assert (tmp_path / "out" / "0.arrow").exists()


def test_closed_streams_are_nobody_who_listens(command: str, tmp_path: Path) -> None:
    done = run(f"{command} 0<&- 1>&- 2>&-", tmp_path)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "out" / "0.arrow").exists()


def test_a_reader_that_leaves_ends_a_command_quietly(command: str, tmp_path: Path) -> None:
    done = run(f"{command} | true", tmp_path)

    assert done.stderr == ""
    assert (tmp_path / "out" / "0.arrow").exists()


def test_a_working_folder_that_was_removed_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    code = "import os; os.chdir('gone'); os.rmdir('../gone'); from clip_retrieval.cli import main; main()"
    done = run(f"{shlex.join([sys.executable, '-c', code])} models", tmp_path)

    sentence = "Error: the working folder was removed; change into one that exists\n"
    assert (done.returncode, done.stderr) == (1, sentence)


def test_files_never_get_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "from clip_retrieval.process.standard_streams import open_missing_streams as fill; fill(); "
        f"import sys; print('kept', file=sys.stderr); open({str(tmp_path / 'number')!r}, 'w').write("
        f"str(open({str(tmp_path / 'other')!r}, 'w').fileno()))"
    )
    run(f"{shlex.join([sys.executable, '-c', code])} 0<&- 1>&- 2>&-", tmp_path)

    assert int((tmp_path / "number").read_text()) > 2


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "emb/a.npy"), "emb/a.npy: Permission denied; make it acc"),
        (OSError(errno.EMFILE, "Too many open files", "a.jpg"), "a.jpg: Too many open files; .* limit with ulimit -n"),
        (OSError(errno.EFBIG, "File too large"), "File too large; the largest size of a file .* see ulimit -f"),
        (OSError("no number at all"), "no number at all"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(error: OSError, sentence: str) -> None:
    @click.group(cls=Cli)
    def group() -> None: ...

    @group.command()
    def refused() -> None:
        raise error

    done = CliRunner().invoke(group, ["refused"])

    assert done.exit_code == 1
    assert done.output.count("\n") == 1
    assert re.match(f"Error: {sentence}", done.output)
