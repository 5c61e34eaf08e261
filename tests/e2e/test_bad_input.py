"""Mistakes of users and of their surroundings: the exit code of the contract, one line that says what to do,
nothing half-made.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit import dtd
from kit.dtd import Agent, Result
from kit.patience import until
from kit.protected import serves

pytestmark = pytest.mark.e2e

FAILED, USAGE, UNREACHABLE = 1, 2, 3


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One agent for everything that leaves no trace in it."""
    with dtd.running(tmp_path_factory.mktemp("bad"), "alpha") as (alpha,):
        yield alpha


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Agent]:
    with dtd.running(tmp_path, "alpha") as (alpha,):
        yield alpha


def assert_refused(result: Result, code: int, *words: str) -> None:
    shown = f"exit code {result.code}, stdout {result.out!r}, stderr {result.err!r}"
    assert result.code == code, shown
    assert result.out == "" and result.err.count("\n") == 1 and len(result.err) < 500, shown
    assert result.err.split(":")[0] in ("dtd", "dtctl"), shown
    for word in words:
        assert word in result.err, f"no {word!r} in: {shown}"


def assert_untouched(agent: Agent) -> None:
    for what in (("mount", "list"), ("repset", "list"), ("status",)):
        assert agent.json(*what) == [], what


# --- configuration ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[queue]\nmemory_sizes = 3\n", ("queue.memory_sizes", "did you mean queue.memory_size?")),
        ("[queue]\nmax_connections = 3\n", ("queue.max_connections", "known:", "memory_size")),
        ("[tls]\nkey = 'x'\n", ("tls", "known:", "agent")),
        ("listen = '127.0.0.1:1500'\n", ("listen", "unknown")),
        ("agent = 5\n", ("agent", "[agent]")),
        ("[agent]\nlisten = 1500\n", ("agent.listen", "text")),
        ("[agent]\nlisten = '127.0.0.1:99999'\n", ("agent.listen",)),
        ("[agent]\ninsecure = 'yes'\n", ("agent.insecure", "true or false")),
        ("[queue]\nmemory_size = '5 MiB'\n", ("queue.memory_size", "32 MiB")),
        ("[queue]\nmemory_size = '64 Mi'\n", ("queue.memory_size", "must be a size")),
        ("[queue]\ndisk_directory = 'queue'\n", ("queue.disk_directory", "absolute")),
        ("[queue]\nalert_percent = 0\n", ("queue.alert_percent", "1 to 100")),
        ("[queue\n", ("not valid TOML", "line 1")),
        ("\x00", ("not valid TOML",)),
    ],
)
def test_a_configuration(text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "replicator.toml").write_text(text)
    refused = Agent(tmp_path, "alpha").dtd()
    assert_refused(refused, USAGE, str(tmp_path / "replicator.toml"), *words)
    assert sorted(os.listdir(tmp_path)) == ["replicator.toml"]  # nothing half-made


# --- a home, a port ---


def test_a_second_agent(shared: Agent) -> None:
    words = (str(shared.home), "another agent", "--home")
    assert_refused(shared.dtd("--listen", f"127.0.0.1:{dtd.free_port()}"), FAILED, *words)
    assert shared.dtctl("status").code == 0


def test_a_port_in_use(shared: Agent, tmp_path: Path) -> None:
    other = Agent(tmp_path / "other", "other")
    assert_refused(other.dtd("--listen", shared.address), FAILED, str(shared.port), "in use", "--listen")


def test_no_agent(tmp_path: Path) -> None:
    nobody = Agent(tmp_path / "none", "nobody")
    for command in (("status",), ("mount", "list"), ("protect", tmp_path, "/x"), ("events",)):
        assert_refused(nobody.dtctl(*command), UNREACHABLE, "dtd --home", str(tmp_path / "none"))
    assert_refused(nobody.dtd("--stop-mounts"), USAGE, "no such home")
    assert not (tmp_path / "none").exists()


# --- what cannot be captured ---


