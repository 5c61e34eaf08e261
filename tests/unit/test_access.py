"""Who may do what, how failed logins wait, how long logins last: pure functions and values."""

import ipaddress

import pytest

from replicator import limits
from replicator.access import Access, Account, check_user, decide
from replicator.agent.audit import Sparing
from replicator.agent.sessions import Sessions
from replicator.agent.throttle import Throttle, network
from replicator.errors import UsageError

ADMINS, MONITORS, OTHERS = 501, 502, 100


def account(*groups: int, uid: int = 1000) -> Account:
    return Account("somebody", uid, frozenset(groups))


@pytest.mark.parametrize(
    ("who", "admins", "monitors", "access"),
    [
        (None, ADMINS, MONITORS, Access.NONE),
        (account(OTHERS), ADMINS, MONITORS, Access.NONE),
        (account(OTHERS, MONITORS), ADMINS, MONITORS, Access.MONITOR),
        (account(MONITORS), ADMINS, MONITORS, Access.MONITOR),
        (account(ADMINS), ADMINS, MONITORS, Access.FULL),
        (account(MONITORS, ADMINS), ADMINS, MONITORS, Access.FULL),
        (account(OTHERS, uid=0), ADMINS, MONITORS, Access.FULL),
        (account(OTHERS, uid=0), None, None, Access.FULL),
        (account(ADMINS, MONITORS), None, None, Access.NONE),
        (account(ADMINS, MONITORS), None, MONITORS, Access.MONITOR),
        (account(0), None, None, Access.NONE),  # root's group is not root
        (account(), ADMINS, MONITORS, Access.NONE),
    ],
)
def test_groups_decide(who: Account | None, admins: int | None, monitors: int | None, access: Access) -> None:
    assert decide(who, admins, monitors) is access


def test_access_is_what_scripts_know() -> None:
    assert [int(access) for access in Access] == [0, 1, 2]
    assert Access.FULL.label == "DT_FULL_ACCESS"


