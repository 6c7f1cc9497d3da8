"""What the tests of pictures share."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """Every figure that gets drawn, to look into."""
    drawn = []
    original = Figure.__init__

    def keep(self, *args, **kwargs) -> None:
        original(self, *args, **kwargs)
        drawn.append(self)

    monkeypatch.setattr(Figure, "__init__", keep)
    return drawn