@pytest.mark.parametrize("path", ["/", "/proc", "/proc/sys", "/sys", "/sys/kernel", "/dev"])
def test_what_is_no_data(shared: Agent, path: str) -> None:
    assert_refused(shared.dtctl("mount", "add", path), USAGE, "root" if path == "/" else path)
    refused = shared.dtctl("protect", path, "/nowhere/at/all")
    assert_refused(refused, FAILED if path == "/" else USAGE, path)  # whatever the target, / overlaps it
    assert_untouched(shared)


def test_impossible_paths(shared: Agent, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "source").mkdir()
    for path, word in (
        ("", "empty"),  # a script's unset variable, not the current directory
        (tmp_path / "none", "o such"),
        (file, "directory"),
        (file / "below", "directory"),
        (tmp_path / "loop", "symbolic links"),
        (str(tmp_path) + "/x" * 3000, "4095"),
        (str(tmp_path) + "/" + "x" * 300, "long"),
        (shared.home, "own files"),
    ):
        assert_refused(shared.dtctl("mount", "add", path), USAGE, word)
        assert_refused(shared.dtctl("protect", path, tmp_path / "copy"), USAGE, word)
    for mountpoint, word in ((file, "directory"), (tmp_path / "none", "o such"), ("", "empty")):
        assert_refused(shared.dtctl("mount", "add", tmp_path / "source", "--at", mountpoint), USAGE, word)
    assert_refused(shared.dtctl("mount", "remove", tmp_path / "source"), USAGE, "not captured")
    assert_untouched(shared)
    assert file.read_text() == "content"


