"""Mistakes planted into the decisions of a failover: histories drawn from seeds must find each of them.

Each has the seed of a history that does; `python -m kit.failover_planted` in tests/ looks for them anew.
"""

import pytest
from kit.failover_histories import play
from kit.failover_planted import PLANTED, Planted
from kit.failover_world import Violation

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.plant.__name__)
def test_a_planted_mistake_is_found(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    play(planted.history(planted.seed))  # without it all is well
    planted.plant(monkeypatch)
    with pytest.raises(Violation, match=planted.found_as):
        play(planted.history(planted.seed))
