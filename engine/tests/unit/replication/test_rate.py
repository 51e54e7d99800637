"""How fast something has gone lately."""

import pytest
from farshore.replication.rate import SPAN_S, Rate


def test_the_first_reading_tells_no_rate():
    assert Rate().at(7.0, 500) == 0.0


def test_what_is_long_ago_does_not_count():
    rate = Rate()
    for second in range(20):
        found = rate.at(100.0 + second, 1000 * second if second < 10 else 10_000)
        if 0 < second < 10:
            assert found == pytest.approx(1000)
    assert found == 0.0


def test_readings_that_come_seldom_still_tell_a_rate():
    rate = Rate()
    rate.at(0.0, 0)
    assert rate.at(4 * SPAN_S, 4000) == pytest.approx(1000 / SPAN_S)
    assert rate.at(8 * SPAN_S, 4000 + 400) == pytest.approx(100 / SPAN_S)
