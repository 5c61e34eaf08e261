"""Waiting for the way home to be level: without end, but not silently."""

from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
import trio

from replicator.agent.connections import WaitTimeoutError
from replicator.agent.failover.catching_up import catch_up, held_up
from replicator.agent.state import Connection
from replicator.status import ConnectionStatus, MirrorStatus, TargetDataState, TargetStatus, TransmitMode

LEVEL = ConnectionStatus(
    id=3,
    uuid="c",
    repset="set",
    target="home",
    transmit_mode=TransmitMode.STARTED,
    target_status=TargetStatus.OK,
    target_data_state=TargetDataState.OK,
)


class Connections:
    """`rounds`: what is found at each look. While a mirror runs or is paused a wait ends with its time."""

    def __init__(self, rounds: list[dict[str, object]]) -> None:
        self.rounds = rounds

    async def wait(self, key: str, timeout_s: float | None) -> ConnectionStatus:
        status = self._next()
        if status.mirror_status is MirrorStatus.IDLE:
            await trio.sleep(0.1)
            return status
        assert timeout_s is not None
        await trio.sleep(timeout_s)
        self.rounds.insert(0, self.last)
        raise WaitTimeoutError("behind")

    async def status(self, connection: Connection) -> ConnectionStatus:
        await trio.lowlevel.checkpoint()
        return self._next()

    def _next(self) -> ConnectionStatus:
        self.last = self.rounds.pop(0)
        return msgspec.structs.replace(LEVEL, **self.last)


async def said_of(rounds: list[dict[str, object]]) -> list[str]:
    said: list[str] = []
    connection = cast(Connection, SimpleNamespace(uuid="c"))
    await catch_up(Connections(rounds), connection, said.append)
    assert not rounds
    return said


PAUSED: dict[str, object] = {"mirror_status": MirrorStatus.PAUSED}
REQUIRED: dict[str, object] = {"target_data_state": TargetDataState.MIRROR_REQUIRED}


async def test_what_a_person_has_to_do_is_said_once_each(autojump_clock: trio.testing.MockClock) -> None:
    said = await said_of([PAUSED, PAUSED, PAUSED, REQUIRED, REQUIRED, REQUIRED, PAUSED, PAUSED, {}])
    assert [text.partition(": ")[2] for text in said] == [
        "the mirror is paused (dtctl mirror resume 3)",
        "the copy there is in state Mirror Required, and no mirror runs (dtctl mirror start 3)",
        "the mirror is paused (dtctl mirror resume 3)",
    ]


async def test_nothing_is_said_of_one_that_only_begins(autojump_clock: trio.testing.MockClock) -> None:
    assert await said_of([REQUIRED, {"mirror_status": MirrorStatus.MIRRORING}, REQUIRED, {}]) == []


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, ""),
        ({"transmit_mode": TransmitMode.PAUSED}, "transmission is paused (dtctl transmit start 3)"),
        (
            {"transmit_mode": TransmitMode.ERROR},
            "transmission was ended by an error (dtctl transmit start 3)",
        ),
        ({**REQUIRED, "target_status": TargetStatus.NOT_LOADED}, ""),
        ({**REQUIRED, "mirror_status": MirrorStatus.MIRRORING}, ""),
    ],
)
def test_what_holds_it_up(fields: dict[str, object], found: str) -> None:
    assert held_up(msgspec.structs.replace(LEVEL, **fields)).partition("home: ")[2] == found
