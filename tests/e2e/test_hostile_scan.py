"""A scan of everything that listens, by a host that has no business there: nothing gets in, nothing changes,
each way is told once, and memory does not grow.

The ports of agents (a target that watches its source, a source that is watched, a witness), of clients, and
of heartbeats. A host in between records, repeats, swaps and cuts what goes over the line.
"""

import itertools
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import dtd, machine
from kit.certificates import Issuer
from kit.dtd import Agent
from kit.hostile import GREETING, Mallory, mallory
from kit.hosts import Host, lan
from kit.patience import until
from kit.protected import Protected

from replicator import limits
from replicator.agent.api_rules import RULES
from replicator.agent.state import load_identity
from replicator.failover.heartbeat import DATAGRAM_BYTES, NONCE_BYTES, Beat, Kind, encode
from replicator.paths import Home

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces"),
]

ROUNDS = int(os.environ.get("SOAK_HOSTILE_ROUNDS", "1"))  # of everything that can be repeated
CONTROL = 1506
GROWTH_BYTES = 16 << 20
TESTS = str(Path(__file__).parents[1])
NOBODY, LOOKS = "nobody", "daemon"  # users that every system has; the latter may look
OTHER = "99999999-9999-4999-8999-999999999999"
_BEAT = (
    "import socket, sys, time\n"
    "line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); line.bind(('eth0', 0))\n"
    "line.settimeout(1); until = time.monotonic() + 5\n"
    "while time.monotonic() < until:\n"
    "    data = line.recv(4096)\n"
    "    if b'rhb1' in data and len(data) < 200: print(data.hex(), flush=True)\n"
)


class Scene:
    """alpha replicates to beta by way of mallory, beta watches alpha, gamma is the witness of that."""

    def __init__(self, directory: Path, hosts: list[Host]) -> None:
        self.directory = directory
        self.hosts = hosts
        self.ours, self.theirs = Issuer(directory, "ours"), Issuer(directory, "theirs")
        self.agents = [
            Agent(directory / n, n, h) for n, h in zip(("alpha", "beta", "gamma"), hosts, strict=False)
        ]
        self.alpha, self.beta, self.gamma = self.agents
        self.mallory = Agent(
            directory / "mallory", "mallory", hosts[3]
        )  # never started: only its keys are used
        self.revoked = Agent(directory / "revoked", "revoked", hosts[3])
        self._revoked: list[Any] = []
        self._addresses = itertools.count(50)
        self.expected: dict[tuple[str, str], list[str]] = {}  # by (agent, address): what has to be logged

    def prepare(self) -> None:
        server, _ = self.ours.issue("localhost", "server.pem")
        for agent in self.agents:
            agent.home.mkdir()
            listens = (
                f'listen = "{agent.address.rpartition(":")[0]}:{CONTROL}"\n' if agent is self.beta else ""
            )
            (agent.home / "replicator.toml").write_text(
                f'[security]\nca = "{self.ours.path}"\n'
                f'[access]\n{listens}monitor_group = "{LOOKS}"\npam_service = ""\n'
                f'certificate = "{server}"\nclient_ca = "{self.ours.path}"\n'
            )
        dtd.pair(*self.agents)
        dtd.pair(self.beta, self.mallory)
        dtd.pair(self.beta, self.revoked)

    def address(self) -> str:
        """One more of mallory's."""
        address = f"{self.hosts[3].address.rpartition('.')[0]}.{next(self._addresses)}"
        self.hosts[3].ip("address", "add", f"{address}/24", "dev", "eth0")
        return address

    def revoke(self, certificate: Any) -> None:
        """By the authority, besides what it has revoked."""
        self._revoked.append(certificate)
        self.ours.revoke(*self._revoked)

    def expect(self, agent: Agent, address: str, *texts: str) -> None:
        self.expected.setdefault((agent.name, address), []).extend(texts)

    def events(self, agent: Agent) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = agent.json("events", "--limit", str(limits.EVENTS_KEPT))
        return found

    def told_otherwise(self) -> list[tuple[str, str, list[str], list[str]]]:
        """Attacks of which an agent has not told just what is expected: (agent, address, expected, told)."""
        found = []
        for agent in self.agents:
            texts = [event["text"] for event in self.events(agent)]
            for (name, address), expected in self.expected.items():
                told = [text for text in texts if re.search(rf"\b{re.escape(address)}\b", text)]
                same = len(told) == len(expected) and all(e in t for e, t in zip(expected, told, strict=True))
                if name == agent.name and not same:
                    found.append((name, address, expected, told))
        return found

    def told_of(self, agent: Agent, address: str) -> list[str]:
        return [e["text"] for e in self.events(agent) if re.search(rf"\b{re.escape(address)}\b", e["text"])]


