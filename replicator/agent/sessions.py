"""Who has logged in: tokens that stand for a password for a while. In memory only: a new agent knows none.

Pure: time is an argument, in seconds of any clock that does not jump back.
"""

import hashlib
import secrets
from dataclasses import dataclass

from replicator import limits


@dataclass
class Session:
    """One login. It ends `idle_s` after its last use, and in any case after `limits.SESSION_MAX_S`."""

    user: str
    begun_s: float
    used_s: float


class Sessions:
    def __init__(self, idle_s: float) -> None:
        self._idle_s = idle_s
        # By digest: comparing takes the same time for all, whatever they send.
        self._sessions: dict[bytes, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, user: str, now_s: float) -> str:
        """A new token. A user's oldest ones end when there are too many, then the oldest of all."""
        self._end_old(now_s)
        mine = [key for key, session in self._sessions.items() if session.user == user]
        for key in mine[: max(0, len(mine) - limits.SESSIONS_OF_USER + 1)]:
            del self._sessions[key]
        while len(self._sessions) >= limits.SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        token = secrets.token_urlsafe(32)
        self._sessions[_digest(token)] = Session(user, now_s, now_s)
        return token

    def user(self, token: str, now_s: float) -> str | None:
        """Whose it is; None if it is none, or has ended. Using it keeps it."""
        session = self._sessions.get(_digest(token))
        if session is None:
            return None
        if self._has_ended(session, now_s):
            del self._sessions[_digest(token)]
            return None
        session.used_s = now_s
        return session.user

    def close(self, token: str) -> str | None:
        """End it. Returns whose it was."""
        session = self._sessions.pop(_digest(token), None)
        return None if session is None else session.user

    def _end_old(self, now_s: float) -> None:
        for key in [k for k, session in self._sessions.items() if self._has_ended(session, now_s)]:
            del self._sessions[key]

    def _has_ended(self, session: Session, now_s: float) -> bool:
        return now_s - session.used_s > self._idle_s or now_s - session.begun_s > limits.SESSION_MAX_S


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