def test_a_mount_inside_a_mount(alone: Agent, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    alone.json("mount", "add", source)
    for path in (source, source / "below", tmp_path):
        assert_refused(alone.dtctl("mount", "add", path), FAILED, str(source))
    assert_refused(alone.dtctl("mount", "add", alone.home, "--at", source), FAILED)
    assert len(alone.json("mount", "list")) == 1


# --- targets ---


def talk(client: socket.socket) -> None:
    """As a mail server does: it speaks first, and answers what it does not understand."""
    client.sendall(b"220 mail.example.org ESMTP\r\n")
    while client.recv(1000):
        client.sendall(b"500 5.5.2 Error: bad syntax\r\n")


def keep_silent(client: socket.socket) -> None:
    while client.recv(1000):
        pass


def close(client: socket.socket) -> None:
    pass


@contextmanager
def stranger(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server on this host that is no agent. Gives its port."""
    clients: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(client: socket.socket) -> None:
        try:
            behave(client)
        except OSError:
            pass  # it hung up
        finally:
            client.close()

    def accept() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            clients.append(client)
            threads.append(threading.Thread(target=serve, args=(client,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for client in clients:
                try:
                    client.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # closed already
            for thread in threads:
                thread.join()


@pytest.mark.parametrize("behave", [talk, keep_silent, close])
def test_a_target_that_is_no_agent(
    shared: Agent, behave: Callable[[socket.socket], None], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("content")
    with stranger(behave) as port:
        refused = shared.dtctl("protect", source, f"127.0.0.1:{port}:{tmp_path}/copy")
    assert_refused(refused, FAILED, f"127.0.0.1:{port}", "cannot connect")
    assert_untouched(shared)
    assert not os.path.ismount(source) and (source / "file").read_text() == "content"
    assert not (tmp_path / "copy").exists()


def test_destinations(shared: Agent, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for destination in (
        "",
        ":",
        "backup",
        "host:",
        "127.0.0.1:99999:/copy",
        "127.0.0.1:0:/copy",
        "127.0.0.1:port:/copy",
        "[::1:/copy",
        "127.0.0.1:1500:copy",
    ):
        assert_refused(shared.dtctl("protect", source, destination), USAGE)
    assert_refused(
        shared.dtctl("protect", source, f"no-such-host.invalid:1500:{tmp_path}/copy"),
        FAILED,
        "no-such-host.invalid",
    )
    assert_untouched(shared)


def test_targets_in_each_other(alone: Agent, tmp_path: Path) -> None:
    source, other, copy = tmp_path / "source", tmp_path / "other", tmp_path / "copy"
    for directory in (source, other):
        directory.mkdir()
    (tmp_path / "way").symlink_to("source")
    # A target inside its own source, however it is spelt.
    for target in (source, source / "below", tmp_path, tmp_path / "way" / "below", f"{source}/x/../below"):
        assert_refused(alone.dtctl("protect", source, target), FAILED, "overlap")
    assert_untouched(alone)
    alone.json("protect", source, copy, "--wait")
    for target in (copy, copy / "below", tmp_path / "source" / ".." / "copy"):  # one place for two sets
        assert_refused(alone.dtctl("protect", other, target), FAILED, str(copy))
    assert_refused(alone.dtctl("protect", copy, source), FAILED, "overlap")
    assert not os.path.ismount(other) and os.listdir(copy) == []
    (name,) = (repset["name"] for repset in alone.json("repset", "list"))
    assert_refused(alone.dtctl("repset", "delete", name), FAILED, "disconnect")
    assert_refused(alone.dtctl("repset", "rename", name, "else"), FAILED, "disconnect")
    assert_refused(alone.dtctl("mount", "remove", source), FAILED, "dtctl disconnect")
    assert len(alone.json("status")) == len(alone.json("mount", "list")) == 1


# --- replication sets ---


def test_sets(alone: Agent) -> None:
    for character in '.?<>:"\\/*|':
        refused = alone.dtctl("repset", "create", f"a{character}b")
        assert_refused(refused, USAGE, character)
    for name, word in (("", "name"), ("x" * 101, "100"), ("a\nb", ""), ("  ", "")):
        assert_refused(alone.dtctl("repset", "create", name), USAGE, word)
    assert_untouched(alone)
    assert alone.dtctl("repset", "create", "x" * 100).code == 0
    assert alone.dtctl("repset", "create", "web").code == 0
    assert_refused(alone.dtctl("repset", "create", "web"), FAILED, "web")
    assert_refused(alone.dtctl("repset", "copy", "web", "x" * 100), FAILED)
    assert_refused(alone.dtctl("repset", "copy", "none", "other"), USAGE, "web")
    for path, word in (
        ("/" + "x" * 259, "259"),
        ("/a*/b", "last"),
        ("", "empty"),
    ):
        assert_refused(alone.dtctl("repset", "rule", "web", "add", path), USAGE, word)
    assert_refused(alone.dtctl("repset", "rule", "web", "remove", "/a"), USAGE, "/a")
    assert_refused(alone.dtctl("repset", "rule", "web", "swap", "/a"), USAGE)
    assert_refused(alone.dtctl("connect", "web", "127.0.0.1:1"), FAILED, "includes nothing")


def test_a_stale_generation(alone: Agent) -> None:
    alone.json("repset", "create", "web")
    first = alone.json("repset", "show", "web")["generation"]
    assert alone.dtctl("repset", "rule", "web", "add", "/a", "--generation", str(first)).code == 0
    refused = alone.dtctl("repset", "rule", "web", "add", "/b", "--generation", str(first))
    assert_refused(refused, FAILED, "web", str(first))
    shown = alone.json("repset", "show", "web")
    assert [rule["path"] for rule in shown["rules"]] == ["/a"] and shown["generation"] == first + 1


# --- what a crash leaves ---


@pytest.mark.parametrize("how", ["start", "stop-mounts"])
def test_a_stale_mount(alone: Agent, tmp_path: Path, how: str) -> None:
    """The capture was killed while no agent ran: the mount answers nothing until an agent has looked."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    alone.json("mount", "add", source, "--binding", "pyfuse3")
    con = str(alone.json("protect", source, copy, "--wait")["id"])
    (mount,) = alone.json("mount", "list")
    alone.stop()
    (source / "queued").write_text("before the kill")
    os.kill(mount["pid"], signal.SIGKILL)
    until(lambda: not serves(source))
    with pytest.raises(OSError, match="not connected"):
        os.listdir(source)
    if how == "stop-mounts":
        stopped = alone.dtd("--stop-mounts")
        assert (stopped.code, stopped.err) == (0, "")
        assert not os.path.ismount(source)
    alone.start()
    until(lambda: serves(source))
    (source / "later").write_text("after the start")
    assert alone.dtctl("wait", con, "--timeout", "30").code == 0
    for name in ("queued", "later"):
        assert (copy / name).read_text() == (source / name).read_text()
    assert alone.json("status")[0]["target_data_state"] == "OK"
