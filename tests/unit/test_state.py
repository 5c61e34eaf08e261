"""What an agent remembers: round trips, replacement as a whole, damage."""

import os
from pathlib import Path

import msgspec
import pytest

from replicator.agent import state as states
from replicator.agent.state import Connection, Map, Mount, State, StateError, load_identity, load_state, save
from replicator.failovers import Monitor, MonitorSettings
from replicator.repset import ReplicationSet, Rule

MOUNT = Mount(id="m", path="/srv", mountpoint="/srv")
SET = ReplicationSet("web", 3, (Rule("/srv"), Rule("/srv/*.tmp", False)))
CONNECTION = Connection(
    uuid="c", id=4, repset=SET, target_host="", target_port=1500, maps=(Map("/srv", "/copy"),), created=1.5
)
MONITOR = Monitor(uuid="g", name="web", settings=MonitorSettings(source_host="alpha"))
STATE = State(
    mounts=(MOUNT,), repsets=(SET,), connections=(CONNECTION,), last_connection_id=9, monitors=(MONITOR,)
)


def test_nothing_yet(tmp_path: Path) -> None:
    assert load_state(str(tmp_path / "state.json")) == State()


def test_a_round_trip(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    save(path, STATE)
    assert load_state(path) == STATE
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_numbers_begin_again_once_none_is_in_use(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    save(path, msgspec.structs.replace(STATE, connections=()))
    assert load_state(path).last_connection_id == 0


def test_the_file_before_is_kept(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    save(path, State())
    save(path, STATE)
    assert load_state(path + ".previous") == State()
    assert sorted(os.listdir(tmp_path)) == ["state.json", "state.json.previous"]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_failing_disk_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = str(tmp_path / "state.json")
    save(path, STATE)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(StateError, match=r"state\.json: cannot be written: No space"):
            save(path, State())
    assert load_state(path) == STATE


def test_everything_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that makes a crash harmless: content, then name, then directory."""
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        steps.append("fsync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def record_replace(source: str, destination: str) -> None:
        steps.append("replace " + os.path.basename(destination))
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    save(str(tmp_path / "state.json"), STATE)
    assert steps == ["fsync state.json.new", "replace state.json", f"fsync {tmp_path.name}"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": "1"}',
        b'{"version": 1, "mounts": [{"id": 3}]}',
        b"\xff\xff",
        b"\0" * 4096,
    ],
)
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(StateError) as caught:
        load_state(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: damaged") and ".previous" in message and "\n" not in message
    assert path.read_bytes() == content


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    save(str(path), STATE)
    data = path.read_bytes().rstrip()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(StateError):
            load_state(str(path))


def test_a_newer_format_is_not_guessed_at(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b'{"version": 2, "mounts": {}}')
    with pytest.raises(StateError, match="newer release"):
        load_state(str(path))


@pytest.mark.parametrize(
    "double",
    [
        State(mounts=(MOUNT, MOUNT)),
        State(repsets=(SET, SET)),
        State(connections=(CONNECTION, msgspec.structs.replace(CONNECTION, uuid="d"))),
        State(monitors=(MONITOR, msgspec.structs.replace(MONITOR, name="other"))),
        State(monitors=(MONITOR, msgspec.structs.replace(MONITOR, uuid="h"))),
    ],
)
def test_what_must_be_unique_is_checked(tmp_path: Path, double: State) -> None:
    path = str(tmp_path / "state.json")
    save(path, double)
    with pytest.raises(StateError, match="there twice"):
        load_state(path)


def test_an_agent_keeps_its_identity(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.json")
    first = load_identity(path, "alpha")
    assert load_identity(path, "") == first
    renamed = load_identity(path, "beta")
    assert (renamed.uuid, renamed.name) == (first.uuid, "beta")
    assert load_identity(path, "") == renamed


def test_an_agent_without_a_name_has_that_of_its_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states.socket, "gethostname", lambda: "host7")
    assert load_identity(str(tmp_path / "agent.json"), "").name == "host7"
