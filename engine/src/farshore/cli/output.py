"""What goes to the terminal: tables for people, documents for programs, one line for an error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from farshore.errors import FarshoreError

#: Width of what is not a terminal: a pipe must not cut names.
PIPE_WIDTH: Final = 200


_CONTROLS: Final = {
    code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
}


def plain(text: object) -> str:
    """Return ``text`` without control characters: the name of a machine must not steer the terminal."""
    return str(text).translate(_CONTROLS)


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr; in a pipe it is wide and plain."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    wide = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(stderr=stderr, width=wide, highlight=False, soft_wrap=False)


class Output:
    """Where the commands write.

    With ``as_json`` only :meth:`show` writes to stdout, one JSON document for each command.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    def show(self, document: Any, render: Callable[[], RenderableType | Iterable[RenderableType]]) -> None:
        """Print ``document`` for programs, or what ``render`` returns for people."""
        if self.as_json:
            print(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False))
            return
        made = render()
        out = console()
        if isinstance(made, (list, tuple)):
            for part in made:
                out.print(plain(part) if isinstance(part, str) else part, markup=False)
        else:
            out.print(plain(made) if isinstance(made, str) else made, markup=False)

    def say(self, text: str) -> None:
        """Tell people something in passing; programs are not bothered with it."""
        if not self.as_json:
            console().print(plain(text), markup=False)

    def warn(self, text: str) -> None:
        """Tell of something that needs attention, on stderr."""
        console(stderr=True).print(plain(f"warning: {text}"), style="yellow", markup=False)


def grid(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "", empty: str = "none"
) -> RenderableType:
    """Return a table; ``columns`` that begin with ``>`` are set to the right. ``empty`` stands for no rows at all."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = list(rows)
    if not found:
        return Text(f"{title}: {empty}" if title else empty, style="dim")
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        title=Text(plain(title)) if title else None,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        pad_edge=False,
    )
    for column in columns:
        table.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    for row in found:
        table.add_row(*(cell if isinstance(cell, Text) else Text("" if cell is None else plain(cell)) for cell in row))
    return table


def facts(pairs: Iterable[tuple[str, Any]]) -> RenderableType:
    """Return name and value below each other; values of None are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            table.add_row(name, value if isinstance(value, Text) else Text(plain(value)))
    return table


def error_line(error: FarshoreError) -> str:
    """Return the one line that tells of ``error``: where, what, code, next step."""
    evidence = error.evidence
    place = ""
    if isinstance(evidence.get("line"), int):
        place = f"{evidence.get('file') or 'line'}:{evidence['line']}"
        if isinstance(evidence.get("column"), int):
            place += f":{evidence['column']}"
        place += ": "
    message = error.message
    field = f"{error.field}: " if error.field and not message.startswith(error.field) else ""
    return " ".join(plain(f"{place}{field}{message} [{error.code}] {error.hint}").split())


def fail(error: FarshoreError, *, as_json: bool) -> int:
    """Tell of ``error`` on stderr and return the exit status for it."""
    if as_json:
        document = error.to_dict() | {"exit_status": error.exit_status}
        print(json.dumps(document, sort_keys=True, ensure_ascii=False), file=sys.stderr)
    else:
        from rich.text import Text

        console(stderr=True).print(Text.assemble(("error: ", "bold red"), error_line(error)), soft_wrap=True)
    return error.exit_status
