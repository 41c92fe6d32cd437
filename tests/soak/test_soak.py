"""The soak itself takes half an hour (``make soak``); here: that it would notice."""

from __future__ import annotations

import pytest

from soak import slope_per_h


def test_the_slope_of_what_grows_is_what_it_grows_by_in_an_hour() -> None:
    assert slope_per_h([(0.0, 10.0), (1800.0, 11.0), (3600.0, 12.0)]) == pytest.approx(2.0)
    assert slope_per_h([(0.0, 5.0), (10.0, 5.0), (20.0, 5.0)]) == 0
    jumps = [(float(n), 100 + n % 2 + n / 3600) for n in range(3600)]  # noise does not hide it
    assert slope_per_h(jumps) == pytest.approx(1.0, abs=0.01)


def test_one_moment_has_no_slope() -> None:
    assert slope_per_h([(7.0, 1.0), (7.0, 2.0)]) == 0
