"""Every request says which access it takes, changes are named in users' words, and no secret is in them."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import pytest
import trio
from starlette.requests import Request
from starlette.routing import Route
from test_api_doc import BODIES, routes

from replicator import events, limits
from replicator.access import Access, Account, Caller, LoginRequiredError, SlowDownError
from replicator.agent import accounts, api, pam
from replicator.agent.api_rules import RULES, Rule, rule, spoken
from replicator.agent.gate import Gate, Peer
from replicator.agent.routes.connections import MirrorBody
from replicator.agent.routes.mounts import MountBody, OptionsBody
from replicator.agent.routes.targets import TargetsBody
from replicator.agent.service import Service
from replicator.config import Access as Settings
from replicator.errors import NotPermittedError, UnreachableError, UsageError
from replicator.events import Event, EventRing


def mistakes(known: set[tuple[str, str]], rules: dict[tuple[str, str], Rule]) -> list[str]:
    """What is wrong with a table of rules for these routes."""
    found = [f"{request} has no row" for request in known - set(rules)]
    found += [f"{request} is no route" for request in set(rules) - known]
    for (method, path), row in rules.items():
        if row.access is Access.MONITOR and (method != "GET" or row.words):
            found.append(f"{method} {path}: who may only look can only GET")
        if row.access is Access.NONE and path not in ("/v1/ping", "/v1/access", "/v1/login", "/v1/logout"):
            found.append(f"{method} {path}: is open to everybody")
        if row.words and method == "GET":
            found.append(f"{method} {path}: a GET changes nothing")
    return found


def test_every_route_has_its_row() -> None:
    assert mistakes(routes(), RULES) == []


def test_what_has_none_takes_full_access_and_is_noted() -> None:
    assert rule("POST", "/v1/new") == Rule(Access.FULL, "POST /v1/new")
    assert rule("GET", "/v1/new").access is Access.FULL


def test_mistakes_are_seen() -> None:
    def wrong(**change: Any) -> list[str]:
        return mistakes(routes(), RULES | change["rules"])

    assert mistakes(routes() | {("GET", "/v1/new")}, RULES)
    assert wrong(rules={("POST", "/v1/mounts"): Rule(Access.MONITOR)})
    assert wrong(rules={("GET", "/v1/mounts"): Rule(Access.NONE)})
    assert wrong(rules={("GET", "/v1/none"): Rule(Access.FULL)})


@pytest.mark.parametrize("request_", [key for key, row in RULES.items() if row.words])
def test_words_name_what_the_request_has(request_: tuple[str, str]) -> None:
    """A field that is not there would show as …."""
    _, path = request_
    in_path = {part.strip("{}"): "x" for part in path.split("/") if part.startswith("{")}
    body = BODIES.get(request_)
    fields = {} if body is None else {f.name: _sample(f) for f in msgspec.structs.fields(body)}
    made = None if body is None else msgspec.convert(fields, body, strict=False)
    text = spoken(RULES[request_].words, in_path, made)
    assert "…" not in text and text.isprintable(), text


def _sample(field: Any) -> Any:
    if field.default is not msgspec.NODEFAULT:
        return field.default
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
        return {inner.name: _sample(inner) for inner in msgspec.structs.fields(field.type)}
    return () if "tuple" in str(field.type) else {} if "dict" in str(field.type) else "x"


class Secretive(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    password: str = ""
    pairing_code: str = ""
    options: dict[str, str] = {}


@pytest.mark.parametrize(
    ("words", "path", "body", "text"),
    [
        ("disconnect {connection}", {"connection": "1"}, None, "disconnect 1"),
        (
            "mirror {action} {connection}",
            {"connection": "web"},
            MirrorBody(action="start", checksum=True),
            "mirror start web checksum=true",
        ),
        ("mount add {path}", {}, MountBody(path="/srv/my data"), 'mount add "/srv/my data"'),
        (
            "mount add {path}",
            {},
            MountBody(path="/srv", options={"writes": "direct"}),
            'mount add /srv options={"writes":"direct"}',
        ),
        ("target {action} {uuid}", {}, TargetsBody(action="pause"), "target pause all"),
        ("mount add {path}", {}, MountBody(path="/a\nb\x1b[2J\udc80"), r"mount add /a\nb\x1b[2J\udc80"),
        ("mount add {path}", {}, None, "mount add …"),  # the body was none
        ("x {path}", {}, Secretive(path="/", pairing_code="pw"), "x / pairing_code=(hidden)"),
        (
            "x {path}",
            {},
            Secretive(path="/", options={"api_key": "pw", "a": "b"}, password="pw"),
            'x / password=(hidden) options={"api_key":"(hidden)","a":"b"}',
        ),
    ],
)  # fmt: skip
def test_a_command_in_users_words(words: str, path: dict[str, str], body: Any, text: str) -> None:
    assert spoken(words, path, body) == text
    assert "pw" not in text


def test_a_command_is_never_long() -> None:
    options = {f"name{number}": "x" * 100 for number in range(10_000)}
    body = OptionsBody(path="/" * 5000, options=options)
    assert len(spoken("mount set {path}", {}, body)) <= limits.AUDIT_CHARS


# --- the gate ---


@pytest.fixture
def told() -> list[Event]:
    return []


class World:
    """A gate with accounts, passwords and a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, told: list[Event]) -> None:
        self.now_s = 0.0
        self.told = told
        self.groups = {"admin": Access.FULL, "monitor": Access.MONITOR, "other": Access.NONE}
        self.tried = 0
        self.gate = Gate(
            Settings(), EventRing(lambda: 0, told.append), self.check_password, lambda: self.now_s
        )
        monkeypatch.setattr(accounts, "by_name", lambda name: Account(name, 1000, frozenset()))
        monkeypatch.setattr(accounts, "by_uid", lambda uid: None)
        monkeypatch.setattr(
            accounts,
            "access_of",
            lambda a, settings: self.groups.get(a.name, Access.NONE) if a else Access.NONE,
        )

    def check_password(self, service: str, user: str, password: str, address: str, directory: str) -> str:
        self.tried += 1
        if password == "broken":
            raise pam.PamError("no directory server")
        if password != "right":
            raise pam.RefusedError("authentication failed")
        return user

    @property
    def ids(self) -> list[int]:
        return [event.id for event in self.told]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, told: list[Event]) -> World:
    return World(monkeypatch, told)


