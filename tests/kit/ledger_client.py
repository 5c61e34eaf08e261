"""A client of `kit.ledger` that never rests, and notes what it was told is done.

    python -m kit.ledger_client ADDRESS PORT FIRST [PAUSE_S]    # until SIGTERM; each answer is a line:
    <number> <sent> <answered> <host that answered>

Times are seconds of CLOCK_MONOTONIC, which all hosts of a test share; `Acknowledged` reads them. Each number
from FIRST on is asked for once: a request without an answer may or may not have been done.
"""

import http.client
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

TIMEOUT_S = 0.25  # a packet to a host that is gone is lost, and nobody tells
PAUSE_S = 0.005
AFTER_FAILURE_S = 0.02


class Answer(NamedTuple):
    number: int
    sent_s: float
    answered_s: float
    host: str = ""


class Acknowledged:
    """What a client was told, in order."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = answers

    @classmethod
    def of(cls, output: str) -> "Acknowledged":
        """From what a client prints, its last line perhaps not whole."""
        complete = output[: output.rfind("\n") + 1]
        lines = (line.split() for line in complete.splitlines())
        return cls(
            [Answer(int(number), float(sent), float(came), host) for number, sent, came, host in lines]
        )

    def before(self, moment_s: float) -> "Acknowledged":
        """Answers that had come by then."""
        return Acknowledged([answer for answer in self.answers if answer.answered_s < moment_s])

    def by(self, host: str) -> list[Answer]:
        return [answer for answer in self.answers if answer.host == host]

    def first_sent_after(self, moment_s: float) -> Answer | None:
        """Whose request was made after it: who answered it did so after it."""
        return next((answer for answer in self.answers if answer.sent_s > moment_s), None)

    def lost(self, found: Iterable[int]) -> list[Answer]:
        """Acknowledged, and not among those found."""
        there = set(found)
        return [answer for answer in self.answers if answer.number not in there]

    def gaps(self, found: Iterable[int]) -> list[Answer]:
        """Those of the lost of which a later one is there: no state that ever was."""
        lost = self.lost(there := set(found))
        last = max((answer.number for answer in self.answers if answer.number in there), default=0)
        return [answer for answer in lost if answer.number < last]


def overlaps(former: Sequence[Answer], latter: Sequence[Answer]) -> list[Answer]:
    """Answers of a former owner to requests made when the latter had answered one: two masters."""
    begins_s = min((answer.answered_s for answer in latter), default=float("inf"))
    return [answer for answer in former if answer.sent_s > begins_s]


def owners(answers: Iterable[Answer]) -> list[str]:
    """Who accepted what clients wrote, one host after the other; a host twice if another did in between."""
    terms: list[Answer] = []  # the first answer of each
    for answer in sorted(answers, key=lambda answer: answer.answered_s):
        if terms and terms[-1].host == answer.host:
            continue
        # One to a request of before this term may have been accepted in the term before.
        if len(terms) > 1 and terms[-2].host == answer.host and answer.sent_s <= terms[-1].answered_s:
            continue
        terms.append(answer)
    return [answer.host for answer in terms]


def main() -> None:
    address, port, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) - 1
    pause_s = float(sys.argv[4]) if len(sys.argv) > 4 else PAUSE_S
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    while not stopping:
        number += 1
        sent_s = time.monotonic()
        connection = http.client.HTTPConnection(address, port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", f"/{number}")
            response = connection.getresponse()
            host = response.read().decode() if response.status == 200 else ""
        except (OSError, http.client.HTTPException):
            host = ""
        finally:
            connection.close()
        if host:
            os.write(1, f"{number} {sent_s:.6f} {time.monotonic():.6f} {host}\n".encode())
        time.sleep(pause_s if host else max(pause_s, AFTER_FAILURE_S))


if __name__ == "__main__":
    main()
