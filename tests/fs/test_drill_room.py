"""The room of a drill: it sees the copies at their places, and nothing that happens there stays."""

import http.server
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from kit.leftovers import mounts_below
from kit.patience import until_async

from replicator import limits
from replicator.agent.failover.drill_order import Command, Findings, Order, Place
from replicator.agent.failover.drill_process import RoomError, RoomProcess
from replicator.fs import target_lock
from replicator.status import TargetLock

pytestmark = pytest.mark.fs
ROOT = Path(__file__).parents[2]


class Setting(NamedTuple):
    copy: Path
    at: Path  # where the source has it; not on this host
    drill: Path
    room: RoomProcess

    def order(self, *lines: str, **options: object) -> Order:
        commands = tuple(
            Command(name=line, command=("/bin/sh", "-c", line), environment=dict(os.environ), timeout_s=30)
            for line in lines
        )
        places = (Place(str(self.copy), str(self.at)),)
        return Order(places=places, commands=commands, **options)  # type: ignore[arg-type]

    async def run(self, *lines: str, **options: object) -> Findings:
        try:
            await self.room.start(self.order(*lines, **options))
            return await self.room.result()
        finally:
            await self.room.end()


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    copy = tmp_path / "copy"
    (copy / "sub").mkdir(parents=True)
    (copy / "file").write_text("as it was")
    (copy / "sub" / "deep").write_bytes(os.urandom(100_000))
    os.link(copy / "file", copy / "other name")
    os.symlink("file", copy / "link")
    copy.chmod(0o751)
    os.setxattr(copy / "file", "user.note", b"x")
    drill = tmp_path / "drill"
    yield Setting(copy, tmp_path / "not here" / "data", drill, RoomProcess(str(drill)))


def everything(tree: Path) -> dict[str, tuple[object, ...]]:
    """All that can be told of it, access times included."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(tree):
        for name in [".", *names, *files]:
            path = os.path.join(directory, name)
            state = os.lstat(path)
            found[path] = (
                *(state.st_mode, state.st_ino, state.st_nlink, state.st_uid, state.st_gid, state.st_size),
                *(state.st_atime_ns, state.st_mtime_ns, state.st_ctime_ns),
                tuple((n, os.getxattr(path, n, follow_symlinks=False)) for n in _xattrs(path)),
            )
    return found


def _xattrs(path: str) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)


@pytest.fixture
def untouched(setting: Setting) -> Iterator[None]:
    """The copy is afterwards what it was, to the last access time."""
    before = everything(setting.copy)
    contents = {path: Path(path).read_bytes() for path in before if os.path.isfile(path)}
    before = everything(setting.copy)
    yield
    assert everything(setting.copy) == before
    assert {path: Path(path).read_bytes() for path in contents} == contents


@pytest.mark.usefixtures("untouched")
async def test_it_sees_the_copy_at_its_place_and_what_it_changes_is_counted_and_gone(
    setting: Setting, tmp_path: Path
) -> None:
    at = f"'{setting.at}'"
    (tmp_path / "precious").write_text("of this host")
    found = await setting.run(
        f"cd {at} && cat file && stat -c %a . && cat sub/deep >/dev/null && ls -l >/dev/null",
        f"cd {at} && echo new >file && rm 'other name' && mv sub renamed && chmod 700 . && echo x >made",
        f"cd '{tmp_path}' && touch outside && echo damage >precious && rm -r '{setting.copy}'",
    )
    assert found.problem == ""
    assert [end.output for end in found.ends] == ["as it was751\n", "", ""]
    assert all(end.succeeded for end in found.ends)
    assert found.changes.files >= 2 and found.changes.removed >= 2 and found.changes.data_bytes >= 4096
    assert not (tmp_path / "outside").exists() and not setting.at.parent.exists()
    assert (tmp_path / "precious").read_text() == "of this host"


@pytest.mark.usefixtures("untouched")
async def test_a_command_that_fails_ends_the_row(setting: Setting) -> None:
    found = await setting.run("true", "exit 5", "true")
    assert [(end.how, end.code) for end in found.ends] == [("exited", 0), ("exited", 5)]


class Listening(NamedTuple):
    port: int
    path: str


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Listening]:
    """What this host offers to its programs."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        yield Listening(server.server_port, path)
    server.shutdown()
    thread.join()
    server.server_close()


