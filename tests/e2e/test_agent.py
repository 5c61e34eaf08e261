"""An agent and its children as processes: what survives which end, and what is refused at the start."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import dtd
from kit.dtd import Agent
from kit.patience import until
from kit.protected import serves

pytestmark = pytest.mark.e2e


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Agent]:
    with dtd.running(tmp_path, "alpha") as (alpha,):
        yield alpha


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("content")
    return source


def reads(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def children(agent: Agent) -> dict[str, int]:
    """Process ids of an agent's children, by role."""
    found = {}
    for entry in os.listdir("/proc"):
        try:
            command = Path("/proc", entry, "cmdline").read_bytes() if entry.isdigit() else b""
        except OSError:
            continue
        if str(agent.home).encode() in command:
            for role in ("capture", "sender", "receiver"):
                # A process that was started ahead has its words separated by blanks.
                if f"-m replicator.{role}.process ".encode() in command.replace(b"\0", b" "):
                    found[role] = int(entry)
    return found


def events(agent: Agent) -> list[int]:
    return [event["id"] for event in agent.json("events", "--limit", "1000")]


def test_children_outlive_a_killed_agent_and_are_adopted(alone: Agent, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    con = alone.json("protect", source, copy, "--wait")
    before = children(alone)
    assert set(before) == {"capture", "sender", "receiver"}
    alone.kill()
    (source / "while").write_text("nobody supervises")
    until(lambda: reads(copy / "while") == "nobody supervises")  # the data goes on flowing
    assert alone.dtctl("status").code == 3  # and no child holds on to the agent's sockets
    alone.start()
    assert children(alone) == before
    (status,) = alone.json("status")
    assert (status["uuid"], status["id"], status["sender_pid"]) == (con["uuid"], con["id"], before["sender"])
    assert events(alone).count(9021) == 3


def test_a_clean_stop_ends_flows_and_leaves_mounts(alone: Agent, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    con = str(alone.json("protect", source, copy, "--wait")["id"])
    before = children(alone)
    alone.stop()
    assert children(alone) == {"capture": before["capture"]}
    (source / "while").write_text("queued")
    assert not (copy / "while").exists()
    alone.start()
    assert alone.dtctl("wait", con, "--timeout", "30").code == 0
    assert reads(copy / "while") == "queued"


@pytest.mark.parametrize("role", ["capture", "sender", "receiver"])
def test_a_killed_child_comes_back(alone: Agent, source: Path, tmp_path: Path, role: str) -> None:
    copy = tmp_path / "copy"
    con = str(alone.json("protect", source, copy, "--wait")["id"])
    before = children(alone)
    os.kill(before[role], signal.SIGKILL)
    after = until(lambda: (now := children(alone)).get(role, before[role]) != before[role] and now)
    assert {r: p for r, p in after.items() if r != role} == {r: p for r, p in before.items() if r != role}
    until(lambda: serves(source))
    (source / "new").write_text("after")
    assert alone.dtctl("wait", con, "--timeout", "30").code == 0
    assert reads(copy / "new") == "after"
    (status,) = alone.json("status")
    assert status["target_data_state"] == "OK"
    assert 9022 in events(alone)


def test_a_capture_that_died_with_the_agent_is_mounted_again(alone: Agent, source: Path) -> None:
    alone.json("mount", "add", source, "--binding", "pyfuse3")
    alone.kill()
    os.kill(children(alone)["capture"], signal.SIGKILL)
    until(lambda: not children(alone))
    with pytest.raises(OSError):
        os.listdir(source)  # a stale mount
    alone.start()
    until(lambda: serves(source))
    assert reads(source / "file") == "content"
    assert 9012 in events(alone)


def test_stop_mounts_takes_everything_down(alone: Agent, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    con = str(alone.json("protect", source, copy, "--wait")["id"])
    assert alone.dtctl("transmit", "stop", con).code == 0
    (source / "unsent").write_text("kept on disk")
    stopped = alone.dtd("--stop-mounts")
    assert (stopped.code, stopped.err) == (0, "")
    assert alone.process is not None and alone.process.wait(20) == 0
    assert not os.path.ismount(source) and not children(alone)
    assert reads(source / "unsent") == "kept on disk"
    alone.start()  # mounts and connections are remembered
    until(lambda: serves(source))
    assert alone.dtctl("transmit", "start", con).code == 0
    assert alone.dtctl("wait", con, "--timeout", "30").code == 0
    assert reads(copy / "unsent") == "kept on disk"
    (status,) = alone.json("status")
    assert status["target_data_state"] == "OK"


def test_a_mount_in_use_is_left_alone(alone: Agent, source: Path) -> None:
    alone.json("mount", "add", source)
    with open(source / "file") as used:
        refused = alone.dtd("--stop-mounts")
        assert refused.code == 1 and refused.err.count("\n") == 1 and str(source) in refused.err
        assert os.path.ismount(source) and used.read() == "content"
        assert alone.process is not None and alone.process.wait(20) == 0
        alone.start()
        assert alone.dtctl("mount", "remove", source).code == 1
        assert os.path.ismount(source)
        assert [mount["state"] for mount in alone.json("mount", "list")] == ["serving"]
    assert alone.dtctl("mount", "remove", source).code == 0
    assert not os.path.ismount(source)


def test_mounts_do_not_nest(alone: Agent, source: Path) -> None:
    (source / "below").mkdir()
    alone.json("mount", "add", source)
    for path in (source, source / "below", source.parent):
        refused = alone.dtctl("mount", "add", path)
        assert refused.code == 1 and refused.err.count("\n") == 1
    assert len(alone.json("mount", "list")) == 1


def test_loops_and_shared_targets_are_refused(alone: Agent, source: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy", tmp_path / "other"
    other.mkdir()
    for target in (source, source / "below", source.parent):
        refused = alone.dtctl("protect", source, target)
        assert refused.code == 1 and "overlap" in refused.err
    assert alone.json("mount", "list") == []
    alone.json("protect", source, copy, "--wait")
    refused = alone.dtctl("protect", other, copy)
    assert refused.code == 1 and "must not share" in refused.err
    refused = alone.dtctl("protect", copy, source)  # active/active of two directories into each other
    assert refused.code == 1 and "overlap" in refused.err
    assert [mount["path"] for mount in alone.json("mount", "list")] == [str(source)]
    assert len(alone.json("repset", "list")) == 1


def test_a_target_that_is_no_agent(alone: Agent, source: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        program = (
            "import socket, sys\n"
            "server = socket.socket(fileno=int(sys.argv[1]))\n"
            "while True:\n"
            "    client, _ = server.accept()\n"
            "    client.sendall(b'SSH-2.0-OpenSSH_9.2\\r\\n')\n"
            "    client.recv(1000)\n"
            "    client.close()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(stranger.fileno())], pass_fds=[stranger.fileno()]
        )
        try:
            refused = alone.dtctl("protect", source, f"127.0.0.1:{port}:{tmp_path}/copy")
        finally:
            process.kill()
            process.wait()
    assert refused.code == 1 and refused.err.count("\n") == 1
    assert "not a replication agent" in refused.err or "cannot connect" in refused.err
    assert alone.json("status") == alone.json("mount", "list") == alone.json("repset", "list") == []
    assert not os.path.ismount(source)


def test_strangers_at_the_port_are_logged_and_harm_nothing(alone: Agent) -> None:
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"REPLICATOR 1 replicate ../../etc\n", b"\0" * 500, b""):
        with socket.create_connection(("127.0.0.1", alone.port)) as stranger:
            stranger.settimeout(10)
            try:
                stranger.sendall(said)
                stranger.shutdown(socket.SHUT_WR)
                assert stranger.recv(100) == b""
            except OSError:
                pass  # closed while we still spoke
    assert until(lambda: events(alone).count(9031) == 4)
    assert not children(alone)


def test_the_same_target_again_after_disconnecting(alone: Agent, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    first = alone.json("protect", source, copy, "--wait")
    assert alone.dtctl("disconnect", str(first["id"])).code == 0
    until(lambda: set(children(alone)) == {"capture"})  # the target was told, and has forgotten it
    assert alone.json("target", "list") == []
    second = alone.json("protect", source, copy, "--wait")
    assert second["id"] == first["id"] + 1
    assert alone.json("status")[0]["target_data_state"] == "OK"


def test_rules_changed_while_connected_are_kept_for_later(alone: Agent, source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    name = alone.json("protect", source, copy, "--wait")["repset"]
    changed = alone.json("repset", "rule", name, "add", source / "*.tmp", "--exclude")
    assert "difference mirror" in changed["advice"]
    (source / "a.tmp").write_text("still sent")
    until(lambda: reads(copy / "a.tmp") == "still sent")
    assert alone.dtctl("repset", "delete", name).code == 1


def test_a_chain_on_one_agent(alone: Agent, source: Path, tmp_path: Path) -> None:
    """What a receiver writes is captured in its turn, also if the capture came after the receiver, or came
    back.
    """
    copy, further = tmp_path / "copy", tmp_path / "further"
    alone.json("protect", source, copy, "--wait")
    second = str(alone.json("protect", copy, further, "--wait")["id"])
    (source / "new").write_text("handed on")
    until(lambda: reads(further / "new") == "handed on")
    (mount,) = (m for m in alone.json("mount", "list") if m["path"] == str(copy))
    os.kill(mount["pid"], signal.SIGKILL)
    until(lambda: mount["pid"] not in [m["pid"] for m in alone.json("mount", "list")])
    until(lambda: serves(copy))
    (source / "newer").write_text("again")
    until(lambda: reads(further / "newer") == "again")
    assert alone.dtctl("wait", second, "--timeout", "30").code == 0
    assert alone.dtctl("disconnect", second).code == 0
    assert alone.dtctl("mount", "remove", copy).code == 0
    (source / "last").write_text("past the mount")
    until(lambda: reads(copy / "last") == "past the mount")


# --- refused at the start ---


def start(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a dtd that must refuse to start."""
    command = [sys.executable, "-m", "replicator.agent.dtd", "--home", str(home), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.startswith("dtd: ") and result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(start(tmp_path / "h", "--listen", f"127.0.0.1:{port}"), 1, str(port), "in use", "--listen")


def test_insecure_is_said_at_each_start(tmp_path: Path) -> None:
    agent = Agent(tmp_path / "h", "open")
    home = tmp_path / "h"
    home.mkdir()
    (home / "replicator.toml").write_text(f'[agent]\ninsecure = true\nlisten = "0.0.0.0:{agent.port}"\n')
    process = subprocess.Popen([sys.executable, "-m", "replicator.agent.dtd", "--home", home])
    try:
        log = home / "log" / "dtd.log"
        until(lambda: "plain text is spoken with everybody" in reads(log))
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_a_wrong_configuration(tmp_path: Path) -> None:
    (tmp_path / "replicator.toml").write_text("[queue]\nmemory_sizes = 3\n")
    refused(start(tmp_path), 2, "replicator.toml", "queue.memory_sizes", "did you mean queue.memory_size?")
    refused(start(tmp_path, "--config", str(tmp_path / "none.toml")), 2, "none.toml", "no such")


def test_a_damaged_state_is_kept(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    refused(
        start(tmp_path, "--listen", f"127.0.0.1:{dtd.free_port()}"), 1, "state.json", "damaged", ".previous"
    )
    assert (tmp_path / "state.json").read_text() == "{"


def test_a_home_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(start(tmp_path / "file"), 1, str(tmp_path / "file"))
    refused(start(tmp_path / "none", "--stop-mounts"), 2, "no such home")


def test_state_is_readable_json(alone: Agent) -> None:
    alone.json("repset", "create", "web")
    state = json.loads((alone.home / "state.json").read_text())
    assert state["version"] == 1 and state["repsets"][0]["name"] == "web"


# --- options of a mount ---


def test_options_are_stored_changed_in_use_and_shown(alone: Agent, source: Path) -> None:
    made = alone.json("mount", "add", source, "-o", "disk_threads=3,idle=sleep")
    assert made["options"] == {"disk_threads": "3", "idle": "sleep"}
    (source / "f").write_bytes(b"content")
    with open(source / "f", "rb") as file:
        changed = alone.json("mount", "set", source, "disk_threads=default", "attribute_timeout=0.5")
        assert changed["options"] == {"attribute_timeout": "0.5", "idle": "sleep"}
        assert changed["pid"] != made["pid"]
        assert file.read() == b"content"
        same = alone.json("mount", "set", source, "attribute_timeout=0.5")
        assert same["pid"] == changed["pid"]  # nothing to do
    (state,) = json.loads((alone.home / "state.json").read_text())["mounts"]
    assert state["options"] == {"attribute_timeout": 0.5, "idle": "sleep"}
    assert "idle=sleep" in alone.dtctl("mount", "list").out
    for words, code, reason in (
        (["disk_threads=many"], 2, "option disk_threads=many: must be 1 to 256, or default"),
        (["threads=1"], 2, "option 'threads': must be one of"),
        (["request_timeout=60"], 1, "request_timeout is agreed with the kernel when a directory is mounted"),
    ):
        refusal = alone.dtctl("mount", "set", source, *words)
        assert refusal.code == code and reason in refusal.err, refusal.err
    assert alone.json("mount", "list")[0]["pid"] == changed["pid"]
    alone.stop()
    alone.start()
    assert alone.json("mount", "list")[0]["options"] == {"attribute_timeout": "0.5", "idle": "sleep"}


def test_options_that_a_binding_lacks_are_refused(alone: Agent, source: Path) -> None:
    refusal = alone.dtctl("mount", "add", source, "--binding", "pyfuse3", "-o", "idle=poll")
    assert refusal.code == 2
    assert "option idle=poll: needs the kernel binding" in refusal.err
    assert alone.json("mount", "list") == []


# --- mount helper ---


def test_an_fstab_line_works(alone: Agent, source: Path, tmp_path: Path) -> None:
    helper = Path(__file__).parents[2] / "etc" / "mount.replicator"
    dtctl = tmp_path / "dtctl"
    dtctl.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from replicator.cli.main import main; main()" "$@"\n'
    )
    dtctl.chmod(0o755)

    def mount(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", helper, *arguments],
            env={**os.environ, "DTCTL": str(dtctl)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    options = f"rw,nofail,home={alone.home},timeout=0,disk_threads=4,binding=kernel,attribute_timeout=2"
    for _ in range(2):  # as fstab has it, and again as if the agent had mounted it by itself
        done = mount(source, source, "-o", options)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert serves(source)
    (made,) = alone.json("mount", "list")
    assert made["options"] == {"attribute_timeout": "2", "disk_threads": "4"}
    failed = mount(tmp_path / "none", tmp_path / "none", "-o", options)
    assert (failed.returncode, failed.stdout) == (32, "")
    assert failed.stderr.startswith("mount.replicator: ") and failed.stderr.count("\n") == 1
    assert mount(source).returncode == 1
    nobody = mount(source, source, "-o", f"home={tmp_path},timeout=1")
    assert nobody.returncode == 32 and "dtd" in nobody.stderr


def test_names_that_are_no_text(alone: Agent, source: Path, tmp_path: Path) -> None:
    """A status must be tellable whatever an application calls its files."""
    copy = tmp_path / "copy"
    name = b"latin-\xe4\xff"
    with open(os.fsencode(source) + b"/" + name, "w") as file:
        file.write("before")
    con = str(alone.json("protect", source, copy, "--wait")["id"])
    before = children(alone)
    with open(os.fsencode(source) + b"/" + name, "w") as file:
        file.write("after")
    assert alone.dtctl("wait", con, "--timeout", "30").code == 0
    time.sleep(2.5)  # the agent has looked, too
    (status,) = alone.json("status")
    assert (status["state"], status["state_reason"]) == ("Started", "") and "latin-" in status["last_file"]
    assert alone.json("target", "list")[0]["status"]["connected"]
    assert sorted(os.listdir(os.fsencode(copy))) == [b"file", name]
    assert children(alone) == before
