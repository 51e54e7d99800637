"""The arithmetic of what a link can carry."""

import pytest
from benchmarks.ceiling import jain, payload_rate, steady_rate, worst_share


def test_payload_rate_counts_frames_headers_and_time_stamps():
    assert payload_rate(1538 * 8) == pytest.approx(1448)
    assert payload_rate(1538 * 8, time_stamps=False) == pytest.approx(1460)
    assert payload_rate(1e9) / (1 << 20) == pytest.approx(112.23, abs=0.01)


def test_steady_rate_leaves_start_and_end_out():
    samples = [[1.0, 0], [2.0, 20], [3.0, 60], [4.0, 95], [9.0, 100]]
    assert steady_rate(samples) == pytest.approx(75 / 2.0)


def test_steady_rate_lies_between_samples():
    assert steady_rate([[1.0, 10], [2.0, 50], [3.0, 100]]) == pytest.approx(75 / ((2 + 0.9) - 1.25))


@pytest.mark.parametrize("samples", [[], [[1.0, 5]], [[0.0, 0], [1.0, 5]], [[0.0, 0], [1.0, 0], [2.0, 0]]])
def test_too_few_samples_have_no_steady_rate(samples):
    assert steady_rate(samples) is None


@pytest.mark.parametrize(("values", "index"), [([3, 3, 3], 1.0), ([1, 0, 0, 0], 0.25), ([2, 1], 0.9), ([0, 0], 1.0)])
def test_jain(values, index):
    assert jain(values) == pytest.approx(index)


def test_the_worst_span_lies_anywhere():
    even = [[at / 2, at * 50] for at in range(41)]
    assert worst_share(even, 100, 10) == pytest.approx((1.0, 1.0))
    burst = [[at, sent + (30 if at >= 12 else 0)] for at, sent in even]
    assert worst_share(burst, 100, 10) == pytest.approx((1.0, 1.03))
    pause = [[at, sent - (80 if at >= 20 else 0)] for at, sent in even]
    assert worst_share(pause, 100, 10) == pytest.approx((0.92, 1.0))


def test_a_span_longer_than_the_samples_has_no_share():
    with pytest.raises(ValueError, match="too few"):
        worst_share([[0.0, 0], [5.0, 10]], 1, 10)