async def test_it_reaches_nobody_outside(setting: Setting, services: Listening) -> None:
    tcp = f"import socket; socket.create_connection(('127.0.0.1', {services.port}), 2)"
    unix = f"import socket; socket.socket(socket.AF_UNIX).connect({services.path!r})"
    for line in (tcp, unix):
        await trio.run_process([sys.executable, "-c", line])  # from outside it is there
        found = await Setting(*setting).run(f'"{sys.executable}" -c "{line}"')
        assert "ConnectionRefusedError" in found.ends[0].output


async def test_addresses_and_host_name_are_those_of_the_source(setting: Setting) -> None:
    line = (
        "import socket;"
        "four = socket.create_server(('192.0.2.77', 80));"
        "six = socket.create_server(('fd00:77::1', 80), family=socket.AF_INET6);"
        "socket.create_connection(('192.0.2.77', 80)); socket.create_connection(('fd00:77::1', 80));"
        "print(socket.gethostname())"
    )
    found = await setting.run(
        f'"{sys.executable}" -W ignore -c "{line}"',
        addresses=("192.0.2.77/24", "fd00:77::1/64"),
        host_name="source-7",
    )
    assert found.ends[0].output == "source-7\n", found


@pytest.mark.parametrize("kind", [TargetLock.LOCKED, TargetLock.READ_ONLY])
async def test_it_looks_beneath_the_lock_of_a_copy(kind: TargetLock, setting: Setting) -> None:
    target_lock.hold(kind, [setting.copy.as_posix()])
    try:
        found = await setting.run(f"cat '{setting.at}/file' && echo y >'{setting.at}/file'")
        assert found.ends[0].output == "as it was", found
        assert target_lock.held([setting.copy.as_posix()]) is kind
    finally:
        target_lock.release([setting.copy.as_posix()])
    assert (setting.copy / "file").read_text() == "as it was"


@pytest.mark.usefixtures("untouched")
async def test_what_it_leaves_running_ends_with_it(setting: Setting) -> None:
    await setting.room.start(setting.order("setsid sleep 4711 >/dev/null 2>&1 & setsid sh -c 'sleep 4711'"))
    await until_async(lambda: len(processes("sleep 4711")) == 2)
    await setting.room.end(at_once=True)
    assert processes("sleep 4711") == []
    with pytest.raises(RoomError, match="it was killed"):
        await setting.room.result()


