"""The control API of a real agent over its real socket, as far as it needs no mount."""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import machine
from kit.dtd import Agent, free_port

from replicator import limits
from replicator.repset import DEFAULT_NAME

pytestmark = pytest.mark.skipif(not machine.is_root(), reason="an agent needs root")


class Api:
    """HTTP by hand: nothing of the product's own client."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def raw(self, data: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(self._path))
            connection.sendall(data)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
            return answer

    def request(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers in lower case, document)."""
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: agent",
            "Connection: close",
            f"Content-Length: {len(data)}",
        ]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head, _, content = self.raw("\r\n".join([*lines, "", ""]).encode() + data).partition(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")
        found = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        return int(first.split()[1]), found, json.loads(content)

    def ok(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        status, _, document = self.request(method, path, body, **headers)
        assert status == 200, document
        return document

    def refused(
        self, status: int, exit_code: int, method: str, path: str, body: object = None, **headers: str
    ) -> str:
        """The error, which must be one line."""
        found, _, document = self.request(method, path, body, **headers)
        assert (found, document["exit_code"]) == (status, exit_code), document
        assert set(document) == {"error", "exit_code"} and "\n" not in document["error"]
        return str(document["error"])


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    started = Agent(tmp_path_factory.mktemp("api") / "home", "alpha")
    started.start()
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def api(agent: Agent) -> Iterator[Api]:
    client = Api(agent.home / "api.sock")
    yield client
    for repset in client.ok("GET", "/v1/repsets"):
        client.ok("DELETE", f"/v1/repsets/{repset['name'].replace(' ', '%20')}")


def test_who_it_is(agent: Agent, api: Api) -> None:
    view = api.ok("GET", "/v1/agent")
    assert agent.process is not None
    assert view["pid"] == agent.process.pid
    assert view["name"] == "alpha" and view["home"] == str(agent.home) and view["listen"] == agent.address
    assert (view["mounts"], view["connections"], view["receivers"], view["insecure"]) == (0, 0, 0, False)
    assert json.loads((agent.home / "agent.json").read_text())["uuid"] == view["uuid"]


def test_remote_control_shows_the_agents_own_certificate_unless_another_is_named(tmp_path: Path) -> None:
    agent = Agent(tmp_path / "home", "alpha")
    agent.home.mkdir()
    port = free_port()
    (agent.home / "replicator.toml").write_text(f'[access]\nlisten = "127.0.0.1:{port}"\n')
    agent.start()
    try:
        shown = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port)))
        api = Api(agent.home / "api.sock")
        own = api.ok("GET", "/v1/identity")
        assert own["certificate"].strip() == ssl.DER_cert_to_PEM_cert(shown).strip()
        assert api.ok("GET", "/v1/ping")["fingerprint"] == own["fingerprint"]
    finally:
        agent.close()


def test_others_reach_its_socket_and_nothing_else(agent: Agent) -> None:
    """What they may do there is in test_access_local.py."""
    assert (agent.home / "api.sock").stat().st_mode & 0o777 == 0o666
    assert agent.home.stat().st_mode & 0o777 == 0o711
    others = [path for path in agent.home.iterdir() if path.name not in ("api.sock", "dtd.out")]
    assert others and all(path.stat().st_mode & 0o077 == 0 for path in others)
    assert (agent.home / "run").stat().st_mode & 0o777 == 0o700


def test_curl_speaks_it(agent: Agent) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    command = ["curl", "-sS", "--unix-socket", agent.home / "api.sock", "http://agent/v1/repsets"]
    answer = subprocess.run(command, capture_output=True, timeout=30, check=True)
    assert json.loads(answer.stdout) == []


# --- replication sets ---


def test_a_set_comes_changes_and_goes(api: Api) -> None:
    made = api.ok("POST", "/v1/repsets", {"name": "web", "rules": [{"path": "/srv/data/"}]})
    assert made == {
        "name": "web",
        "generation": 1,
        "rules": [{"path": "/srv/data", "include": True, "recursive": True}],
        "connections": [],
        "advice": "",
    }
    assert api.ok("GET", "/v1/repsets") == [made]
    added = api.ok("POST", "/v1/repsets/web/rules", {"path": "/srv/data/*.tmp", "include": False})
    assert added["generation"] == 2
    assert added["rules"][1] == {"path": "/srv/data/*.tmp", "include": False, "recursive": True}
    removed = api.ok("DELETE", "/v1/repsets/web/rules", {"path": "/srv/data/*.tmp"})
    assert (removed["generation"], removed["rules"]) == (3, made["rules"])
    replaced = api.ok("PUT", "/v1/repsets/web", {"rules": [{"path": "/x", "recursive": False}]})
    assert replaced["rules"] == [{"path": "/x", "include": True, "recursive": False}]
    assert api.ok("DELETE", "/v1/repsets/web")["name"] == "web"
    assert api.ok("GET", "/v1/repsets") == []


