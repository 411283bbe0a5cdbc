"""One run for all verbs that read run folders; they copy it before they write."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from watched_run import train_watched  # here, as most verbs need no Lightning

    return train_watched(tmp_path_factory.mktemp("watched"))
