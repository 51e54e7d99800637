"""The page about the command line, and what messages advise, name commands that exist; the page names every one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from farshore import errors
from farshore.cli.main import app

SOURCE = Path(errors.__file__).parent
PAGE = Path(__file__).parents[4] / "docs" / "cli.md"


def commands(group: typer.Typer, prefix: str) -> Iterator[str]:
    for command in group.registered_commands:
        assert command.callback is not None
        yield f"{prefix} {command.name or command.callback.__name__.replace('_', '-')}"
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from commands(inner.typer_instance, f"{prefix} {inner.name}")


def test_the_table_of_commands_is_complete():
    named = set(re.findall(r"^\| `(farshore [a-z -]+)` \|", PAGE.read_text(), re.MULTILINE))
    assert named == set(commands(app, "farshore"))


def test_every_exit_status_of_an_error_is_explained():
    explained = {int(status) for status in re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)}
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert {cls.exit_status for cls in classes if issubclass(cls, errors.FarshoreError)} <= explained


def advice() -> Iterator[tuple[str, str]]:
    """Yield each command that a message of ours names in backticks, with the file that does; values are ``X``."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(str(one.value) if isinstance(one, ast.Constant) else "X" for one in parts)
            yield from ((path.name, found) for found in re.findall(r"`(farshore [a-z][^`]*)`", text))


def test_what_messages_advise_can_be_typed():
    wrong = []
    for file, line in advice():
        command: Any = typer.main.get_command(app)
        words = line.replace("...", "X").split()[1:]
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        options = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
        unknown = {word for word in words if word.startswith("-")} - options
        if unknown or (words and hasattr(command, "commands") and "|" not in words[0]):
            wrong.append(f"{file}: {line}")
    assert not wrong
