"""A leaf file holds what was put into it, however it was put."""

from __future__ import annotations

import tempfile
from pathlib import Path

from doubles.leaf_file import by_leaf
from farshore.journal.leaves import Leaves
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 3)), max_size=12).map(sorted), min_size=1, max_size=5
    )
)
def test_runs_that_are_put_at_once_leave_what_is_between_them(chunks: list[list[tuple[int, int]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        leaves = Leaves(Path(folder) / "leaves")
        model: dict[int, bytes] = {}
        number = 0
        for chunk in chunks:
            runs: list[tuple[int, int]] = []
            for gap, count in chunk:
                first = runs[-1][1] + 1 + gap if runs else gap
                runs.append((first, first + count))
            digests = b""
            for first, stop in runs:
                for index in range(first, stop):
                    number += 1
                    model[index] = number.to_bytes(32, "big")
                    digests += model[index]
            leaves.put_runs(runs, digests)
        found = list(leaves.runs())
        assert [first for first, _ in found] == sorted(first for first, _ in found)
        assert by_leaf(leaves) == model
        leaves.close()
