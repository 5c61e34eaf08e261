"""RT-02…05, RT-09: the forms of a restore that are not the usual one. One set of agents for all of them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kit.dtd import Agent, running
from kit.trees import assert_same_tree, snapshot

pytestmark = [pytest.mark.fs, pytest.mark.e2e]


class Hosts(NamedTuple):
    """`alpha` is the source, `beta` keeps the copies, `gamma` is another host. `below`: for directories."""

    below: Path
    alpha: Agent
    beta: Agent
    gamma: Agent


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    below = tmp_path_factory.mktemp("restores")
    with running(below, "alpha", "beta", "gamma") as (alpha, beta, gamma):
        yield Hosts(below, alpha, beta, gamma)


class Set:
    """A replication set of some directories of `alpha`, mounted and copied."""

    def __init__(self, hosts: Hosts, name: str, *directories: str) -> None:
        self.hosts, self.name = hosts, name
        self.sources = [hosts.below / name / "source" / directory for directory in directories]
        self.copies = [hosts.below / name / "copy" / directory for directory in directories]
        self.id = ""

    def connect(self) -> None:
        alpha = self.hosts.alpha
        alpha.json("repset", "create", self.name)
        maps: list[str] = []
        for source, copy in zip(self.sources, self.copies, strict=True):
            alpha.json("mount", "add", source)
            alpha.json("repset", "rule", self.name, "add", source)
            maps += ["--map", f"{source}={copy}"]
        self.id = str(alpha.json("connect", self.name, self.hosts.beta.address, *maps)["id"])
        self.drained()

    def fill(self) -> None:
        for index, source in enumerate(self.sources):
            (source / "dir" / "deep").mkdir(parents=True)
            (source / "empty").mkdir()
            for number in range(20):
                (source / "dir" / f"file {number}").write_text(f"content {number} of {index}")
            (source / "dir" / "deep" / "leaf").write_bytes(os.urandom(200_000))
            (source / "link").symlink_to("dir/deep/leaf")
            os.link(source / "dir" / "file 0", source / "second name")

    @property
    def status(self) -> dict[str, Any]:
        (status,) = [s for s in self.hosts.alpha.json("status") if str(s["id"]) == self.id]
        assert isinstance(status, dict)
        return status

    def drained(self) -> None:
        waited = self.hosts.alpha.dtctl("wait", self.id, "--timeout", "50")
        assert waited.code == 0, f"{waited.err}{self.status}"

    def stop(self) -> None:
        self.hosts.alpha.json("transmit", "stop", self.id)

    def restore(self, agent: Agent, key: str, *options: str | Path) -> dict[str, Any]:
        found: dict[str, Any] = agent.json("restore", "start", key, *options, "--wait")
        assert found["phase"] == "complete", found
        return found

    def check_protected(self, sent_before: int = 0) -> None:
        """Later changes arrive, no mirror was needed, and both sides are equal. `sent_before`: by the mirror
        of the same process.
        """
        for source in self.sources:
            (source / "later").write_text("and on")
        self.drained()
        for source, copy in zip(self.sources, self.copies, strict=True):
            assert_same_tree(source, copy)
        status = self.status
        assert status["target_data_state"] == "OK" and status["sent_mirror_bytes"] < sent_before + 2000


@pytest.fixture
def made(hosts: Hosts, request: pytest.FixtureRequest) -> Iterator[Set]:
    """A set named after its test, of as many directories as that says by a marker's parameter."""
    names = getattr(request, "param", ("data",))
    name = request.node.originalname.removeprefix("test_")
    made = Set(hosts, name, *names)
    for source in made.sources:
        source.mkdir(parents=True)
    made.fill()
    made.connect()
    yield made
    hosts.alpha.dtctl("disconnect", made.id)
    for source in made.sources:
        hosts.alpha.dtctl("mount", "remove", source)