def state_of(agent: Agent) -> bytes:
    """What it remembers; a witness has nothing to remember there."""
    path = agent.home / "state.json"
    return path.read_bytes() if path.exists() else b""


def memory_bytes(agent: Agent) -> int:
    assert agent.process is not None
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    match = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with lan("alpha", "beta", "gamma", "mallory") as hosts:
        found = Scene(tmp_path, hosts)
        found.prepare()
        try:
            for agent in found.agents:
                agent.start()
            yield found
        finally:
            for agent in found.agents:
                agent.close()


@pytest.mark.soak  # a minute
@pytest.mark.timeout_s(600)
def test_nothing_gets_in_and_everything_is_told_once(scene: Scene, tmp_path: Path) -> None:
    with mallory(scene.hosts[3].command, TESTS) as attack:
        relay = scene.address()
        beta_host, beta_port = scene.beta.address.split(":")
        attack("relay", **{"from": relay}, listen=1500, host=beta_host, port=int(beta_port))
        tested = Protected(tmp_path, scene.alpha, scene.beta)
        tested.source.mkdir()
        (tested.source / "first").write_bytes(os.urandom(100_000))
        made = scene.alpha.json("protect", tested.source, f"{relay}:1500:{tested.copy}", "--wait")
        tested.id = str(made["id"])
        watch = (
            "failover",
            "add",
            scene.alpha.address,
            "--name",
            "web",
            "--interval",
            "0.3",
            "--misses",
            "3",
        )
        scene.beta.json(*watch, "--address", f"{scene.hosts[0].address}/24", "--witness", scene.gamma.address)
        until(lambda: scene.beta.json("failover", "show", "web")["source_name"] == "alpha")
        assert scene.beta.dtctl("trust", "revoke", "revoked").code == 0
        before = {agent.name: state_of(agent) for agent in scene.agents}
        for agent in scene.agents:
            scan_port_of_agents(scene, attack, agent)
        scan_port_of_clients(scene, attack)
        scan_heartbeats(scene, attack)
        settled = {agent.name: memory_bytes(agent) for agent in scene.agents}
        play_on_the_line(scene, attack, tested)
        be_a_hostile_source(scene, attack)
        for _ in range(ROUNDS):
            press(scene, attack)
        assert scene.told_otherwise() == []
        for agent in scene.agents:
            assert state_of(agent) == before[agent.name], agent.name
            assert memory_bytes(agent) < settled[agent.name] + GROWTH_BYTES, agent.name
            assert agent.dtctl("ping").code == 0
            assert "Traceback" not in (agent.home / "dtd.out").read_text()
        tested.assert_equal()
        assert tested.status["target_data_state"] == "OK"
        replay_heartbeats(scene, attack)


