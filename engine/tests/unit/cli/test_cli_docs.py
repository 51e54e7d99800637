"""The page about the command line names every command, and none that does not exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import typer
from farshore import errors
from farshore.cli.main import app

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