def test_older_data_on_the_original_and_orphans_that_move(made: Set) -> None:
    """Only what is older is sent; what the copy does not have is kept elsewhere."""
    (source,), (copy,) = made.sources, made.copies
    away = made.hosts.below / "orphans of a restore"
    made.stop()
    for number in (3, 4):  # as from a backup
        path = source / "dir" / f"file {number}"
        path.write_text("older content")
        os.utime(path, (1_000_000_000, 1_000_000_000))
    (source / "dir" / "only here").write_text("not in the copy")
    (source / "tree" / "of").mkdir(parents=True)
    (source / "tree" / "of" / "orphans").write_text("neither")
    before = snapshot(copy)
    found = made.restore(
        made.hosts.alpha,
        made.id,
        *("--orphans", "move", "--orphans-directory", away, "--orphans-over-limit", "--even-if", "newer"),
    )
    assert found["sent_bytes"] < 20_000 and "moved 2 files" in found["orphans"], found
    assert snapshot(source) == before == snapshot(copy)
    (moved,) = away.glob("*/*")
    assert (moved / "dir" / "only here").read_text() == "not in the copy"
    assert (moved / "tree" / "of" / "orphans").read_text() == "neither"
    made.check_protected()


@pytest.mark.parametrize("made", [("one", "two")], indirect=True)
def test_several_directories_come_home(made: Set) -> None:
    made.stop()
    before = [snapshot(copy) for copy in made.copies]
    for source in made.sources:
        shutil.rmtree(source / "dir")
    (made.sources[1] / "link").unlink()
    made.restore(made.hosts.alpha, made.id, "--even-if", "newer")
    assert [snapshot(source) for source in made.sources] == before
    made.check_protected()


@pytest.mark.parametrize("made", [("lost", "alive")], indirect=True)
def test_a_source_of_which_a_part_is_alive(made: Set) -> None:
    """The disk of one directory was replaced; a program goes on with the other."""
    lost, alive = made.sources
    made.stop()
    before = snapshot(made.copies[0])
    for path in lost.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    with open(alive / "dir" / "file 1", "r+") as used:
        used.write("CONTENT")
        used.flush()
        whole = made.hosts.alpha.dtctl("restore", "start", made.id, "--even-if", "newer")
        assert whole.code == 1 and "busy" in whole.err
        made.restore(made.hosts.alpha, made.id, "--path", lost, "--even-if", "newer")
        assert snapshot(lost) == before
    assert (alive / "dir" / "file 1").read_text() == "CONTENT 1 of 1"
    made.hosts.alpha.json("transmit", "start", made.id)
    made.drained()
    for source, copy in zip(made.sources, made.copies, strict=True):
        assert_same_tree(source, copy)
    assert (made.copies[1] / "dir" / "file 1").read_text() == "CONTENT 1 of 1"


@pytest.mark.parametrize("made", [("one", "two")], indirect=True)
def test_another_host_and_directory_with_the_definition(made: Set) -> None:
    """Only data and definition come to the other host: it captures nothing, and the source goes on."""
    gamma, place = made.hosts.gamma, made.hosts.below / "on gamma"
    sent = made.status["sent_mirror_bytes"]
    for wrong, why in (
        (("--to", "/proc/x"), "no storage"),
        (("--to", place, "--path", made.sources[1] / "never was"), "the copy has no"),
    ):
        refused = gamma.dtctl("restore", "start", made.name, "--from", made.hosts.beta.address, *wrong)
        assert refused.code and why in refused.err
    options = ("--from", made.hosts.beta.address, "--to", place, "--even-if", "replicating")
    found = made.restore(gamma, made.name, *options, "--definition")
    assert "not replicated" in found["resumed"]
    for source, copy in zip(made.sources, made.copies, strict=True):
        assert_same_tree(place / str(source).lstrip("/"), copy)
    (definition,) = gamma.json("repset", "list")
    assert definition["name"] == made.name
    assert {rule["path"] for rule in definition["rules"]} == {str(source) for source in made.sources}
    assert gamma.json("mount", "list") == [] == gamma.json("status")
    # Again, with maps, into directories that have something of it: only that is sent which differs.
    (place / "one").mkdir()
    maps = [
        argument
        for source, name in zip(made.sources, ("one", "two"), strict=True)
        for argument in ("--map", f"{source}={place / name}")
    ]
    more = ("--from", made.hosts.beta.address, *maps, "--even-if", "replicating")
    made.restore(gamma, made.name, *more)
    for name, copy in zip(("one", "two"), made.copies, strict=True):
        assert_same_tree(place / name, copy)
    made.check_protected(sent)