def test_a_set_has_a_default_name(api: Api) -> None:
    assert api.ok("POST", "/v1/repsets")["name"] == DEFAULT_NAME
    assert "exists already" in api.refused(409, 1, "POST", "/v1/repsets", {})


def test_adding_what_is_there_changes_nothing(api: Api) -> None:
    api.ok("POST", "/v1/repsets", {"name": "web", "rules": [{"path": "/srv"}]})
    assert api.ok("POST", "/v1/repsets/web/rules", {"path": "/srv"})["generation"] == 1


def test_copy_and_rename(api: Api) -> None:
    original = api.ok("POST", "/v1/repsets", {"name": "web", "rules": [{"path": "/srv"}]})
    copy = api.ok("POST", "/v1/repsets/web/copy", {"new_name": "my copy"})
    assert (copy["rules"], copy["generation"]) == (original["rules"], 1)
    api.ok("POST", "/v1/repsets/my%20copy/rename", {"new_name": "other"})
    assert [s["name"] for s in api.ok("GET", "/v1/repsets")] == ["other", "web"]
    api.refused(409, 1, "POST", "/v1/repsets/web/copy", {"new_name": "other"})


def test_lost_updates_are_refused(api: Api) -> None:
    api.ok("POST", "/v1/repsets", {"name": "web"})
    _, headers, _ = api.request("GET", "/v1/repsets/web")
    mine = headers["etag"]
    assert mine == '"1"'
    api.ok("POST", "/v1/repsets/web/rules", {"path": "/theirs"}, If_Match=mine)
    stale = {"path": "/mine"}
    assert "somebody else" in api.refused(412, 1, "POST", "/v1/repsets/web/rules", stale, If_Match=mine)
    api.refused(412, 1, "POST", "/v1/repsets/web/rules", {**stale, "generation": 1})
    api.refused(412, 1, "PUT", "/v1/repsets/web", {"rules": [stale], "generation": 1})
    assert api.ok("GET", "/v1/repsets/web")["rules"][0]["path"] == "/theirs"
    api.ok("POST", "/v1/repsets/web/rules", stale, If_Match='"2"')
    api.refused(400, 2, "POST", "/v1/repsets/web/rules", stale, If_Match="three")


def test_sets_survive_a_restart(agent: Agent, api: Api) -> None:
    api.ok("POST", "/v1/repsets", {"name": "web", "rules": [{"path": "/srv"}]})
    before = api.ok("GET", "/v1/repsets")
    for end in (agent.stop, agent.kill):
        end()
        agent.start()
        assert api.ok("GET", "/v1/repsets") == before


# --- what is refused ---


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "exit_code", "words"),
    [
        ("GET", "/v1/repsets/none", None, 404, 2, "no replication set 'none'"),
        ("GET", "/v1/connections/7", None, 404, 2, "no connection '7'"),
        ("POST", "/v1/connections/7/wait", {}, 404, 2, "no connection"),
        ("DELETE", "/v1/mounts", {"path": "/srv"}, 404, 2, "/srv is not captured"),
        ("POST", "/v1/mounts/reload", {"path": "/srv"}, 404, 2, "/srv is not captured"),
        ("GET", "/v1/", None, 404, 2, "no such resource"),
        ("GET", "/", None, 404, 2, "no such resource"),
        ("PUT", "/v1/agent", {}, 405, 2, "must be GET"),
        ("POST", "/v1/repsets", {"name": "a/b"}, 400, 2, "not allowed"),
        ("POST", "/v1/repsets", {"nme": "a"}, 400, 2, "unknown field `nme`"),
        ("POST", "/v1/repsets", b'{"name": "\xff"}', 400, 2, "not valid JSON"),
        ("POST", "/v1/repsets", b"[" * 100_000, 400, 2, "Expected `object`"),
        ("POST", "/v1/targets/orphans", {"limit_count": 10**400}, 400, 2, "expected `int`"),
        ("POST", "/v1/repsets", {"name": 3}, 400, 2, "expected `str`"),
        ("POST", "/v1/repsets", {"rules": [{"path": "relative"}]}, 400, 2, "must be absolute"),
        ("POST", "/v1/repsets", {"rules": [{"path": "/a/*/b"}]}, 400, 2, "last component only"),
        ("POST", "/v1/repsets", b"{", 400, 2, "not valid JSON"),
        ("POST", "/v1/repsets", b"\xff\xfe", 400, 2, "not valid JSON"),
        ("POST", "/v1/repsets", [], 400, 2, "Expected `object`"),
        ("POST", "/v1/mounts", {}, 400, 2, "missing required field `path`"),
        ("POST", "/v1/mounts", {"path": "srv"}, 400, 2, "must be an absolute path"),
        ("POST", "/v1/mounts", {"path": "/srv", "binding": "magic"}, 400, 2, "auto, kernel or pyfuse3"),
        ("POST", "/v1/mounts", {"path": "/"}, 400, 2, "root directory cannot be captured"),
        ("POST", "/v1/mounts", {"path": "/dev"}, 400, 2, "cannot be captured"),
        ("POST", "/v1/mounts", {"path": "/proc"}, 400, 2, "proc file system"),
        ("POST", "/v1/mounts", {"path": "/no/such"}, 400, 2, "/no/such: No such file"),
        ("POST", "/v1/mounts", {"path": __file__}, 400, 2, "is not a directory"),
        ("POST", "/v1/connections", {"repset": "none", "target": "h:1"}, 404, 2, "no replication set"),
        ("POST", "/v1/connections/7/mirror", {"action": "dance"}, 400, 2, "must be one of start"),
        ("POST", "/v1/connections/7/wait", {"timeout_s": -1}, 400, 2, "must be from 0"),
        ("POST", "/v1/connections/7/wait", {"timeout_s": "soon"}, 400, 2, "expected `float"),
        ("POST", "/v1/protect", {"source": "/srv", "destination": "nowhere"}, 400, 2, "HOST[:PORT]:/path"),
        ("POST", "/v1/protect", {"source": "/srv", "destination": "/srv/copy"}, 409, 1, "overlap"),
        ("POST", "/v1/protect", {"source": "/srv", "destination": "localhost:/srv"}, 409, 1, "overlap"),
        ("POST", "/v1/targets", {"action": "forget"}, 400, 2, "name the connection"),
        ("GET", "/v1/events?since=x", None, 400, 2, "whole number"),
        ("GET", "/v1/events?cout=3", None, 400, 2, "must be one of limit, since"),
    ],
)
def test_refusals(
    api: Api, method: str, path: str, body: object, status: int, exit_code: int, words: str
) -> None:
    assert words in api.refused(status, exit_code, method, path, body)
    assert api.ok("GET", "/v1/mounts") == [] and api.ok("GET", "/v1/repsets") == []