def scan_port_of_agents(scene: Scene, attack: Mallory, agent: Agent) -> None:
    host, port = agent.address.split(":")

    def knock(how: str, text: str, **order: Any) -> str:
        address = scene.address()
        scene.expect(agent, address, text)
        got = attack(how, host=host, port=int(port), **{"from": address}, **order)
        assert "replicator" not in got.lower() and agent.uuid not in got, got
        return got

    identity = load_identity(Home(str(agent.home)).identity, agent.name)
    greeting = (GREETING % OTHER.encode()).decode()
    unpaired = Agent(scene.directory / f"unpaired-{agent.name}", "stranger")
    dtd.pair(unpaired)  # makes its keys
    expired = scene.ours.issue("expired", days=-0.5)[0]
    listed, certificate = scene.ours.issue("listed", agent_uuid=OTHER)
    scene.revoke(certificate)
    nobody = scene.ours.issue("nobody-in-particular")[0]
    knock("tls", "it shows no certificate", bytes=greeting)
    knock("tls", "is not known", certificate=str(Home(str(unpaired.home)).credentials))
    foreign = scene.theirs.issue("foreign", agent_uuid=identity.uuid)[0]
    knock("tls", "is not known", certificate=str(foreign), bytes=greeting)
    knock("tls", "not valid now", certificate=str(expired), bytes=greeting)
    knock("tls", "is revoked by its authority", certificate=str(listed), bytes=greeting)
    knock("tls", "names no agent", certificate=str(nobody), bytes=greeting)
    knock("tls", "an older TLS than 1.3", old=True)
    knock("plain", "plain text is refused", bytes=greeting)
    knock("plain", "closed", bytes=greeting[:9], half=True)
    knock("plain", "", bytes="GET / HTTP/1.1\r\n\r\n")
    knock("plain", "", bytes="\x16\x03\x01\xff\xff" + "\0" * 400, half=True)
    knock("plain", "", bytes="REPLICATOR 1 " + "x" * 300)
    if agent is scene.beta:
        knock("plain", "did not say", bytes="")
        credentials = str(Home(str(scene.revoked.home)).credentials)
        knock("tls", "is revoked here", certificate=credentials, bytes=greeting)


def scan_port_of_clients(scene: Scene, attack: Mallory) -> None:
    host = scene.beta.address.rpartition(":")[0]
    expired = str(scene.ours.issue(LOOKS, "expired-person.pem", days=-0.5)[0])
    listed, certificate = scene.ours.issue(LOOKS, "listed-person.pem")
    scene.revoke(certificate)

    def ask(requests: list[tuple[str, str]], texts: tuple[str, ...], **order: Any) -> list[str]:
        address = scene.address()
        scene.expect(scene.beta, address, *texts)
        got = []
        for method, path in requests:
            body = "{}"
            request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            request += "" if "certificate" in order else "Authorization: Bearer 00\r\n"
            request += "Connection: close\r\n\r\n" + body
            said = attack("tls", host=host, port=CONTROL, **{"from": address}, bytes=request, **order)
            got.append(said.split(" ")[1] if said.startswith("HTTP/1.1 ") else said)
        return got

    status = [("GET", "/v1/connections")]
    changes = [key for key, rule in RULES.items() if rule.words and not key[1].startswith("/v1/log")]
    filled = [(method, re.sub(r"\{\w+\}", "1", path)) for method, path in changes]
    assert ask(status + filled[:3], ()) == ["401"] * 4  # dtctl asks like that before it logs in
    assert not ask(status, ("",), certificate=str(scene.theirs.issue("root")[0]))[0].isdigit()
    assert not ask(status, ("",), certificate=expired)[0].isdigit()
    assert not ask(status, ("",), certificate=str(listed))[0].isdigit()
    assert not ask(status, ("",), old=True)[0].isdigit()
    nobody = str(scene.ours.issue(NOBODY, "nobody.pem")[0])
    assert set(ask(status + filled[:3], ("is refused",), certificate=nobody)) == {"403"}
    looks = str(scene.ours.issue(LOOKS, "looks.pem")[0])
    found = ask(status + filled, ("is let in", "is refused"), certificate=looks)
    assert found[0] == "200" and set(found[1:]) == {"403"}, list(zip(filled, found[1:], strict=True))
    address = scene.address()
    scene.expect(scene.beta, address, "no TLS")
    assert "200" not in attack(
        "plain", host=host, port=CONTROL, **{"from": address}, bytes="GET /v1/ping\r\n\r\n"
    )


def scan_heartbeats(scene: Scene, attack: Mallory) -> None:
    host, port = scene.alpha.address.split(":")
    beat = Beat(Kind.QUESTION, OTHER, os.urandom(NONCE_BYTES))
    wrong = [encode(beat, os.urandom(32)), os.urandom(DATAGRAM_BYTES), b"rhb1", b"", os.urandom(1400)]
    order = {"from": scene.address(), "datagrams": [data.hex() for data in wrong], "count": 400 * ROUNDS}
    assert attack("datagrams", host=host, port=int(port), **order) == "0 answers"
    assert scene.beta.json("failover", "show", "web")["phase"] == "watching"


