"""What `dtctl` remembers of agents elsewhere, and how it asks; the rest is in test_access_control.py."""

import io
import os
from pathlib import Path

import pytest

from replicator.addresses import Address
from replicator.cli import remote
from replicator.cli.known_servers import KnownServers, Logins
from replicator.cli.main import command
from replicator.cli.run import run
from replicator.errors import UsageError

SERVER = Address("backup", 1506)
SHOWN = ":".join(["AB", "01"] * 16)


@pytest.fixture(autouse=True)
def user_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_servers_are_remembered_by_name_and_port() -> None:
    known = KnownServers()
    assert known.fingerprint(SERVER) == ""
    known.remember(SERVER, "AB:CD")
    known.remember(Address("backup", 1600), "00:11")
    known.remember(Address("::1", 1506), "22:33")
    assert KnownServers().fingerprint(SERVER) == "AB:CD"
    known.remember(SERVER, "44:55")
    assert Path(known.path).read_text() == "[::1]:1506 22:33\nbackup:1506 44:55\nbackup:1600 00:11\n"


def test_a_login_is_its_users_alone(tmp_path: Path) -> None:
    logins = Logins()
    logins.keep(SERVER, "alice", "token")
    assert logins.token(SERVER, "alice") == "token"
    assert logins.token(SERVER, "bob") is None and logins.token(Address("backup", 1), "alice") is None
    (path,) = (p for p in tmp_path.rglob("logins/*"))
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    path.chmod(0o644)
    assert logins.token(SERVER, "alice") is None  # others could have read it
    logins.forget(SERVER, "alice")
    logins.forget(SERVER, "alice")
    assert list(tmp_path.rglob("logins/*")) == []
    for user in ("alice", "bob"):
        logins.keep(SERVER, user, "token")
    assert (logins.forget_all(), logins.forget_all()) == (2, 0)  # CL-09
    assert list(tmp_path.rglob("logins/*")) == []


def test_a_login_that_is_a_link_is_none(tmp_path: Path) -> None:
    logins = Logins()
    logins.keep(SERVER, "alice", "token")
    (path,) = tmp_path.rglob("logins/*")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert logins.token(SERVER, "alice") is None


@pytest.mark.parametrize(
    "text",
    [SHOWN, SHOWN.lower(), SHOWN.replace(":", ""), f"sha256 Fingerprint={SHOWN}", f" {SHOWN}\n"],
)
def test_a_fingerprint_as_users_write_it(text: str) -> None:
    assert remote.normal_fingerprint(text) == SHOWN
    assert remote.fingerprint_of(b"").startswith("E3:B0:C4:42")  # SHA-256 of nothing


@pytest.mark.parametrize(
    ("answer", "trusted"), [("yes\n", True), ("YES\n", True), ("y\n", False), ("\n", False), ("", False)]
)
def test_only_yes_is_yes(monkeypatch: pytest.MonkeyPatch, answer: str, trusted: bool) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert remote._ask(SERVER, SHOWN) is trusted


def test_a_password_of_a_file_or_a_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("pass wörd \nsecond line\n")
    path.chmod(0o640)
    with pytest.raises(UsageError, match="others can read"):
        remote.read_password(str(path))
    path.chmod(0o600)
    assert remote.read_password(str(path)) == "pass wörd "
    reading, writing = os.pipe()
    os.write(writing, b"from a pipe\n")
    os.close(writing)
    assert remote.read_password(f"/dev/fd/{reading}") == "from a pipe"
    os.close(reading)
    with pytest.raises(UsageError, match="No such file"):
        remote.read_password(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("login", 2, "give --server HOST"),
        ("logout", 2, "give --server HOST"),
        ("--home /x --server localhost status", 2, "two agents"),
        ("--server localhost:1 status", 3, "nobody listens there"),
        ("--server localhost:1 login", 2, "--password-file"),
        ("--server local/host status", 2, "must be HOST"),
        ("--server localhost:1 --ca /none status", 2, "/none: cannot be used"),
        ("--server localhost:1 --cert /none status", 2, "/none: cannot be used"),
    ],
)
def test_mistakes_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, code: int, text: str
) -> None:

    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run(command(), line.split()) == code
    err = capsys.readouterr().err
    assert text in err and err.count("\n") == 1


def test_an_agent_named_by_hand_goes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    monkeypatch.setenv("REPLICATOR_SERVER", "localhost:1")
    assert run(command(), ["--home", str(tmp_path), "status"]) == 3
    assert f"no agent answers for {tmp_path}" in capsys.readouterr().err
