"""What a target tells its source: the settings that it watches it by, and what if the two disagree."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from replicator import limits
from replicator.agent.core import Core
from replicator.agent.failover.calls import Calls
from replicator.agent.failover.grants import Grants
from replicator.agent.failover.groups import Groups
from replicator.agent.failover.guards import Watch, Watched
from replicator.agent.state import State
from replicator.errors import ReplicatorError, UnreachableError
from replicator.failovers import Monitor, MonitorSettings, Phase
from replicator.paths import Home

GROUP = "11111111-1111-4111-8111-111111111111"


class Target:
    """`source_terms`: number of the settings that its source goes by: as guards do, the highest."""

    def __init__(self, path: Path, *, terms: int, source_terms: int) -> None:
        self.now_s = 0.0
        self.source_terms = source_terms
        self.is_away = False
        self.said: list[Watch] = []
        monitor = Monitor(uuid=GROUP, name="web", settings=MonitorSettings(source_host="a"), terms=terms)
        self.core = SimpleNamespace(
            home=Home(str(path)),
            identity=SimpleNamespace(uuid="beta", name="beta"),
            listen=SimpleNamespace(port=1500),
            state=State(monitors=(monitor,)),
            save=self._save,
        )
        calls = Calls(cast(Any, None))
        calls.ask = self._ask  # type: ignore[method-assign,assignment]
        copies: Any = SimpleNamespace(of=self._copies)
        self.groups = Groups(cast(Core, self.core))
        self.grants = Grants(
            cast(Core, self.core), calls, self.groups, copies, lambda group: None, lambda: self.now_s
        )

    async def _save(self, **fields: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.core.state = msgspec.structs.replace(self.core.state, **fields)

    async def _copies(self, monitor: Monitor) -> tuple[()]:
        await trio.lowlevel.checkpoint()
        return ()

    async def _ask(self, address: object, action: str, group: str, body: Watch, answer: type) -> Watched:
        await trio.lowlevel.checkpoint()
        self.said.append(body)
        if self.is_away:
            raise UnreachableError("away")
        self.source_terms = max(self.source_terms, body.terms)
        return Watched(agent_uuid="alpha", agent_name="alpha", terms=self.source_terms)

    async def tell(self) -> None:
        await self.grants.tell(self.groups.find("web"))


async def test_what_was_said_is_said_again_after_a_while(tmp_path: Path) -> None:
    """A request of before that was held up may have come after it."""
    target = Target(tmp_path, terms=1, source_terms=0)
    target.is_away = True
    with pytest.raises(UnreachableError):
        await target.tell()
    target.is_away = False
    for _ in range(3):
        await target.tell()
    assert len(target.said) == 2  # the one that failed, and one more
    target.now_s = limits.GUARD_TELL_AGAIN_S
    await target.tell()
    await target.tell()
    assert len(target.said) == 3


async def test_settings_from_a_backup_count_again(tmp_path: Path) -> None:
    target = Target(tmp_path, terms=2, source_terms=7)
    await target.tell()
    assert target.groups.find("web").terms == 8
    await target.tell()
    assert target.source_terms == 8


async def test_settings_are_refused_by_what_a_group_has_become_meanwhile(tmp_path: Path) -> None:
    """As `dtctl failover edit` checks addresses, which takes its time: a failover may have begun."""
    target = Target(tmp_path, terms=1, source_terms=1)

    def refuse(monitor: Monitor) -> None:
        raise ReplicatorError(str(monitor.phase))

    await target.groups.set_phase(GROUP, Phase.TAKING_OVER)
    with pytest.raises(ReplicatorError, match=Phase.TAKING_OVER):
        await target.groups.change(GROUP, check=refuse, name="other")
    assert target.groups.find("web").name == "web"
