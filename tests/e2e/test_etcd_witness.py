"""An etcd as the witness, from the Debian package etcd-server."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from socket import socket

import pytest
import trio

from replicator.agent.failover.etcd import EtcdWitness, parse_etcd
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
RENEWAL = Renew(agent=S, other=T, epoch=0, lease_s=LEASE_S, enforced=True, holds_lease=True)
BALLOT = Ballot(
    agent=T, candidate=T, owner=S, parent_epoch=0, epoch=1, attempt="1", lease_s=LEASE_S, armed=True
)
RECORD = Promotion(group=G, epoch=1, parent_epoch=0, owner=T, owner_name="beta")


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[str]:
    """`etcd://…` of one that runs."""
    clients, peers = (f"http://127.0.0.1:{_free_port()}" for _ in range(2))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *("etcd", "--data-dir", str(tmp_path / "data"), "--log-outputs", "stderr"),
                *("--listen-client-urls", clients, "--advertise-client-urls", clients),
                *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
                *("--initial-cluster", f"default={peers}"),
            ],
            stdout=log,
            stderr=log,
            env={"PATH": "/usr/bin:/bin", "ETCD_UNSUPPORTED_ARCH": "arm64"},
        )
    try:
        yield clients.replace("http://", "etcd://") + "/replicator"
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def an_agent(name: str) -> EtcdWitness:
    """What one agent has of it: the other one has another."""
    witness = EtcdWitness(parse_etcd(name))
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
