"""Whether a group may go home, and what people are told before: pure."""

import msgspec
import pytest
from kit.two_sides import CONNECTION, monitor

from replicator.failover.handback import (
    Behind,
    Home,
    HomeCopy,
    Order,
    Situation,
    Then,
    disagreement,
    preview,
)
from replicator.failovers import Phase

COPY = HomeCopy(
    connection=CONNECTION, repset="data", places=("/srv/data",), prepared=True, exact=True, data_state="OK"
)
HOME = Home(agent="agent-alpha", name="alpha", host="10.0.0.1:1500", epoch=3, follows=True, copies=(COPY,))


def situation(**fields: object) -> Situation:
    found = Situation(
        monitor=monitor(),
        owner="beta",
        order=Order.RESTORE_FIRST,
        home=HOME,
        behind=(Behind(connection=CONNECTION, operations=12, bytes=4096),),
        connections=(CONNECTION,),
    )
    return msgspec.structs.replace(found, **fields)


def home(**fields: object) -> Home:
    return msgspec.structs.replace(HOME, **fields)


def test_what_can_begin() -> None:
    found = preview(situation())
    assert found.refused == ()
    assert found.bytes_behind == 4096
    assert found.state == (
        "beta owns web since epoch 3, and serves",
        "alpha at 10.0.0.1:1500 follows",
        "data in /srv/data lacks 12 operations (4096 bytes)",
    )


def test_in_plain_words() -> None:
    will = preview(situation()).will
    assert will[0] == "bring to alpha what it lacks, while beta serves"
    assert "until here everything can be taken back" in will[3]
    assert will.index("move 10.0.0.5/24 from beta to alpha") == 4
    assert will[-1] == "watch alpha from beta"


def test_failback_first_moves_addresses_before_data() -> None:
    will = preview(situation(order=Order.FAILBACK_FIRST)).will
    assert will.index("move 10.0.0.5/24 from beta to alpha") < will.index("bring to alpha what it lacks")


def test_staying() -> None:
    will = preview(situation(order=Order.STAY)).will
    assert will[-1] == "have alpha watch beta, with the same settings"
    assert preview(situation(order=Order.STAY, then=Then.STOP)).will[-1] == "have nobody watch beta"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"home": Home(unreached="connection refused")}, "alpha does not answer: connection refused"),
        ({"home": home(agent="agent-gamma", name="gamma")}, "gamma is another agent than alpha"),
        ({"home": home(epoch=4)}, "knows of a later owner"),
        ({"home": home(follows=False)}, "has not accepted yet that beta owns web"),
        ({"home": home(copies=())}, "alpha has nothing of connection"),
        ({"home": home(copies=(msgspec.structs.replace(COPY, problem="it is full"),))}, "it is full"),
        ({"home": home(copies=(msgspec.structs.replace(COPY, silent=True),))}, "does not answer yet"),
        ({"monitor": msgspec.structs.replace(monitor(), phase=Phase.WATCHING)}, "nothing to hand back"),
    ],
)
def test_what_cannot_begin(fields: dict[str, object], reason: str) -> None:
    found = preview(situation(**fields))
    assert any(reason in text for text in found.refused), found.refused


def test_warnings() -> None:
    found = preview(situation(home=home(bundles=("4f0c19d2a7",)), then=Then.STOP))
    assert any("dtctl divergence show 4f0c19d2a7" in text for text in found.warnings)
    assert any("alpha is not monitored afterwards" in text for text in found.warnings)


HEADS = {"c": {"j": (7, 111)}}


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        ({"c": {"j": (7, 111)}}, ""),
        ({"c": {"j": (7, 111), "other": (1, 1)}}, ""),
        ({}, "the copy of connection c is missing"),
        ({"c": {}}, "ends at operation 7 here, at 0 there"),
        ({"c": {"j": (6, 100)}}, "ends at operation 7 here, at 6 there"),
        ({"c": {"j": (7, 112)}}, "is another one there"),
    ],
)
def test_both_sides_have_to_prove_the_same(held: dict[str, dict[str, tuple[int, int]]], reason: str) -> None:
    found = disagreement(HEADS, held)
    assert (reason in found) if reason else not found


def test_an_empty_journal_agrees_with_a_copy_that_knows_nothing_of_it() -> None:
    assert disagreement({"c": {"j": (0, 0)}}, {"c": {}}) == ""
