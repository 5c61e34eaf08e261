"""Limits so small that what is rare with real ones happens all the time."""

import pytest
from kit import random_changes

from replicator import limits


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is split or bounded is split and bounded often."""
    monkeypatch.setattr(random_changes, "SIZE_MAX", 400)  # put back afterwards
    monkeypatch.setattr(limits, "PART_BYTES", 1000)
    monkeypatch.setattr(limits, "STEP_FILES", 3)
    monkeypatch.setattr(limits, "PIECES_IN_FLIGHT", 6)
    monkeypatch.setattr(limits, "NAMES_PER_PIECE", 2)
