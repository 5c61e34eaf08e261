"""The gate of the control API: who asks, whether they may, and what is noted of it.

On this host the kernel says who asks. From elsewhere it is a password (once, then a token), or a client
certificate. What the user may do follows from groups as they are at that moment.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from replicator import limits
from replicator.access import (
    Access,
    Account,
    Caller,
    LoginRequiredError,
    SlowDownError,
    check_user,
)
from replicator.agent import accounts, pam
from replicator.agent.audit import Audit
from replicator.agent.control_tls import ControlTls
from replicator.agent.sessions import Sessions
from replicator.agent.throttle import Throttle
from replicator.config import Access as Settings
from replicator.errors import NotPermittedError, ReplicatorError, UnreachableError, UsageError
from replicator.events import EventRing

Lookup = Callable[[], Account | None]
Check = Callable[[str, str, str, str, str], str]
"""`pam.authenticate`."""


@dataclass(frozen=True)
class Peer:
    """The other end of a connection. `local`: this is it, as the kernel says; no login helps. `address`: of a
    host elsewhere. `certified`: the user that a certificate names.
    """

    local: Caller | None = None
    address: str = ""
    certified: str = ""


class Gate:
    """`check_password` and `clock` (in seconds) are replaced in tests."""

    def __init__(
        self,
        settings: Settings,
        ring: EventRing,
        check_password: Check = pam.authenticate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._check_password = check_password
        self._clock = clock
        self._throttle = Throttle()
        self._sessions = Sessions(settings.session_minutes * 60.0)
        self._passwords = trio.CapacityLimiter(limits.LOGINS_AT_ONCE)
        self._lookups = trio.CapacityLimiter(limits.ACCOUNT_LOOKUPS)
        self.audit = Audit(ring, clock)
        self.control = ""  # where other hosts are listened to
        self.tls: ControlTls | None = None  # and what is shown there

    async def local(self, uid: int, origin: str) -> Peer:
        """Who connects on this host, with the rights of now."""
        user = str(uid)
        if uid == 0:
            user, access = "root", Access.FULL  # not even asked: databases may be down
        else:
            account, access = await self._look_up(partial(accounts.by_uid, uid))
            user = account.name if account is not None else user
        return Peer(Caller(user=user, origin=origin, how="socket", access=access))

    async def caller(self, peer: Peer, token: str | None) -> Caller:
        """Who asks. Raises LoginRequiredError if nobody has logged in."""
        if peer.local is not None:
            return peer.local
        if token is not None:
            user = self._sessions.user(token, self._clock())
            if user is None:
                raise LoginRequiredError("the login has ended: log in again (dtctl login)")
            return await self._remote(user, peer, "password")
        if peer.certified:
            return await self._remote(peer.certified, peer, "certificate")
        raise LoginRequiredError("log in first (dtctl login)")

    def require(self, caller: Caller, access: Access, command: str) -> None:
        """Raises NotPermittedError, and says so in an event, if `caller` has less than `access`."""
        if caller.access >= access:
            if access is not Access.NONE:
                self.audit.seen(caller)
            return
        self.audit.refused(caller, command)
        raise self._denied(caller)

    def _denied(self, caller: Caller) -> NotPermittedError:
        """What says who would have been let in."""
        admins, monitors = (
            group or "(none is configured)"
            for group in (self.settings.admin_group, self.settings.monitor_group)
        )
        if caller.access is Access.MONITOR:
            return NotPermittedError(
                f"{caller.user} may only look here; to change something takes root, or the group {admins}"
            )
        return NotPermittedError(
            f"{caller.user} has no access to this agent; it takes root, or the group {admins} or {monitors}"
        )

    async def log_in(self, peer: Peer, user: str, password: str) -> tuple[str, Caller]:
        """(token, who that is). Raises NotPermittedError, UnreachableError."""
        if peer.local is not None:
            raise UsageError("on its own host an agent knows who you are: nobody logs in there")
        user = check_user(user)
        if not self.settings.pam_service:
            raise NotPermittedError("passwords are not accepted here (access.pam_service): use a certificate")
        if len(password) > limits.PASSWORD_CHARS:
            raise UsageError(f"password: at most {limits.PASSWORD_CHARS} characters")
        wait_s = self._throttle.begin(user, peer.address, self._clock())
        if wait_s > 0:
            reason = f"too many failed logins: try again in {max(1, round(wait_s))} s"
            self.audit.login_put_off(user, peer.address, reason)
            raise SlowDownError(reason)
        name = await self._checked(peer, user, password)
        self._throttle.succeeded(user, peer.address)
        caller = await self._remote(name, peer, "password")
        if caller.access is Access.NONE:
            self.audit.login_failed(name, peer.address, "is in no group that has access")
            raise self._denied(caller)
        token = self._sessions.open(name, self._clock())
        self.audit.let_in(caller)
        return token, caller

    async def _checked(self, peer: Peer, user: str, password: str) -> str:
        failure: ReplicatorError | None = None
        name = ""
        with trio.move_on_after(limits.LOGIN_TIMEOUT_S) as scope:
            try:
                # A thread that PAM holds for longer is left to itself, and counts until it is back.
                name = await trio.to_thread.run_sync(
                    self._check_password,
                    self.settings.pam_service,
                    user,
                    password,
                    peer.address,
                    self.settings.pam_directory,
                    limiter=self._passwords,
                    abandon_on_cancel=True,
                )
            except (pam.RefusedError, pam.PamError) as error:
                failure = error
        if scope.cancelled_caught:
            failure = pam.PamError(f"no answer within {limits.LOGIN_TIMEOUT_S:.0f} s")
        if failure is None:
            return name
        self.audit.login_failed(user, peer.address, str(failure))
        if isinstance(failure, pam.RefusedError):
            raise NotPermittedError("the user or the password is wrong, or the account is closed")
        raise UnreachableError("the password could not be checked now; the agent's log says why")

    def log_out(self, peer: Peer, token: str | None) -> None:
        user = self._sessions.close(token) if token is not None else None
        if user is not None:
            self.audit.logged_out(user, peer.address)

    async def _remote(self, user: str, peer: Peer, how: str) -> Caller:
        _, access = await self._look_up(partial(accounts.by_name, user))
        return Caller(user=user, origin=peer.address, how=how, access=access)

    async def _look_up(self, lookup: Lookup) -> tuple[Account | None, Access]:
        """Raises UnreachableError if the system does not say it in time."""

        def ask() -> tuple[Account | None, Access]:
            account = lookup()
            return account, accounts.access_of(account, self.settings)

        with trio.move_on_after(limits.ACCOUNT_TIMEOUT_S):
            return await trio.to_thread.run_sync(ask, limiter=self._lookups, abandon_on_cancel=True)
        raise UnreachableError("the system does not say which groups the user has; try again")
