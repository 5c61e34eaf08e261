"""Chains, and hosts that are source and target of each other: real agents and mounts."""

from pathlib import Path

import pytest
from kit import dtd
from kit.dtd import Agent
from kit.protected import until
from kit.trees import assert_same_tree
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
