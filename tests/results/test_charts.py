"""Charts of a report."""

import pytest

from avarc_cli.results import charts


def test_bins_by_hand():
    binned = charts.bins([0.95, 0.91, 1.0, 0.55], [True, False, True, True])
    assert [(b.low, b.images) for b in binned] == [(0.5, 1), (0.9, 3)]
    assert binned[1].confidence == pytest.approx(2.86 / 3) and binned[1].accuracy == pytest.approx(2 / 3)
