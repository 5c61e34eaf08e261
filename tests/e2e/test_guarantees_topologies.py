"""One to many, many to one, chains, hosts that are source and target of each other or of themselves: real
agents and mounts.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from kit import dtd, machine
from kit.dtd import Agent
from kit.hosts import lan
from kit.patience import until
from kit.snapshots import beneath
from kit.trees import assert_same_tree
from kit.unused import build_unused, forget_reads, was_read
from kit.workloads import CHECKS
from kit.writers import writing

pytestmark = pytest.mark.e2e


def wait(agent: Agent, connection: str) -> None:
    waited = agent.dtctl("wait", connection, "--timeout", "60")
    assert waited.code == 0, waited.err


def test_a_chain(tmp_path: Path) -> None:
    """A to B to C: what a receiver writes on B passes through B's own capture, like any program's."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    with dtd.running(tmp_path, "alpha", "beta") as (alpha, beta):
        for directory in (first, second):
            directory.mkdir()
        (first / "before").write_text("mirrored twice")
        onward = str(beta.json("protect", second, third, "--wait")["id"])
        con = str(alpha.json("protect", first, f"{beta.address}:{second}", "--wait")["id"])
        with writing(
            tmp_path / "out", *(("kit.workloads", name, first / name) for name in CHECKS)
        ) as writers:
            until(lambda: all((third / name).is_dir() for name in CHECKS))
            for writer in writers:
                assert int(writer.stop()) > 0
        (first / "link").hardlink_to(first / "before")
        (first / "names").rename(first / "moved")
        wait(alpha, con)
        wait(beta, onward)
        assert_same_tree(first, third)
        assert (third / "before").read_text() == "mirrored twice"
        for agent in (alpha, beta):
            assert agent.json("status")[0]["target_data_state"] == "OK"


def test_active_on_both_sides(tmp_path: Path) -> None:
    """Two hosts keep copies of each other's directories, and do not answer each other's changes for ever."""
    with dtd.running(tmp_path, "alpha", "beta") as (alpha, beta):
        sources = {alpha: tmp_path / "of-alpha", beta: tmp_path / "of-beta"}
        copies = {alpha: tmp_path / "copy-of-alpha", beta: tmp_path / "copy-of-beta"}
        connections = {}
        for agent, other in ((alpha, beta), (beta, alpha)):
            sources[agent].mkdir()
            (sources[agent] / "file").write_text(agent.name)
            target = f"{other.address}:{copies[agent]}"
            connections[agent] = str(agent.json("protect", sources[agent], target, "--wait")["id"])
        for agent, source in sources.items():
            (source / "file").rename(source / "renamed")
            (source / "later").write_text(f"later on {agent.name}")
        for agent, source in sources.items():
            wait(agent, connections[agent])
            assert_same_tree(source, copies[agent])
        sent = [agent.json("status")[0]["sent_ops"] for agent in sources]
        for agent in sources:
            wait(agent, connections[agent])
        assert [agent.json("status")[0]["sent_ops"] for agent in sources] == sent


def test_a_chain_whose_middle_crashes(tmp_path: Path) -> None:
    """Every process on B is killed, what holds its mount included: C follows all the same."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    with dtd.running(tmp_path, "alpha", "beta", "gamma") as (alpha, beta, gamma):
        for directory in (first, second):
            directory.mkdir()
        build_unused(first / "unused", 1, large_bytes=0)
        onward = str(beta.json("protect", second, f"{gamma.address}:{third}", "--wait")["id"])
        con = str(alpha.json("protect", first, f"{beta.address}:{second}", "--wait")["id"])
        wait(beta, onward)
        unread = [forget_reads_of(agent) for agent in (alpha, beta)]
        with writing(tmp_path / "out", *works(first)) as writers:
            until(lambda: all((third / name).is_dir() for name in CHECKS))
            for pause_s in (0.0, 0.5):
                beta.kill_all()
                time.sleep(pause_s)
                beta.start()
                time.sleep(1)
            for writer in writers:
                assert int(writer.stop()) > 0
        wait(alpha, con)
        wait(beta, onward)
        assert all(is_unread() for is_unread in unread)  # an operation of B in doubt is compared, and no more
        assert_same_tree(first, third)
        for name, check in CHECKS.items():
            assert check(third / name) == []


def works(directory: Path, names: Iterable[str] = CHECKS) -> list[tuple[str | Path, ...]]:
    return [("kit.workloads", name, directory / name, "0.005") for name in names]


def forget_reads_of(agent: Agent) -> Callable[[], bool]:
    """Returns what tells whether the unused files of its mount are still unread."""
    (mount,) = agent.json("mount", "list")
    with beneath(agent.home, mount["id"]) as below:
        forget_reads(f"{below}/unused")

    def is_unread() -> bool:
        with beneath(agent.home, mount["id"]) as below:
            return not was_read(f"{below}/unused")

    return is_unread


def mirrors_of(agent: Agent, connection: str) -> int:
    """How many mirrors of a connection have begun."""
    story = agent.json("story", connection, "--limit", "1000")
    return sum(e["dimension"] == "mirror status" and e["event"] == "mirror begins" for e in story)


def test_active_on_both_sides_under_kills(tmp_path: Path) -> None:
    with dtd.running(tmp_path, "alpha", "beta") as agents:
        sources = [tmp_path / f"of-{agent.name}" for agent in agents]
        copies = [tmp_path / f"copy-of-{agent.name}" for agent in agents]
        for source, copy, agent, other in zip(sources, copies, agents, agents[::-1], strict=True):
            source.mkdir()
            agent.json("protect", source, f"{other.address}:{copy}", "--wait")
        mirrored = [mirrors_of(agent, "1") for agent in agents]
        names = ("publish", "names", "generations")
        commands = [command for source in sources for command in works(source, names)]
        with writing(tmp_path / "out", *commands) as writers:
            for agent in agents:
                until(lambda: all((copy / "names").is_dir() for copy in copies))
                agent.kill_all("capture")
                time.sleep(0.3)
                agent.start()
            for writer in writers:
                assert int(writer.stop()) > 0
        for source, copy, agent in zip(sources, copies, agents, strict=True):
            wait(agent, "1")
            assert_same_tree(source, copy)
        assert [mirrors_of(agent, "1") for agent in agents] == mirrored


def test_a_single_server(tmp_path: Path) -> None:
    """One agent is source and target, and all of it is killed but what serves the mount."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    with dtd.running(tmp_path, "alpha") as (alpha,):
        alpha.json("protect", source, copy, "--wait")
        mirrored = mirrors_of(alpha, "1")
        with writing(tmp_path / "out", *works(source)) as writers:
            until(lambda: all((copy / name).is_dir() for name in CHECKS))
            alpha.kill_all("capture")
            time.sleep(0.3)
            alpha.start()
            time.sleep(1)
            for writer in writers:
                assert int(writer.stop()) > 0
        wait(alpha, "1")
        assert_same_tree(source, copy)
        assert mirrors_of(alpha, "1") == mirrored