FAR = Peer(address="10.0.0.1")


async def test_a_password_becomes_a_token(world: World) -> None:
    token, caller = await world.gate.log_in(FAR, "admin", "right")
    assert (caller.access, caller.how, str(caller)) == (Access.FULL, "password", "admin from 10.0.0.1")
    assert await world.gate.caller(FAR, token) == caller
    with pytest.raises(LoginRequiredError):
        await world.gate.caller(FAR, None)
    with pytest.raises(LoginRequiredError):
        await world.gate.caller(FAR, token + "x")
    world.gate.log_out(FAR, token)
    with pytest.raises(LoginRequiredError):
        await world.gate.caller(FAR, token)
    assert world.ids == [events.ACCESS_GRANTED.id, events.LOGGED_OUT.id]
    assert world.gate.audit.logins == 1
    assert not any("right" in event.text for event in world.told)


async def test_rights_are_those_of_now(world: World) -> None:
    token, _ = await world.gate.log_in(FAR, "admin", "right")
    world.groups["admin"] = Access.MONITOR
    caller = await world.gate.caller(FAR, token)
    with pytest.raises(NotPermittedError, match="may only look"):
        world.gate.require(caller, Access.FULL, "POST /v1/mounts")
    world.groups["admin"] = Access.NONE
    caller = await world.gate.caller(FAR, token)
    with pytest.raises(NotPermittedError, match="no access"):
        world.gate.require(caller, Access.MONITOR, "GET /v1/mounts")


async def test_a_right_password_without_a_group_is_no_login(world: World) -> None:
    with pytest.raises(NotPermittedError, match="other has no access"):
        await world.gate.log_in(FAR, "other", "right")
    assert world.gate.audit.logins == 0 and world.gate.audit.failed_logins == 1
    assert world.ids == [events.LOGIN_FAILED.id]  # told once


async def test_wrong_passwords_are_told_and_slowed(world: World) -> None:
    for _ in range(limits.LOGIN_FREE_FAILURES):
        with pytest.raises(NotPermittedError, match="user or the password is wrong"):
            await world.gate.log_in(FAR, "admin", "wrong")
    for _ in range(100):
        with pytest.raises(SlowDownError, match="try again in 1 s"):
            await world.gate.log_in(FAR, "admin", "right")
    assert world.tried == limits.LOGIN_FREE_FAILURES
    assert world.ids == [events.LOGIN_FAILED.id] * (limits.LOGIN_FREE_FAILURES + 1)  # and not 103
    assert world.gate.audit.failed_logins == limits.LOGIN_FREE_FAILURES + 100
    world.now_s += 1.0
    await world.gate.log_in(FAR, "admin", "right")


async def test_passwords_that_cannot_be_checked(world: World) -> None:
    with pytest.raises(UnreachableError, match="the agent's log says why"):
        await world.gate.log_in(FAR, "admin", "broken")
    assert "no directory server" in world.told[-1].text


