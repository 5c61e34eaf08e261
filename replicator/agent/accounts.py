"""Accounts of this host, asked of the system's databases (nsswitch.conf): files, LDAP and the like.

Everything here may block: call it in a thread.
"""

import grp
import os
import pwd

from replicator.access import Access, Account, decide
from replicator.config import Access as Settings


def by_uid(uid: int) -> Account | None:
    """The account of a user id; None if the system knows none."""
    try:
        return _account(pwd.getpwuid(uid))
    except KeyError:
        return None


def by_name(name: str) -> Account | None:
    try:
        return _account(pwd.getpwnam(name))
    except (KeyError, ValueError, UnicodeError):
        return None


def _account(entry: pwd.struct_passwd) -> Account:
    # All groups as a login would give them, as they are now: not those that a process has kept.
    return Account(entry.pw_name, entry.pw_uid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def access_of(account: Account | None, settings: Settings) -> Access:
    """What `account` may do with this agent, by the groups that `settings` name."""
    if account is not None and account.uid == 0:
        return decide(account, None, None)  # whatever databases are down
    return decide(account, _group(settings.admin_group), _group(settings.monitor_group))


def _group(name: str) -> int | None:
    """Its id; None if there is none, which is no error: then root alone has this access."""
    try:
        return grp.getgrnam(name).gr_gid if name else None
    except KeyError:
        return None
