"""What tests of pictures share."""

import pytest
from matplotlib.figure import Figure

from neigenmaps.reporting import figures


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that was written, so that a test can read what is on it."""
    seen: list[Figure] = []
    write = figures._write
    monkeypatch.setattr(figures, "_write", lambda figure, path: (seen.append(figure), write(figure, path)))
    return seen