@pytest.mark.parametrize("name", ["", " alice", "a" * 101, "a\nb", "a\x1b[2J", "a:b", "../root", "\udc80"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError):
        check_user(name)
    assert check_user("müller@example.org") == "müller@example.org"


# --- failed logins ---


def test_failures_make_the_next_attempt_wait_longer_and_longer() -> None:
    throttle, now_s = Throttle(), 0.0
    waits = []
    for _ in range(limits.LOGIN_FREE_FAILURES + 12):
        wait_s = throttle.begin("alice", "10.0.0.1", now_s)
        waits.append(wait_s)
        now_s += wait_s
        if wait_s > 0:
            assert throttle.begin("alice", "10.0.0.1", now_s) == 0.0
    first = limits.LOGIN_FREE_FAILURES
    assert waits[:first] == [0.0] * first
    grown = waits[first:]
    assert grown[:4] == [1.0, 2.0, 4.0, 8.0] and grown == sorted(grown)
    assert grown[-1] == limits.LOGIN_DELAY_MAX_S


def fail(throttle: Throttle, user: str, address: str, now_s: float, times: int) -> None:
    for _ in range(times):
        throttle.begin(user, address, now_s)


def test_many_at_once_gain_nothing() -> None:
    throttle = Throttle()
    looked_at = [throttle.begin("alice", "10.0.0.1", 0.0) == 0.0 for _ in range(1000)]
    assert sum(looked_at) == limits.LOGIN_FREE_FAILURES


def test_who_only_waits_is_not_counted() -> None:
    throttle = Throttle()
    fail(throttle, "alice", "10.0.0.1", 0.0, 1000)
    assert throttle.begin("alice", "10.0.0.1", limits.LOGIN_DELAY_FIRST_S) == 0.0


def test_an_address_cannot_try_many_names_nor_many_addresses_one_name() -> None:
    one, many = Throttle(), Throttle()
    looked_at = sum(one.begin(f"user{n}", "10.0.0.1", 0.0) == 0.0 for n in range(100))
    assert looked_at == limits.LOGIN_FREE_FAILURES
    looked_at = sum(many.begin("alice", f"10.0.0.{n}", 0.0) == 0.0 for n in range(100))
    assert looked_at == limits.LOGIN_FREE_FAILURES


def test_nobody_is_kept_out_where_they_have_logged_in_before() -> None:
    throttle = Throttle()
    assert throttle.begin("alice", "10.0.0.1", 0.0) == 0.0
    throttle.succeeded("alice", "10.0.0.1")
    fail(throttle, "alice", "10.9.9.9", 1.0, 100)
    assert throttle.begin("alice", "10.0.0.1", 1.0) == 0.0
    assert throttle.begin("alice", "10.0.0.2", 1.0) > 0.0
    assert throttle.begin("bob", "10.0.0.1", 1.0) == 0.0


def test_success_forgives_and_so_does_time() -> None:
    throttle = Throttle()
    fail(throttle, "alice", "10.0.0.1", 0.0, 3)
    throttle.succeeded("alice", "10.0.0.1")
    assert [throttle.begin("alice", "10.0.0.1", 0.0) for _ in range(3)] == [0.0] * 3
    fail(throttle, "bob", "10.0.0.2", 0.0, 100)
    later = limits.LOGIN_FORGET_S + 1
    assert [throttle.begin("bob", "10.0.0.2", later) for _ in range(3)] == [0.0] * 3


def test_what_is_remembered_of_failures_is_bounded() -> None:
    throttle = Throttle(kept=10)
    for number in range(1000):
        address = f"10.0.{number // 250}.{number % 250}"
        throttle.begin(f"user{number}", address, float(number))
        throttle.succeeded(f"user{number}", address)
        throttle.begin(f"other{number}", f"10.1.{number // 250}.{number % 250}", float(number))
    assert len(throttle) <= 20


def test_a_network_of_ipv6_is_one_address() -> None:
    assert network("2001:db8::1") == network("2001:db8::ffff:1") != network("2001:db8:0:1::1")
    assert network("::ffff:10.0.0.1") == network("10.0.0.1")
    assert network("fe80::1%eth0") == network("fe80::1")
    assert ipaddress.ip_network(network("2001:db8::1")).prefixlen == 64


# --- logins ---


def test_a_login_ends_when_it_is_not_used_or_too_old() -> None:
    sessions = Sessions(idle_s=60.0)
    token = sessions.open("alice", 0.0)
    assert sessions.user(token, 50.0) == "alice" and sessions.user(token, 100.0) == "alice"
    assert sessions.user(token, 161.0) is None and sessions.user(token, 100.0) is None
    token = sessions.open("alice", 0.0)
    now_s = 0.0
    while now_s < limits.SESSION_MAX_S - 50.0:
        now_s += 50.0
        assert sessions.user(token, now_s) == "alice"
    assert sessions.user(token, limits.SESSION_MAX_S + 1.0) is None


def test_tokens_cannot_be_guessed_and_are_not_kept() -> None:
    sessions = Sessions(60.0)
    tokens = {sessions.open("alice", 0.0) for _ in range(5)}
    assert len(tokens) == 5 and all(len(token) >= 43 for token in tokens)  # 32 bytes
    assert sessions.user("", 0.0) is None and sessions.user("\udc80é", 0.0) is None
    assert not any(token in repr(vars(sessions)) for token in tokens)


def test_logins_are_bounded_and_end_by_request() -> None:
    sessions = Sessions(1e9)
    mine = [sessions.open("alice", 0.0) for _ in range(limits.SESSIONS_OF_USER + 1)]
    assert sessions.user(mine[0], 0.0) is None and sessions.user(mine[1], 0.0) == "alice"
    for number in range(2 * limits.SESSIONS):
        sessions.open(f"user{number}", 0.0)
    assert len(sessions) == limits.SESSIONS
    token = sessions.open("bob", 0.0)
    assert sessions.close(token) == "bob"
    assert sessions.user(token, 0.0) is None and sessions.close(token) is None


def test_the_same_is_said_once_in_a_while() -> None:
    sparing = Sparing(60.0, kept=3)
    assert [sparing.say("a", now_s) for now_s in (0.0, 1.0, 59.0, 60.0, 61.0)] == [
        True, False, False, True, False,
    ]  # fmt: skip
    for number in range(100):
        assert sparing.say(number, 61.0)
    assert len(sparing) == 3
