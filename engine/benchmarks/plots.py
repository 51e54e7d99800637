"""Plots as SVG, by hand: lines over a few named places, and bars. Readable on light and on dark pages. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

_WIDTH: Final = 760
_HEIGHT: Final = 400
_LEFT: Final = 64
_RIGHT: Final = 190
_TOP: Final = 56
_BOTTOM: Final = 48
_LABEL_GAP: Final = 15
#: Okabe and Ito's palette, which people with any kind of colour sight can tell apart, black left out.
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7f7f7f")
_STYLE: Final = (
    "text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-size:15px;font-weight:600}"
    ".note{fill:#57606a}.grid{stroke:#d0d7de;stroke-width:1}.reference{stroke:#57606a;stroke-dasharray:5 4}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.note{fill:#9198a1}.grid{stroke:#3d444d}"
    ".reference{stroke:#9198a1}}"
)


def lines(
    title: str,
    note: str,
    places: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    *,
    reference: tuple[str, float] | None = None,
) -> str:
    """Return a plot with one line for each of ``series``; None leaves a gap.

    Args:
        title: what is shown.
        note: the unit and what else is to be known, under the title.
        places: the names along the horizontal axis.
        series: a value for each of ``places``, by name.
        reference: a name and a value for a dashed line.
    """
    values = [value for row in series.values() for value in row if value is not None]
    top = _ceil([*values, *([reference[1]] if reference else [])])
    width = _WIDTH - _LEFT - _RIGHT
    step = width / max(1, len(places) - 1)
    body = _frame(title, note, top)
    for number, place in enumerate(places):
        body.append(_text(_LEFT + number * step, _HEIGHT - _BOTTOM + 20, place, anchor="middle"))
    if reference:
        y = _y(reference[1], top)
        body.append(f'<line class="reference" x1="{_LEFT}" x2="{_LEFT + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(_text(_LEFT + width, y - 6, reference[0], anchor="end", css="note"))
    ends: list[tuple[float, str, str]] = []
    for number, (name, row) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [(_LEFT + at * step, _y(value, top)) for at, value in enumerate(row) if value is not None]
        if not points:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body.extend(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points)
        ends.append((points[-1][1], name, colour))
    body.extend(_labels(ends))
    return _document(title, body)


def bars(title: str, note: str, series: Sequence[str], rows: Mapping[str, Sequence[float]]) -> str:
    """Return lying bars: for each of ``rows`` one for each of ``series``."""
    values = [value for row in rows.values() for value in row]
    top = _ceil(values)
    left, thick = 150, 13
    height = _TOP + 24 + len(rows) * (thick * len(series) + 12) + 8
    scale = (_WIDTH - left - 70) / top
    body = [_text(16, 26, title, css="title"), _text(16, 44, note, css="note")]
    for number, name in enumerate(series):
        x = left + number * 90
        body.append(f'<rect x="{x}" y="{_TOP}" width="10" height="10" fill="{_COLOURS[number]}"/>')
        body.append(_text(x + 15, _TOP + 9, name))
    y = _TOP + 24.0
    for name, row in rows.items():
        body.append(_text(left - 8, y + thick * len(series) / 2 + 4, name, anchor="end"))
        for number, value in enumerate(row):
            width = value * scale
            body.append(
                f'<rect x="{left}" y="{y:.1f}" width="{width:.1f}" height="{thick - 2}" fill="{_COLOURS[number]}"/>'
            )
            body.append(_text(left + width + 6, y + thick - 3, _number(value)))
            y += thick
        y += 12
    return _document(title, body, height=height)


def _frame(title: str, note: str, top: float) -> list[str]:
    body = [_text(16, 26, title, css="title"), _text(16, 44, note, css="note")]
    for part in range(5):
        value = top * part / 4
        y = _y(value, top)
        body.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        body.append(_text(_LEFT - 8, y + 4, _number(value), anchor="end"))
    return body


def _labels(ends: Sequence[tuple[float, str, str]]) -> list[str]:
    """Return the lines' names at their ends, moved apart where they would lie on each other."""
    placed: list[str] = []
    ordered = sorted(ends)
    free = -math.inf
    spots = []
    for y, name, colour in ordered:
        free = max(y, free + _LABEL_GAP)
        spots.append((free, name, colour))
    over = max(0.0, spots[-1][0] - (_HEIGHT - _BOTTOM)) if spots else 0.0
    for y, name, colour in spots:
        at = y - over
        x = _WIDTH - _RIGHT + 12
        placed.append(f'<rect x="{x}" y="{at - 5:.1f}" width="10" height="10" fill="{colour}"/>')
        placed.append(_text(x + 15, at + 4, name))
    return placed


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _TOP - _BOTTOM - 8)


def _ceil(values: Sequence[float]) -> float:
    """Return a round number that no value exceeds."""
    most = max(values, default=0.0)
    if most <= 0:
        return 1.0
    unit = math.pow(10, math.floor(math.log10(most)))
    return next(unit * factor for factor in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if unit * factor >= most)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 20 or value == int(value) else f"{value:.1f}" if value >= 2 else f"{value:.2f}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", css: str = "") -> str:
    kind = f' class="{css}"' if css else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>'


def _document(title: str, body: Sequence[str], *, height: float = _HEIGHT) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" '
        f'height="{height:.0f}" role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">\n'
        f"<style>{_STYLE}</style>\n" + "\n".join(body) + "\n</svg>\n"
    )