def test_a_set_that_nothing_captures_cannot_be_connected(api: Api) -> None:
    api.ok("POST", "/v1/repsets", {"name": "web"})
    request = {"repset": "web", "target": "127.0.0.1:9"}
    assert "includes nothing" in api.refused(409, 1, "POST", "/v1/connections", request)
    api.ok("POST", "/v1/repsets/web/rules", {"path": "/srv/data"})
    assert "dtctl mount add /srv/data" in api.refused(409, 1, "POST", "/v1/connections", request)
    full = {"mirror": "full"}
    for mirror in (
        {"mirror": "quick"},
        full | {"newer": True},
        full | {"checksum": True},
        {"orphans": "eat"},
    ):
        api.refused(409, 1, "POST", "/v1/connections", {**request, **mirror})


def test_a_huge_body_is_refused(api: Api) -> None:
    assert "at most" in api.refused(413, 2, "POST", "/v1/repsets", b" " * (limits.API_BODY_BYTES + 1))


def test_garbage_harms_nothing(api: Api) -> None:
    for data in (
        b"\x00" * 1000,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"X" * (2 * limits.API_HEAD_BYTES),
    ):
        try:
            api.raw(data + b"\r\n\r\n")
        except OSError:
            pass  # closed in our face: fine, too
    assert api.ok("GET", "/v1/agent")["name"] == "alpha"


# --- events ---


def test_events_are_shown_and_logged(agent: Agent, api: Api) -> None:
    last = api.ok("GET", "/v1/events")[-1]["sequence"]
    api.ok("POST", "/v1/repsets", {"name": "evented"})
    api.ok("DELETE", "/v1/repsets/evented")
    modified, created_by, deleted, deleted_by = api.ok("GET", f"/v1/events?since={last}")
    assert modified["id"] == 99 and "evented" in modified["text"] and modified["severity"] == "info"
    assert [created_by["id"], deleted_by["id"]] == [9152, 9152]
    assert re.fullmatch(r"root from local \(pid \d+.*\): repset create evented: done", created_by["text"])
    assert deleted["sequence"] == modified["sequence"] + 2 == last + 3
    assert api.ok("GET", "/v1/events?limit=1") == [deleted_by]
    lines = (agent.home / "log" / "dtd.log").read_text().splitlines()
    assert lines[-2].endswith("replication set evented deleted") and " 9001 info " in lines[-2]
    assert lines[-1].endswith("repset delete evented: done") and " 9152 info " in lines[-1]


# --- stopping ---


def test_stop_by_request(agent: Agent, api: Api) -> None:
    assert agent.process is not None
    assert api.ok("POST", "/v1/agent/stop") == {"stopping": True}
    assert agent.process.wait(20) == 0
    assert not os.path.exists(agent.home / "api.sock")
    agent.process = None
    agent.start()
