"""An etcd as the witness, from the Debian package etcd-server."""

import base64
import json
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import trio
from kit.certificates import Issuer

from replicator.agent.failover.etcd import Access, EtcdWitness, parse_etcd
from replicator.errors import UnreachableError
from replicator.failover.lease import Renew, lapse_s
from replicator.failover.witness import Ballot, Tell, Withdraw, WitnessRefusedError
from replicator.failovers import Promotion

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("etcd") is None, reason="needs the Debian package etcd-server"),
]

G, S, T = "group", "source", "target"
LEASE_S = 1.0
NO_USER = Access()
RENEWAL = Renew(agent=S, other=T, epoch=0, lease_s=LEASE_S, enforced=True, holds_lease=True)
BALLOT = Ballot(
    agent=T, candidate=T, owner=S, parent_epoch=0, epoch=1, attempt="1", lease_s=LEASE_S, armed=True
)
RECORD = Promotion(group=G, epoch=1, parent_epoch=0, owner=T, owner_name="beta")


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[str]:
    """`etcd://…` of one that runs."""
    with running(tmp_path) as (address, _):
        yield f"etcd://{address}/replicator"


@contextmanager
def running(directory: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """HOST:PORT. `options` with a certificate: it speaks TLS."""
    scheme = "https" if options else "http"
    address, peers = (f"127.0.0.1:{_free_port()}" for _ in range(2))
    clients, peers = f"{scheme}://{address}", f"http://{peers}"
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            [
                *("etcd", "--data-dir", str(directory / "data"), "--log-outputs", "stderr", *options),
                *("--listen-client-urls", clients, "--advertise-client-urls", clients),
                *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
                *("--initial-cluster", f"default={peers}"),
            ],
            stdout=log,
            stderr=log,
            env={"PATH": "/usr/bin:/bin", "ETCD_UNSUPPORTED_ARCH": "arm64"},
        )
    try:
        yield address, process
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def an_agent(name: str, access: Access = NO_USER) -> EtcdWitness:
    """What one agent has of it: the other one has another."""
    witness = EtcdWitness(parse_etcd(name), access=lambda: access)
    with trio.fail_after(20):
        while True:
            try:
                await witness.watch(G)
                return witness
            except UnreachableError:
                await trio.sleep(0.1)


async def test_a_group_goes_to_its_target_and_home_again(etcd: str) -> None:
    source, target = await an_agent(etcd), await an_agent(etcd)
    assert not (await source.renew(G, Renew(agent=S, other=T, epoch=0, lease_s=LEASE_S))).granted
    assert (await source.renew(G, RENEWAL)).granted
    began_s = time.monotonic()
    while not (answer := await target.vote(G, BALLOT)).given:
        assert answer.wait_s is not None and answer.wait_s <= lapse_s(LEASE_S)
        await trio.sleep(0.05)
    assert lapse_s(LEASE_S) - 0.1 <= time.monotonic() - began_s <= lapse_s(LEASE_S) + 1.0
    assert not (await source.renew(G, RENEWAL)).granted
    await target.withdraw(G, Withdraw(agent=T, attempt="1"))
    assert (await source.renew(G, RENEWAL)).granted

    assert (await target.promoted(G, Tell(agent=T, other=S, promotion=RECORD))).epoch == 1
    refused = await source.renew(G, RENEWAL)
    assert not refused.granted and refused.promotion == RECORD
    home = Ballot(agent=T, candidate=S, owner=T, parent_epoch=1, epoch=2, attempt="2", promotion=RECORD)
    assert (await target.vote(G, home)).given


async def test_an_owner_that_renews_is_not_voted_away(etcd: str) -> None:
    source, target = await an_agent(etcd), await an_agent(etcd)
    given = False
    until_s = time.monotonic() + 2 * lapse_s(LEASE_S)
    while time.monotonic() < until_s:
        assert (await source.renew(G, RENEWAL)).granted
        given = given or (await target.vote(G, BALLOT)).given
        await trio.sleep(LEASE_S / 3)
    assert not given


async def test_a_candidate_that_has_watched_from_the_first_miss_on_need_not_wait(etcd: str) -> None:
    source, target = await an_agent(etcd), await an_agent(etcd)
    assert (await source.renew(G, RENEWAL)).granted
    await target.watch(G)
    await trio.sleep(lapse_s(LEASE_S))
    assert (await target.vote(G, BALLOT)).given