def play_on_the_line(scene: Scene, attack: Mallory, tested: Protected) -> None:
    """What was recorded, swapped, repeated, cut on its way: the session ends, and goes on with a new one."""
    for number, deed in enumerate(("swap", "repeat", "flip", "truncate")):
        since = tested.status["connected_since"]
        attack("do", what=deed)
        (tested.source / f"during-{deed}").write_bytes(os.urandom(200_000))
        until(lambda: attack("is_done") == "done", 20)
        until(lambda s=since: tested.status["connected_since"] not in (s, None), 60)
        tested.drained()
        assert (tested.copy / f"during-{deed}").stat().st_size == 200_000, number
    host, port = scene.beta.address.split(":")
    address = scene.address()
    scene.expect(scene.beta, address, "")
    attack("replay", host=host, port=int(port), **{"from": address})
    tested.drained()


def be_a_hostile_source(scene: Scene, attack: Mallory) -> None:
    """mallory is paired: it may send a copy, and nothing that is none."""
    host, port = scene.beta.address.split(":")
    common = {
        "host": host,
        "port": int(port),
        "identity": Home(str(scene.mallory.home)).credentials,
        "trust": Home(str(scene.mallory.home)).trust,
        "uuid": scene.mallory.uuid,
    }
    place = scene.directory / "of-mallory"
    for number, what in enumerate(("replay", "reorder", "truncate", "oversize", "count", "flip", "type")):
        connection = f"77777777-7777-4777-8777-{number:012}"
        ended = attack(
            "session",
            **{"from": scene.address()},
            connection=connection,
            target=str(place / what),
            what=what,
            patience_s=1.0 if what == "replay" else 30.0,
            **common,
        )
        assert os.listdir(place / what) == ["a"], what
        if what == "replay":  # so are sessions begun that take up an earlier one: it is left out
            assert ended == ""
            continue
        assert ended and "refused" not in ended, (what, ended)
        log = scene.beta.home / "log" / f"receiver-{connection}.log"
        told = [line for line in log.read_text().splitlines() if line != "connected to source"]
        assert len(told) == 1, (what, log.read_text())
    (connection,) = scene.alpha.json("status")
    stolen = attack(
        "session",
        **{"from": scene.address()},
        connection=connection["uuid"],
        target=str(scene.directory / "copy"),
        what="replay",
        patience_s=1.0,
        **common,
    )
    assert "belongs to another source" in stolen


def press(scene: Scene, attack: Mallory) -> None:
    """Many at once, and slow ones: others are served meanwhile, and the log is not flooded."""
    host, port = scene.beta.address.split(":")
    address = scene.address()
    attack("flood", host=host, port=int(port), **{"from": address}, count=300, bytes="nonsense\n")
    assert 1 <= len(scene.told_of(scene.beta, address)) <= limits.REFUSALS_LOGGED
    slow = scene.address()
    began_s = time.monotonic()
    patience_s = 4 * limits.GREETING_TIMEOUT_S
    held = attack("loris", host=host, port=int(port), **{"from": slow}, count=40, patience_s=patience_s)
    assert held.startswith("0 held"), held
    assert scene.beta.dtctl("status").code == 0
    assert time.monotonic() < began_s + patience_s + 10
    assert 1 <= len(scene.told_of(scene.beta, slow)) <= limits.REFUSALS_LOGGED


def replay_heartbeats(scene: Scene, attack: Mallory) -> None:
    """The last: the source is cut off, and what it once answered is said again in its place."""
    command = [*scene.hosts[1].command, sys.executable, "-c", _BEAT]
    heard = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    source = socket.inet_aton(scene.hosts[0].address)
    answers = [frame for frame in heard if bytes.fromhex(frame)[26:30] == source]
    assert answers, "the source has answered nobody"
    scene.hosts[0].cut()
    attack("frames", frames=answers[-20:], seconds=4)
    until(lambda: scene.beta.json("failover", "show", "web")["phase"] == "asking", 30)
