from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import click
import pytest

from clip_retrieval.cli import cli

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "clip_retrieval"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "clip_retrieval/demo/model/README.md"])


def test_the_command_line_page_is_what_help_says_now() -> None:
    spec = importlib.util.spec_from_file_location("write_cli", ROOT / "docs/write_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.render(), "stale: run `make cli-docs`"


def all_commands() -> dict[str, click.Command]:
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def test_every_command_and_option_has_help() -> None:
    commands = all_commands()
    below = [
        command for group in commands.values() if isinstance(group, click.Group) for command in group.commands.items()
    ]
    for name, command in (*commands.items(), *below):
        assert command.help, name
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help or option.hidden, f"{name} {option.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_the_first_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target} " in readme
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_flags_in_the_readme_exist() -> None:
    commands = re.findall(r"^clip-retrieval (\S+) (.*?)(?<!\\)$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert {name for name, _ in commands} == {
        "back",
        "map",
        "report",
        "dedup",
        "export",
        "label",
        "select",
        "end2end",
        "inference",
        "index",
        "search",
        "filter",
        "similarity",
        "zsl",
        "convert",
        "quantize",
        "extract",
        "benchmark",
        "models",
    }
    for name, line in commands:
        command = all_commands()[name]
        if isinstance(command, click.Group):
            command = command.commands.get(line.split()[0], command)
        known = {spelling for parameter in command.params for spelling in parameter.opts}
        assert set(re.findall(r"--\w+", line)) <= known


def code_blocks_of_the_architecture() -> list[str]:
    return re.findall(r"^```\n(.*?)^```", (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), re.M | re.S)


def rooms_of_the_architecture() -> dict[str, str]:
    """Return {room: what its lines say}; a room that is indented is inside the one above it."""
    rooms: dict[str, str] = {}
    outer = room = ""
    for line in code_blocks_of_the_architecture()[2].splitlines():
        start = re.match(r"( *)([a-z_0-9]+)/ +(?=\S)", line)
        if start is not None:
            outer = outer if start[1] else start[2]
            room = f"{outer}/{start[2]}" if start[1] else outer
        rooms[room] = f"{rooms.get(room, '')} {line[start.end() if start else 0 :].strip()}"
    return rooms


def test_the_rooms_of_the_architecture_are_those_of_the_package() -> None:
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("__init__.py")} - {"."}
    assert set(rooms_of_the_architecture()) == folders


def test_each_module_in_a_room_of_the_architecture_is_a_file_there() -> None:
    for room, text in rooms_of_the_architecture().items():
        for entry in text.split("|"):
            names = entry.partition(":")[0].replace(" over ", ", ").split(",")
            modules = [name.strip() for name in names if re.fullmatch(r"[a-z_]+", name.strip())]
            missing = [name for name in modules if not (PACKAGE / room / f"{name}.py").is_file()]
            assert not missing, f"{room}: {missing}"


def test_the_layers_of_the_architecture_name_every_room_and_module() -> None:
    lines = code_blocks_of_the_architecture()[1].splitlines()
    named = [name for line in lines for name in re.split(r" {2,}", line)[0].split()]
    rooms = [f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")]
    there = rooms + [path.stem for path in PACKAGE.glob("[a-z]*.py")]
    assert sorted(named) == sorted(there)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_python_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", text):
        places = (ROOT / path, PACKAGE / path, PACKAGE / "inference" / path)
        is_there = any(place.exists() for place in places) or ("/" not in path and any(PACKAGE.rglob(path)))
        assert is_there, path


def test_modules_that_the_decisions_name_exist() -> None:
    for page in (ROOT / "docs/decisions").glob("*.md"):
        for name in re.findall(r"python -m (clip_retrieval(?:\.[a-z_]+)+)", page.read_text(encoding="utf-8")):
            assert (ROOT / name.replace(".", "/")).with_suffix(".py").exists(), f"{page.name}: {name}"
