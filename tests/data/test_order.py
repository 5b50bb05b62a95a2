"""The order of an epoch: every number once, another one each epoch, no list where it is long."""

import numpy as np
import pytest

from diffreg.data import order
from diffreg.data.order import LISTED, shuffled


def test_short_orders_are_those_of_numpy():
    expected = np.random.default_rng([3, 1]).permutation(10).tolist()
    assert [shuffled(3, 1, place, 10) for place in range(10)] == expected


@pytest.mark.parametrize("count", [2, 5, 64, 65, 1000])
def test_long_orders_have_every_number_once(count, monkeypatch):
    monkeypatch.setattr(order, "LISTED", 1)
    orders = [[shuffled(0, epoch, place, count) for place in range(count)] for epoch in (0, 1)]
    assert [sorted(each) for each in orders] == [list(range(count))] * 2
    if count > 5:
        assert orders[0] != orders[1]
        # Numbers that come one after the other are as far apart as of any shuffle, on the whole.
        assert np.abs(np.diff(orders[0])).mean() == pytest.approx(count / 3, rel=0.2)


def test_a_place_of_a_long_order_is_found_at_once():
    drawn = {shuffled(7, 0, place, 10**12) for place in range(2000)}
    assert len(drawn) == 2000 and max(drawn) < 10**12
    assert np.mean(list(drawn)) == pytest.approx(0.5e12, rel=0.05)
    assert LISTED < 10**12
