"""In a pipe or file tables keep their numbers; a terminal has the width that it has, and COLUMNS wins."""

import sys

import pytest

from neigenmaps.console import WIDTH_OF_FILES, make_console


def test_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert make_console().width == WIDTH_OF_FILES
    monkeypatch.setenv("COLUMNS", "70")
    assert make_console().width == 70
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: (50, 20))
    assert make_console().width != WIDTH_OF_FILES
