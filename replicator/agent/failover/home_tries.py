"""Tries of a failback, as home keeps them in mind: what is asked late, of a try that has ended, does nothing.

A request may lie in a socket for as long as its reader stands still, and be read when the owner has long
taken its try back, and begun another one with the same epoch. So each request says of which try it is. A try
is **present** from the first thing on that it does here, until another one is; it **ends** with the first
word that it is taken back: durably, before that is acknowledged. Only the present one can become final.
"""

import os

import msgspec
import trio

from replicator.agent.state import load_document, save_document
from replicator.errors import ReplicatorError
from replicator.paths import Home

_ENDED_KEPT = 16  # an owner begins one try after the other


class Tries(msgspec.Struct, frozen=True, kw_only=True):
    """home/failover/<group>/tries.json. Names; `present` "": there is none."""

    present: str = ""
    ended: tuple[str, ...] = ()


class HomeTries:
    """Of one agent, by group. What keeps something raises StateError if it cannot."""

    def __init__(self, home: Home) -> None:
        self._home = home

    async def begin(self, group: str, attempt: str) -> None:
        """Before anything is done for it. Raises ReplicatorError: it has ended."""
        known = self._of(group)
        if attempt in known.ended:
            raise ReplicatorError("that failback was taken back")
        if known.present != attempt:
            await self._keep(group, msgspec.structs.replace(known, present=attempt))

    def check_present(self, group: str, attempt: str) -> None:
        """Raises ReplicatorError: it is not."""
        if self._of(group).present != attempt:
            raise ReplicatorError("that failback was taken back")

    async def end(self, group: str, attempt: str) -> bool:
        """It is taken back. Returns whether that matters: False if another one is present, which has begun
        when all of this one was undone.
        """
        known = self._of(group)
        if attempt == known.present or attempt not in known.ended:
            present = "" if attempt == known.present else known.present
            await self._keep(group, Tries(present=present, ended=(*known.ended, attempt)[-_ENDED_KEPT:]))
        return self._of(group).present == ""

    def _of(self, group: str) -> Tries:
        return load_document(self._home.tries(group), Tries) or Tries()

    async def _keep(self, group: str, tries: Tries) -> None:
        path = self._home.tries(group)

        def save() -> None:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            save_document(path, tries)

        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(save)