def processes(line: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if Path("/proc", name, "cmdline").read_bytes().replace(b"\0", b" ").strip() == line.encode():
                found.append(int(name))
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            continue
    return found


async def test_it_ends_by_itself_when_its_agent_is_killed(setting: Setting, tmp_path: Path) -> None:
    program = (
        "import trio, sys; sys.path.insert(0, sys.argv[1]);"
        "from replicator.agent.failover.drill_process import RoomProcess;"
        "from replicator.agent.failover.drill_order import *;"
        "command = Command(name='x', command=('/bin/sleep', '4712'), environment={}, timeout_s=100);"
        "place = Place(sys.argv[2], sys.argv[3]);"
        "room = RoomProcess(sys.argv[4]);"
        "trio.run(room.start, Order(places=(place,), commands=(command,)));"
        "trio.run(trio.sleep_forever)"
    )
    arguments = [program, str(ROOT), str(setting.copy), str(setting.at), str(setting.drill)]
    agent = await trio.lowlevel.open_process([sys.executable, "-c", *arguments])
    try:
        await until_async(lambda: processes("/bin/sleep 4712"))
    finally:
        agent.kill()
        await agent.wait()
    with trio.fail_after(limits.DRILL_END_S):
        await setting.room.gone()
    assert processes("/bin/sleep 4712") == []


@pytest.mark.usefixtures("untouched")
async def test_a_copy_of_the_copies_leaves_them_alone_once_it_is_made(setting: Setting) -> None:
    wait = "while ! [ -e file2 ]; do sleep 0.05; done"
    await setting.room.start(setting.order(f"cd '{setting.at}' && {wait}; cat file2", duplicate=True))
    await setting.room.copied()
    (place,) = (setting.drill / "changes").iterdir()
    assert sorted(p.name for p in place.iterdir()) == ["file", "link", "other name", "sub"]
    assert (place / "file").stat().st_ino == (place / "other name").stat().st_ino
    (place / "file2").write_text("here")
    found = await setting.room.result()
    await setting.room.end()
    assert found.ends[0].output == "here"


async def test_a_copy_that_is_not_there_is_a_problem(setting: Setting) -> None:
    gone = setting._replace(copy=setting.copy / "nothing")
    found = await gone.run("true")
    assert "No such file" in found.problem and not found.ends


@pytest.fixture
def overlaid(tmp_path: Path) -> Iterator[Path]:
    """A file system that takes no layers of an overlay, as the root of a container is."""
    for name in ("lower", "upper", "work", "overlay"):
        (tmp_path / name).mkdir()
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "x", tmp_path / "overlay"], check=True)
    yield tmp_path / "overlay"
    subprocess.run(["umount", "-l", tmp_path / "overlay"], check=True)


@pytest.mark.usefixtures("untouched")
async def test_where_the_home_takes_no_layers_they_are_in_memory(setting: Setting, overlaid: Path) -> None:
    room = RoomProcess(str(overlaid / "drill"))
    there = setting._replace(drill=overlaid / "drill", room=room)
    found = await there.run(
        f"cat '{setting.at}/file' && echo new >'{setting.at}/file'; cat '{overlaid}/drill/lock'"
    )
    assert found.ends[0].output == "as it was" and found.ends[0].succeeded, found
    assert found.changes.files == 1


async def test_it_can_be_kept(setting: Setting) -> None:
    await setting.room.start(setting.order("true", keep_s=100.0))
    found = await setting.room.result()
    assert found.ends[0].succeeded and setting.room.is_there
    enter = ["nsenter", "--all", f"--target={setting.room.pid}", "cat", setting.at / "file"]
    seen = await trio.run_process(enter, capture_stdout=True)
    assert seen.stdout == b"as it was"
    await setting.room.end()
    assert not setting.room.is_there


async def test_nothing_of_it_is_left(setting: Setting) -> None:
    await setting.room.start(setting.order("sleep 4713"))
    await until_async(lambda: processes("sleep 4713"))
    during = mounts_below(str(setting.copy.parent))
    await setting.room.end(at_once=True)
    await trio.to_thread.run_sync(setting.room.remove)
    assert during == [] == mounts_below(str(setting.copy.parent))  # only the room sees its mounts
    assert not setting.drill.exists()


async def test_a_database_is_recovered_and_written_there(setting: Setting) -> None:
    """Its journal is hot: opening it writes."""
    program = (
        "import sqlite3; c = sqlite3.connect('base');"
        "print(*c.execute('pragma integrity_check').fetchone());"
        "print(*c.execute('select count(*) from t').fetchone());"
        "c.execute('insert into t values (1)'); c.commit()"
    )
    with sqlite3.connect(setting.copy / "base") as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table t (x)")
        database.executemany("insert into t values (?)", [(n,) for n in range(100)])
        database.commit()
        image = {name: (setting.copy / name).read_bytes() for name in ("base", "base-wal")}
    database.close()
    for name, data in image.items():  # as after a power cut
        (setting.copy / name).write_bytes(data)
    before = {name: (setting.copy / name).read_bytes() for name in image}
    found = await setting.run(f"cd '{setting.at}' && '{sys.executable}' -c \"{program}\"")
    assert found.ends[0].output == "ok\n100\n", found
    assert {name: (setting.copy / name).read_bytes() for name in image} == before
    for name in image:
        (setting.copy / name).unlink()
