"""Reads a plan's YAML so that every error can be shown where it was written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import yaml
from pydantic import ValidationError

from farshore.errors import Invalid
from farshore.model.plan import Plan

#: A plan of 1,000 machines has some 300 KiB; the limit keeps nonsense out of the database.
LARGEST_CHARS: Final = 2 * 1024 * 1024
#: Nodes after expansion of aliases: stops documents that unfold to more than they are.
MOST_NODES: Final = 200_000

Path = tuple[str | int, ...]
Mark = tuple[int, int]

_PREFIX: Final = re.compile(r"^([a-z_]+(?:\[\d+\])?(?:\.[a-z_]+(?:\[\d+\])?)*): ")
_PART: Final = re.compile(r"([a-z_]+)|\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Document:
    """What was written: plain values, and for each path its line and column (from 1)."""

    data: dict[str, Any]
    marks: dict[Path, Mark]

    def mark(self, path: Path) -> Mark | None:
        """Return where ``path``, or the nearest thing around it, is written."""
        for size in range(len(path), -1, -1):
            if path[:size] in self.marks:
                return self.marks[path[:size]]
        return None


def read(text: str) -> Document:
    """Return the document in ``text``.

    Raises:
        Invalid: it is no YAML mapping; line and column are in the evidence.
    """
    if len(text) > LARGEST_CHARS:
        raise Invalid(f"a plan has {LARGEST_CHARS} characters at most", code="plan-invalid", field="source")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _invalid(
            "source", str(error.problem or error.context), (mark.line + 1, mark.column + 1) if mark else None
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise _invalid("source", f"this is no YAML text: {error}", None) from error
    if not isinstance(root, yaml.MappingNode):
        raise _invalid("source", "a plan is a mapping: `name: ...`, `source_site: ...`", (1, 1))
    reader = _Reader()
    data = reader.value(root, (), ())
    return Document(data, reader.marks)


class _Reader:
    """Turns YAML nodes into plain values, one by one, remembering where each was."""

    def __init__(self) -> None:
        self.marks: dict[Path, Mark] = {}
        self._count = 0
        self._scalars = yaml.SafeLoader("")

    def value(self, node: yaml.Node, path: Path, above: tuple[int, ...]) -> Any:
        mark = (node.start_mark.line + 1, node.start_mark.column + 1)
        self.marks.setdefault(path, mark)
        self._count += 1
        if self._count > MOST_NODES or len(above) > 32 or id(node) in above:
            raise _invalid(dotted(path), "the document is nested too deeply or unfolds to too much", mark)
        above = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, above)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index), above) for index, item in enumerate(node.value)]
        try:
            value = self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise _invalid(dotted(path), f"this value cannot be read: {node.value!r}", mark) from error
        # Dates and bytes are no part of a plan: what was written counts.
        return value if value is None or isinstance(value, (str, int, float, bool)) else str(node.value)

    def _mapping(self, node: yaml.MappingNode, path: Path, above: tuple[int, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            mark = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not isinstance(key_node, yaml.ScalarNode):
                raise _invalid(dotted(path), "a key must be a plain word", mark)
            key = str(key_node.value)
            if key in result:
                raise _invalid(dotted((*path, key)), f"the key {key!r} is written twice", mark)
            self.marks[*path, key] = mark
            result[key] = self.value(value_node, (*path, key), above)
        return result


def validate(data: dict[str, Any], document: Document | None = None) -> Plan:
    """Return the plan in ``data``.

    Raises:
        Invalid: code ``plan-invalid``; ``field`` names the first wrong key, ``evidence`` its line and column if
            ``document`` says where things were written, and all problems.
    """
    try:
        return Plan.model_validate(data)
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            message = item["msg"].removeprefix("Value error, ")
            path = _written(data, item["loc"])
            named = _PREFIX.match(message)
            if item["type"] == "value_error" and not path and named:
                path = tuple(word or int(number) for word, number in _PART.findall(named[1]))
                message = message[named.end() :]
            if item["type"] == "missing":
                message = "this key is missing"
            elif item["type"] == "extra_forbidden":
                message = "there is no such key"
            problems.append((path, message))
    # A list whose only item is wrong counts as too short too; the item's own problem says it better.
    problems = [
        (path, text)
        for path, text in problems
        if not any(len(other) > len(path) and other[: len(path)] == path for other, _ in problems)
    ]
    path, message = problems[0]
    listed = [_located(document, path, {"field": dotted(path), "message": text}) for path, text in problems[:20]]
    raise _invalid(dotted(path), message, document.mark(path) if document else None, problems=listed)


def _written(data: Any, location: tuple[int | str, ...]) -> Path:
    """Return the path as it is written: without the tags that the schema's unions add to ``location``."""
    path: list[str | int] = []
    here = data
    for part in location:
        if part == "[key]":
            continue
        if isinstance(here, dict):
            if part not in here and here.get("type") == part:
                continue
            path.append(part)
            here = here.get(part)
        elif isinstance(here, (list, tuple)):
            if not isinstance(part, int):
                continue
            path.append(part)
            here = here[part] if part < len(here) else None
        else:
            break
    return tuple(path)


def _located(document: Document | None, path: Path, problem: dict[str, Any]) -> dict[str, Any]:
    mark = document.mark(path) if document else None
    return {**problem, "line": mark[0], "column": mark[1]} if mark else problem


def dotted(path: Path) -> str:
    """Return ``("machines", 0, "name")`` as ``machines[0].name``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _invalid(field: str, message: str, mark: Mark | None, **evidence: Any) -> Invalid:
    field = field or "definition"
    where = f" (line {mark[0]}, column {mark[1]})" if mark else ""
    if mark:
        evidence = {"line": mark[0], "column": mark[1], **evidence}
    return Invalid(
        f"{field}: {message}{where}",
        code="plan-invalid",
        field=field,
        hint="Correct the plan and apply it again.",
        **evidence,
    )
