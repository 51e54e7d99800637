"""Plots are well-formed, hold what they are given, and keep inside their frame."""

import re
from xml.etree import ElementTree as ET

import pytest
from benchmarks.plots import bars, lines

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg):
    return ET.fromstring(svg)  # noqa: S314 - made a line above


def texts(svg):
    return [node.text for node in parsed(svg).iter(f"{SVG}text")]


def test_lines_have_a_line_and_a_name_for_each_series():
    svg = lines('Title <&">', "unit", ["20", "80"], {"a": [1.0, 2.0], "b": [None, 0.5]}, reference=("top", 2.5))
    root = parsed(svg)
    assert len(list(root.iter(f"{SVG}polyline"))) == 2
    assert len(list(root.iter(f"{SVG}circle"))) == 3
    assert {"a", "b", "20", "80", "top", 'Title <&">'} <= set(texts(svg))


def test_names_at_the_ends_do_not_lie_on_each_other():
    svg = lines("t", "n", ["x", "y"], {str(number): [0.0, 0.0] for number in range(8)})
    root = parsed(svg)
    spots = [
        float(node.get("y"))
        for node in root.iter(f"{SVG}text")
        if node.text in set("01234567") and float(node.get("x")) > 500
    ]
    assert len(spots) == 8
    assert all(after - before >= 14 for before, after in zip(sorted(spots), sorted(spots)[1:], strict=False))
    assert max(spots) <= 400


@pytest.mark.parametrize("value", [0.0, 0.003, 1.0, 99.9, 12345.0])
def test_points_stay_inside(value):
    svg = lines("t", "n", ["x", "y"], {"a": [0.0, value]})
    (points,) = re.findall(r'points="([^"]+)"', svg)
    assert all(56 <= float(pair.split(",")[1]) <= 352 for pair in points.split())


def test_bars_are_as_long_as_their_values():
    svg = bars("t", "n", ["source", "target"], {"one": [1.0, 2.0], "two": [4.0, 0.0]})
    found = [
        float(node.get("width"))
        for node in parsed(svg).iter(f"{SVG}rect")
        if node.get("x") == "150" and node.get("height") == "11"
    ]
    assert found[1] == pytest.approx(2 * found[0], abs=0.2)
    assert found[2] == pytest.approx(4 * found[0], abs=0.2)
    assert {"one", "two", "source", "target"} <= set(texts(svg))
