"""What can happen to hosts that fail over, in an order: a list of deeds with their times, and what must hold
afterwards whatever it was.

    history = History(lab)
    history.play([(0.0, "apart source target"), (4.0, "together source target"), ...])
    history.heal()
    history.check()

On each host that may own the service a client writes to it all the time, and one does from outside. So two
masters are seen, cut off or not: both have accepted a write, and one of them again after the other.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from kit.failover_lab import Client, FailoverLab, Machine
from kit.ledger_client import Answer, owners

Deed = tuple[float, str]
"""Seconds since the history began, and words: a name of `DEEDS`, and the machines it is done to."""


def _by_name(lab: FailoverLab, name: str) -> Machine:
    return next(machine for machine in lab.machines if machine.name == name)


def _block(one: Machine, other: Machine) -> None:
    one.host.block(other.host)


def _unblock(one: Machine, other: Machine) -> None:
    one.host.unblock(other.host)


def _apart(one: Machine, other: Machine) -> None:
    _block(one, other)
    _block(other, one)


def _together(one: Machine, other: Machine) -> None:
    _unblock(one, other)
    _unblock(other, one)


DEEDS: dict[str, Callable[..., object]] = {
    "cut": lambda machine: machine.host.cut(),
    "mend": lambda machine: machine.host.mend(),
    "apart": _apart,
    "together": _together,
    "mute": _block,  # what the first sends to the second is lost
    "unmute": _unblock,
    "pause": lambda machine: machine.pause(),
    "resume": lambda machine: machine.resume(),
    "power-off": lambda machine: machine.lose_power(),
    "boot": lambda machine: machine.boot(),
    "kill-agent": lambda machine: machine.agent.kill(),
    "start-agent": lambda machine: machine.agent.start(),
}


class History:
    """Use `history`."""

    def __init__(self, lab: FailoverLab, clients: Sequence[Client]) -> None:
        self.lab = lab
        self.began_s = time.monotonic()
        self._clients = clients

    def play(self, deeds: Sequence[Deed]) -> None:
        self.began_s = time.monotonic()
        for at_s, words in deeds:
            time.sleep(max(self.began_s + at_s - time.monotonic(), 0))
            name, *machines = words.split()
            DEEDS[name](*(_by_name(self.lab, machine) for machine in machines))

    def answers(self) -> list[Answer]:
        return [answer for client in self._clients for answer in client.told.answers]

    def owners(self) -> list[str]:
        """Who accepted writes, one after the other."""
        return owners(self.answers())


@contextmanager
def history(lab: FailoverLab) -> Iterator[History]:
    with ExitStack() as stack:
        clients = [stack.enter_context(lab.client(machine)) for machine in (None, lab.source, lab.target)]
        clients[0].first_answer(0)
        yield History(lab, clients)
