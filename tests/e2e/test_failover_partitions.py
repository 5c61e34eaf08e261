"""Hosts that do not hear one another, stand still, or come back at the wrong moment: with a witness there are
never two masters, whoever is cut off from whom.
"""

from pathlib import Path

import pytest
from kit import machine
from kit.failover_lab import FailoverLab, failover_lab
from kit.lab_history import Deed, history
from kit.patience import until

from replicator.failovers import Phase

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout_s(240),
    pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces"),
]

INTERVAL_S = 0.5
STAYS, MOVES = ["source"], ["source", "target"]
LONG_S = 8.0  # several countdowns
HISTORIES: dict[str, tuple[list[Deed], list[list[str]]]] = {
    # Who may have accepted writes in the end, one after the other.
    "source and target apart": (
        [(0, "apart source target"), (LONG_S, "together source target")],
        [STAYS],
    ),
    "target does not hear the source": (
        [(0, "mute source target"), (LONG_S, "unmute source target")],
        [STAYS],
    ),
    "source does not hear the target": (
        [(0, "mute target source"), (LONG_S, "unmute target source")],
        [STAYS],
    ),
    "source cut off": ([(0, "cut source"), (LONG_S, "mend source")], [MOVES]),
    "target cut off": ([(0, "cut target"), (LONG_S, "mend target")], [STAYS]),
    "witness cut off": ([(0, "cut witness"), (LONG_S, "mend witness")], [STAYS]),
    "all apart": (
        [
            (0, "cut source"),
            (0, "cut witness"),
            (LONG_S, "mend source"),
            (LONG_S, "mend witness"),
        ],
        [STAYS],
    ),
    "witness away, then the source is cut off": (
        [(0, "cut witness"), (3, "cut source"), (LONG_S, "mend witness"), (2 * LONG_S, "mend source")],
        [STAYS, MOVES],
    ),
    "source stands still": ([(0, "pause source"), (LONG_S, "resume source")], [MOVES]),
    "source stands still for about a countdown": (
        [(0, "pause source"), (1.6, "resume source")],
        [STAYS, MOVES],
    ),
    "target stands still": ([(0, "pause target"), (LONG_S, "resume target")], [STAYS]),
    "witness stands still while the source is cut off": (
        [(0, "pause witness"), (0, "cut source"), (LONG_S, "resume witness"), (2 * LONG_S, "mend source")],
        [STAYS, MOVES],
    ),
    "target killed while it takes over": (
        [(0, "cut source"), (2.2, "kill-agent target"), (3, "start-agent target"), (LONG_S, "mend source")],
        [STAYS, MOVES],
    ),
    "source is back while the target takes over": (
        [(0, "cut source"), (2.0, "mend source")],
        [STAYS, MOVES],
    ),
    "cut, back, cut": (
        [(0, "cut source"), (1, "mend source"), (2, "cut source"), (LONG_S, "mend source")],
        [STAYS, MOVES],
    ),
}
EVERY_DAY = "source stands still"


def settles(lab: FailoverLab) -> Phase:
    """Everybody hears everybody: one owner, who alone has the address."""

    def settled() -> Phase | None:
        phase = Phase(lab.group["phase"])
        owner = {Phase.ACTIVE: "target", Phase.WATCHING: "source"}.get(phase)
        return phase if owner is not None and lab.holders() == [owner] else None

    found: Phase = until(settled, 60, 0.3)
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.soak] * (name != EVERY_DAY)) for name in HISTORIES]
)
def test_never_two_masters(tmp_path: Path, name: str) -> None:
    deeds, allowed = HISTORIES[name]
    with failover_lab(tmp_path, witness=True) as lab:
        lab.protect()
        lab.monitor(interval_s=INTERVAL_S)
        lab.serve(lab.source)
        with history(lab) as played:
            played.play(deeds)
            phase = settles(lab)
            owners = played.owners()
        print(f"{name}: {' → '.join(owners)}, {phase}; {lab.history()}")
        assert owners in allowed
        assert phase is (Phase.ACTIVE if owners[-1] == "target" else Phase.WATCHING)