async def test_a_password_that_takes_too_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOGIN_TIMEOUT_S", 0.05)
    goes_on = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def hang(*arguments: str) -> str:
        trio.from_thread.run(goes_on.wait, trio_token=token)
        return "admin"

    gate = Gate(Settings(), EventRing(lambda: 0, world.told.append), hang, lambda: 0.0)
    with pytest.raises(UnreachableError):
        await gate.log_in(FAR, "admin", "right")
    goes_on.set()
    await trio.testing.wait_all_tasks_blocked(0.05)


async def test_a_certificate_stands_for_a_password(world: World) -> None:
    caller = await world.gate.caller(Peer(address="10.0.0.1", certified="monitor"), None)
    assert (caller.user, caller.access, caller.how) == ("monitor", Access.MONITOR, "certificate")


async def test_root_here_needs_no_database(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "by_uid", None)
    peer = await world.gate.local(0, "local (pid 1)")
    assert peer.local is not None and peer.local.access is Access.FULL
    with pytest.raises(UsageError, match="nobody logs in there"):
        await world.gate.log_in(peer, "admin", "right")


async def test_who_is_not_known_here_has_no_access(world: World) -> None:
    peer = await world.gate.local(4711, "local (pid 1)")
    assert peer.local is not None and (peer.local.user, peer.local.access) == ("4711", Access.NONE)


async def test_refusals_do_not_flood_the_log(world: World) -> None:
    caller = Caller(user="other", origin="local (pid 1)", how="socket", access=Access.NONE)
    for number in range(100):
        again = msgspec.structs.replace(caller, origin=f"local (pid {number})")
        with pytest.raises(NotPermittedError):
            world.gate.require(again, Access.FULL, "POST /v1/mounts")
    assert world.ids == [events.ACCESS_REFUSED.id]
    assert "POST /v1/mounts" in world.told[0].text and "DT_NO_ACCESS" in world.told[0].text


@pytest.mark.parametrize(("password", "service"), [("x" * 2000, "replicator"), ("right", "")])
async def test_logins_that_are_none(world: World, password: str, service: str) -> None:
    gate = Gate(Settings(pam_service=service), EventRing(lambda: 0, world.told.append), world.check_password)
    with pytest.raises((UsageError, NotPermittedError)):
        await gate.log_in(FAR, "admin", password)
    assert world.tried == 0


# --- requests ---


@pytest.mark.parametrize("access", list(Access))
@pytest.mark.parametrize(("method", "path"), sorted(RULES))
async def test_each_request_needs_its_access(world: World, method: str, path: str, access: Access) -> None:
    """Through the real handlers of HTTP, with a service that takes note of being asked."""
    reached: list[str] = []
    answer = await _ask(world.gate, method, path, access, reached)
    allowed = access >= RULES[method, path].access
    assert bool(reached) == allowed
    assert (answer == 403) == (not allowed)


async def _ask(gate: Gate, method: str, path: str, access: Access, reached: list[str]) -> int:
    async def handler(request: Request) -> object:
        reached.append(path)
        return {}

    endpoint = cast(Callable[[Request], Awaitable[Any]], api._endpoint(path, {method: handler}, gate))
    peer = Peer(Caller(user="x", origin="local", how="socket", access=access))
    scope = {
        "type": "http", "method": method, "path": path, "headers": [], "query_string": b"",
        "path_params": {}, "state": {"peer": peer},
    }  # fmt: skip
    return int((await endpoint(Request(scope))).status_code)


async def test_changes_are_noted_with_how_they_ended(world: World) -> None:
    await _ask(world.gate, "DELETE", "/v1/repsets/{name}", Access.FULL, [])
    assert world.told[-1].id == events.CHANGED.id and world.told[-1].text.endswith("done")

    async def fails(request: Request) -> object:
        raise UsageError("no such set")

    peer = Peer(Caller(user="x", origin="local", how="socket", access=Access.FULL))
    scope = {
        "type": "http", "method": "DELETE", "path": "/v1/repsets/web", "headers": [], "query_string": b"",
        "path_params": {"name": "web"}, "state": {"peer": peer},
    }  # fmt: skip
    await api._endpoint("/v1/repsets/{name}", {"DELETE": fails}, world.gate)(Request(scope))
    assert world.told[-1].text == "x from local: repset delete web: failed: no such set"


def test_routes_go_through_the_gate() -> None:
    application = api.application(cast(Service, None), cast(Gate, None))
    for route in application.routes:
        assert isinstance(route, Route) and "gate" in route.endpoint.__code__.co_freevars