@pytest.mark.timeout_s(600)
@pytest.mark.parametrize(
    ("agents", "directories"), [(3, 2), pytest.param(4, 5, marks=pytest.mark.soak)], ids=["six", "twenty"]
)
def test_many_sources_to_one_target(agents: int, directories: int, tmp_path: Path) -> None:
    """All of the target is killed while they change."""
    with dtd.running(tmp_path, "target", *(f"source-{n}" for n in range(agents))) as (target, *sources):
        pairs = []
        for number in range(agents * directories):
            agent = sources[number % agents]
            source, copy = tmp_path / f"directory-{number}", tmp_path / f"copy-{number}"
            source.mkdir()
            (source / "before").write_text(f"of {number}")
            connection = str(agent.json("protect", source, f"{target.address}:{copy}")["id"])
            pairs.append((agent, connection, source, copy))
        for agent, connection, _, _ in pairs:
            wait(agent, connection)
        for part in range(2):
            for number, (_, _, source, _) in enumerate(pairs):
                for index in range(20):
                    (source / f"{part}-{index}").write_bytes(os.urandom(1000 * number))
            if part == 0:
                target.kill_all()
                target.start()
        for agent, connection, source, copy in pairs:
            wait(agent, connection)
            assert_same_tree(source, copy)
            assert mirrors_of(agent, connection) == 1


QUEUE = '[queue]\nmemory_size = "32 MiB"\nsegment_size = "1 MiB"\ndisk_size_max = "32 MiB"\n'
QUEUE_BYTES = 64 << 20
WRITTEN_BYTES = 96 << 20
STEP_BYTES = 8 << 20
SLOW_KBIT_PER_S = 40_000


@pytest.mark.timeout_s(240)
@pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces")
def test_one_slow_and_one_dead_target(tmp_path: Path) -> None:
    """The fast one is not held back, and the dead one costs no more than the queue may take."""
    names = ("source", "fast", "slow", "dead")
    source = tmp_path / "data"
    source.mkdir()
    with (
        lan(*names) as hosts,
        dtd.running(tmp_path, *names, hosts=hosts, configuration=QUEUE) as (agent, *targets),
    ):
        copies = {target.name: tmp_path / f"copy-{target.name}" for target in targets}
        connections = {}
        for target in targets:
            at = f"{target.address}:{copies[target.name]}"
            connections[target.name] = str(agent.json("protect", source, at, "--wait")["id"])
        began = {name: mirrors_of(agent, connection) for name, connection in connections.items()}
        hosts[2].slow_down(SLOW_KBIT_PER_S)
        hosts[3].cut()
        lags_s = []
        for number in range(WRITTEN_BYTES // STEP_BYTES):
            (source / str(number)).write_bytes(os.urandom(STEP_BYTES))
            began_s = time.monotonic()
            wait(agent, connections["fast"])
            lags_s.append(time.monotonic() - began_s)
            (mount,) = agent.json("mount", "list")
            assert queued_bytes(agent, mount["id"]) <= QUEUE_BYTES + (2 << 20)
        assert statistics.median(lags_s) < 3, lags_s
        assert_same_tree(source, copies["fast"])
        assert mirrors_of(agent, connections["fast"]) == began["fast"]  # nothing of its stream was lost
        hosts[3].mend()
        for name, connection in connections.items():
            wait(agent, connection)
            assert_same_tree(source, copies[name])


def queued_bytes(agent: Agent, mount_id: str) -> int:
    """What a journal takes in memory and on disk."""
    directories = [Path(f"/dev/shm/replicator-{agent.uuid}/{mount_id}"), agent.home / "queue" / mount_id]
    return sum(
        file.stat().st_blocks * 512
        for d in directories
        if d.is_dir()
        for file in d.iterdir()
        if file.is_file()
    )