async def test_what_changes_between_reading_and_writing_is_seen(etcd: str) -> None:
    """Both at once, again and again: never is a lease granted after the vote."""
    source, target = await an_agent(etcd), await an_agent(etcd)
    assert (await source.renew(G, RENEWAL)).granted
    await target.watch(G)
    await trio.sleep(lapse_s(LEASE_S) - 0.02)
    story: list[str] = []

    async def renew() -> None:
        story.append("lease" if (await source.renew(G, RENEWAL)).granted else "refused")

    async def vote() -> None:
        if (await target.vote(G, BALLOT)).given:
            story.append("vote")

    for _ in range(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(renew)
            nursery.start_soon(vote)
    if "vote" in story:  # at most the one that was under way then
        assert story[story.index("vote") + 2 :].count("lease") == 0


async def test_nobody_else_is_listened_to(etcd: str) -> None:
    source = await an_agent(etcd)
    await source.renew(G, RENEWAL)
    with pytest.raises(WitnessRefusedError):
        await source.vote(G, Ballot(agent="x", candidate="x", owner=S, parent_epoch=0, epoch=1, attempt="1"))
    with pytest.raises(WitnessRefusedError):
        await source.withdraw("another", Withdraw(agent=T, attempt="1"))


async def test_an_etcd_that_is_not_there_is_no_answer() -> None:
    witness = EtcdWitness(parse_etcd(f"etcd://127.0.0.1:{_free_port()}/replicator"))
    with pytest.raises(UnreachableError):
        await witness.renew(G, RENEWAL)


class Guarded:
    """An etcd that speaks TLS and lets in one user, who may only write below the prefix."""

    def __init__(self, directory: Path, address: str, authority: Path) -> None:
        self.name = f"etcds://{address}/replicator"
        self._url = f"https://{address}/v3/auth/"
        self._tls = ssl.create_default_context(cafile=str(authority))
        self._password = directory / "etcd-password"
        self._password.write_text("s3cret\n")
        self.access = Access("agents", str(self._password), str(authority))

    def set_up(self) -> None:
        """As `etcdctl user add …` and so on does it."""
        prefix = base64.b64encode(b"replicator/").decode()
        end = base64.b64encode(b"replicator0").decode()
        right = {"permType": "READWRITE", "key": prefix, "range_end": end}
        for what, body in (
            ("user/add", {"name": "root", "password": "another"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("role/add", {"name": "witness"}),
            ("role/grant", {"name": "witness", "perm": right}),
            ("user/add", {"name": "agents", "password": "s3cret"}),
            ("user/grant", {"user": "agents", "role": "witness"}),
            ("enable", {}),
        ):
            self._post(what, body)

    def _post(self, what: str, body: object) -> None:
        deadline_s = time.monotonic() + 20
        while True:
            try:
                with urlopen(Request(self._url + what, json.dumps(body).encode()), context=self._tls):
                    return
            except URLError as error:
                if "refused" not in str(error) or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.1)  # it starts


@contextmanager
def guarded(directory: Path) -> Iterator[Guarded]:
    authority = Issuer(directory, "authority")
    pair, _ = authority.issue("localhost")
    options = ("--cert-file", str(pair), "--key-file", str(pair))
    with running(directory, *options) as (address, _):
        found = Guarded(directory, address, authority.path)
        found.set_up()
        yield found


async def test_by_tls_and_as_a_user(tmp_path: Path) -> None:
    with guarded(tmp_path) as etcd:
        source, target = await an_agent(etcd.name, etcd.access), await an_agent(etcd.name, etcd.access)
        assert (await source.renew(G, RENEWAL)).granted
        source._token = target._token = "of a time before etcd was started again"
        assert (await source.renew(G, RENEWAL)).granted
        await target.watch(G)
        await trio.sleep(lapse_s(LEASE_S))
        assert (await target.vote(G, BALLOT)).given
        assert not (await source.renew(G, RENEWAL)).granted


async def test_who_is_not_let_in_is_told_why(tmp_path: Path) -> None:
    with guarded(tmp_path) as etcd:
        await an_agent(etcd.name, etcd.access)
        wrong = tmp_path / "wrong"
        wrong.write_text("guessed")
        for access, why in (
            (Access("agents", str(wrong), etcd.access.authorities), "authentication failed"),
            (Access("", "", etcd.access.authorities), r"failover\.etcd_user"),
            (Access("agents", str(tmp_path / "no"), etcd.access.authorities), "failover.etcd_password_file"),
            (Access("agents", str(wrong), str(tmp_path / "no")), "failover.etcd_authorities"),
            (Access("agents", str(wrong), ""), "CERTIFICATE_VERIFY_FAILED"),
        ):
            witness = EtcdWitness(parse_etcd(etcd.name), access=lambda access=access: access)
            with pytest.raises(UnreachableError, match=why) as told:
                await witness.renew(G, RENEWAL)
            assert "s3cret" not in str(told.value) and "guessed" not in str(told.value)
        elsewhere = EtcdWitness(
            parse_etcd(etcd.name.replace("/replicator", "/others")), access=lambda: etcd.access
        )
        with pytest.raises(UnreachableError, match="permission denied"):
            await elsewhere.renew(G, RENEWAL)
