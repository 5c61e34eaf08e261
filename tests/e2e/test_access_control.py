"""Who may do what with a real agent: users of its host by its socket, others by password or certificate."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import machine, people
from kit.certificates import Issuer
from kit.dtd import _DTCTL, Agent, Result, free_port

from replicator.cli.client import Client

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not (
            machine.is_root()
            and machine.has_mount_namespaces()
            and shutil.which("setpriv")
            and shutil.which("openssl")
        ),
        reason="needs root, mount namespaces, setpriv and openssl",
    ),
]

SEEN = Path("/mnt")  # where users see the directory of the test
PAM = "auth required pam_unix.so\naccount required pam_unix.so\n"


class Scene:
    """An agent on a host with users of its own."""

    def __init__(self, directory: Path, host: people.Host) -> None:
        self.directory = directory
        self.host = host
        self.port = free_port()
        self.servers = Issuer(directory, "servers")
        self.clients = Issuer(directory, "clients")
        self.certificate, _ = self.servers.issue("localhost", "server.pem")
        services = directory / "pam.d"
        services.mkdir()
        (services / "replicator").write_text(PAM)
        self.client = Client(str(directory / "home"))  # as root
        self.agent = Agent(directory / "home", "alpha", host)  # type: ignore[arg-type]  # what it needs of a host
        self.agent.home.mkdir()
        (self.agent.home / "replicator.toml").write_text(
            f'[access]\nlisten = "127.0.0.1:{self.port}"\ncertificate = "{self.certificate}"\n'
            f'client_ca = "{self.clients.path}"\npam_directory = "{services}"\n'
        )

    def dtctl(self, user: str, *arguments: str, remote: bool = False) -> Result:
        """As a user of that host, who has a home directory of their own."""
        with self.begin(user, *arguments, remote=remote, stdin=subprocess.DEVNULL) as process:
            out, err = process.communicate(timeout=60)
            return Result(subprocess.CompletedProcess([], process.returncode, out, err))

    def begin(self, user: str, *arguments: str, remote: bool, stdin: int) -> subprocess.Popen[str]:
        home = self.directory / f"home-of-{user}"
        seen_home = SEEN / home.name
        if not home.exists():
            home.mkdir(0o700)
            uid = 0 if user == "root" else int(self._id(user))
            os.chown(home, uid, uid)
        where = ["--server", f"localhost:{self.port}"] if remote else ["--home", str(SEEN / "home")]
        prefix = self.host.command if user == "root" else self.host.command_as(user)
        environment = {**os.environ, "HOME": str(seen_home), "XDG_STATE_HOME": "", "XDG_CONFIG_HOME": ""}
        return subprocess.Popen(
            [*prefix, *_DTCTL, *where, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd="/",
            start_new_session=True,  # without a terminal but the one it is given
        )

    def _id(self, user: str) -> str:
        return subprocess.run(
            [*self.host.command, "id", "-u", user], capture_output=True, text=True, check=True, timeout=20
        ).stdout

    def events(self, *ids: int) -> list[str]:
        found = self.client.get("events", limit=1000)
        return [event["text"] for event in found if event["id"] in ids]

    @property
    def failed_logins(self) -> int:
        return int(self.client.get("agent")["failed_logins"])

    @property
    def fingerprint(self) -> str:
        return str(self.client.get("ping")["fingerprint"])

    def password_of(self, user: str, password: str) -> str:
        """A file that only they can read."""
        path = self.directory / f"password-of-{user}"
        path.touch(0o600)
        path.write_text(password + "\n")
        os.chown(path, int(self._id(user)), -1)
        return str(SEEN / path.name)

    def log_in(self, user: str, password: str, *more: str) -> Result:
        path = self.password_of(user, password)
        return self.dtctl(user, "login", "--password-file", path, *more, remote=True)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("access")
    directory.chmod(0o711)
    with people.people(directory, alice="dtadmin", bob="dtmon", carol="", dora="dtmon") as host:
        # Nobody else passes through pytest's own directories: there, users reach this one by another path.
        host.run("mount", "--bind", str(directory), str(SEEN))
        found = Scene(directory, host)
        found.agent.start()
        try:
            yield found
        finally:
            found.agent.close()


LOOKS = (["status"], ["events"])  # what each request needs is in test_api_access.py


@pytest.mark.parametrize(
    ("user", "level", "looks", "changes"),
    [
        ("root", "DT_FULL_ACCESS (2)", 0, 0),
        ("alice", "DT_FULL_ACCESS (2)", 0, 0),
        ("bob", "DT_MONITOR_ACCESS (1)", 0, 4),
        ("carol", "DT_NO_ACCESS (0)", 4, 4),
    ],
)
def test_groups_decide_on_this_host(scene: Scene, user: str, level: str, looks: int, changes: int) -> None:
    assert scene.dtctl(user, "ping").out.startswith("alpha answers\n")
    who = scene.dtctl(user, "whoami").out
    assert who.startswith(f"{user} from local (pid ") and who.endswith(f": {level}\n")
    for command in LOOKS:
        assert scene.dtctl(user, *command).code == looks, command
    name = f"of-{user}"
    created = scene.dtctl(user, "repset", "create", name)
    assert created.code == changes, created.err
    if changes:
        assert created.err.startswith(f"dtctl: {user} ") and created.err.count("\n") == 1
        assert any(f"{user} from local" in text for text in scene.events(9151))
    else:
        assert scene.dtctl(user, "repset", "delete", name).code == 0
        assert any(text.startswith(f"{user} from local") and text.endswith(f": repset create {name}: done")
                   for text in scene.events(9152))  # fmt: skip
    assert scene.client.get("repsets") == []


def test_a_membership_that_ends_ends_at_once(scene: Scene) -> None:
    assert scene.dtctl("dora", "status").code == 0
    assert scene.log_in("dora", "dora", "--fingerprint", scene.fingerprint).code == 0
    assert scene.dtctl("dora", "status", remote=True).code == 0
    people.leave(scene.directory, "dora")
    assert scene.dtctl("dora", "status").code == 4
    assert scene.dtctl("dora", "status", remote=True).code == 4


def test_nothing_else_of_the_home_is_open_to_others(scene: Scene) -> None:
    for name in ("state.json", "log/dtd.log", "run/agent.bell", "log", "."):
        command = [*scene.host.command_as("alice"), "ls" if name in ("log", ".") else "cat"]
        found = subprocess.run([*command, str(SEEN / "home" / name)], capture_output=True, timeout=20)
        assert found.returncode != 0, name


# --- from elsewhere ---


def test_a_server_that_is_not_known_gets_no_password(scene: Scene) -> None:
    unknown = scene.log_in("alice", "alice")
    assert unknown.code == 4 and "not known yet" in unknown.err and scene.fingerprint in unknown.err
    other = scene.log_in("alice", "alice", "--fingerprint", "00:" * 31 + "00")
    assert other.code == 4 and "not what you gave" in other.err
    assert not any("login of alice" in text for text in scene.events(9150))


def test_a_person_is_asked(scene: Scene) -> None:
    """First whether the server is the right one, only then for the password, which is not shown."""
    ours, theirs = os.openpty()
    with scene.begin("alice", "status", "--json", remote=True, stdin=theirs) as process:
        os.close(theirs)
        try:
            assert process.stderr is not None
            for question, answer in (("(yes/no) ", "yes"), ("Password of alice on localhost: ", "alice")):
                asked = ""
                while not asked.endswith(question):
                    letter = process.stderr.read(1)
                    assert letter, asked
                    asked += letter
                assert question.startswith("Password") or scene.fingerprint in asked
                os.write(ours, answer.encode() + b"\n")
            out, err = process.communicate(timeout=60)
            assert (process.returncode, json.loads(out)) == (0, []), err
        finally:
            os.close(ours)
    assert scene.dtctl("alice", "logout", remote=True).code == 0


@pytest.mark.parametrize(("user", "level", "change"), [("alice", "FULL", 0), ("bob", "MONITOR", 4)])
def test_a_password_lets_in(scene: Scene, user: str, level: str, change: int) -> None:
    assert scene.dtctl(user, "status", remote=True).code == 4
    in_ = scene.log_in(user, user, "--fingerprint", scene.fingerprint)
    assert (in_.code, in_.out) == (0, f"User access level set to DT_{level}_ACCESS\n"), in_.err
    assert scene.dtctl(user, "whoami", "--json", remote=True).json["origin"] == "127.0.0.1"
    assert scene.dtctl(user, "status", remote=True).code == 0
    assert scene.dtctl(user, "repset", "create", user, remote=True).code == change
    if not change:
        assert f"{user} from 127.0.0.1: repset create {user}: done" in scene.events(9152)
        assert scene.dtctl(user, "repset", "delete", user, remote=True).code == 0
    assert any(
        t == f"{user} from 127.0.0.1 is let in by password: access level DT_{level}_ACCESS"
        for t in scene.events(600002)
    )
    logins = list((scene.directory / f"home-of-{user}").rglob("logins/*"))
    assert len(logins) == 1 and logins[0].stat().st_mode & 0o777 == 0o600
    assert scene.dtctl(user, "logout", remote=True).code == 0
    after = scene.dtctl(user, "status", remote=True)
    assert after.code == 4 and "log in first" in after.err


def test_certificates_stand_for_passwords(scene: Scene) -> None:
    good, revoked_certificate = scene.clients.issue("alice")
    stranger, _ = scene.servers.issue("alice")
    for path in (good, stranger):
        os.chown(path, int(scene._id("alice")), -1)
    ca = ["--ca", str(SEEN / scene.servers.path.name)]
    who = scene.dtctl("alice", *ca, "--cert", str(SEEN / good.name), "whoami", "--json", remote=True).json
    assert (who["user"], who["how"], who["level"]) == ("alice", "certificate", "DT_FULL_ACCESS")
    assert scene.dtctl("alice", *ca, "--cert", str(SEEN / stranger.name), "whoami", remote=True).code != 0
    wrong_ca = scene.dtctl("alice", "--ca", str(SEEN / scene.clients.path.name), "ping", remote=True)
    assert wrong_ca.code == 3 and "certificate" in wrong_ca.err
    scene.clients.revoke(revoked_certificate)  # read again without a restart
    assert scene.dtctl("alice", *ca, "--cert", str(SEEN / good.name), "whoami", remote=True).code != 0
    fresh, _ = scene.clients.issue("bob")
    os.chown(fresh, int(scene._id("bob")), -1)
    assert scene.dtctl("bob", *ca, "--cert", str(SEEN / fresh.name), "status", remote=True).code == 0


def test_a_server_that_has_changed_is_noticed(scene: Scene) -> None:
    bob = ["--fingerprint", scene.fingerprint]
    assert scene.log_in("bob", "bob", *bob).code == 0
    old = scene.fingerprint
    scene.servers.issue("localhost", "server.pem")  # renewed without a restart
    assert scene.fingerprint != old
    changed = scene.dtctl("bob", "status", remote=True)
    assert changed.code == 4 and "has changed" in changed.err and scene.fingerprint in changed.err


def test_wrong_passwords_are_told_counted_and_slowed(scene: Scene) -> None:
    """The last one that logs in: its address has to wait afterwards."""
    secret = "Zebra-77-password"
    failed = scene.failed_logins
    errors: list[str] = []
    while "too many failed logins: try again in" not in "".join(errors):  # the wait doubles
        refused = scene.log_in("carol", secret, "--fingerprint", scene.fingerprint)
        assert refused.code == 4 and len(errors) < 15
        errors.append(refused.err)
    assert len(errors) > 3 and all("the user or the password is wrong" in error for error in errors[:-1])
    assert scene.failed_logins == failed + len(errors)
    assert any(t == "login of carol from 127.0.0.1 failed: authentication failed" for t in scene.events(9150))
    for path in scene.agent.home.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def test_nothing_but_tls_1_3_is_answered(scene: Scene) -> None:
    with socket.create_connection(("127.0.0.1", scene.port), 10) as plain:
        plain.sendall(b"GET /v1/ping HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"alpha" not in plain.recv(1000)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", scene.port), 10) as old, pytest.raises(OSError):
        context.wrap_socket(old)
    assert scene.client.get("ping")["agent"] == "alpha"


def test_one_user_cannot_keep_others_out(scene: Scene) -> None:
    """carol, who has no access at all, opens as many connections as she can."""
    program = (
        "import socket, sys, time\nheld = []\n"
        "for _ in range(300):\n"
        "    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); held.append(s)\n"
        "print('held', flush=True); sys.stdin.read()\n"
    )
    command = [*scene.host.command_as("carol"), sys.executable, "-c", program, SEEN / "home" / "api.sock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as flood:
        assert flood.stdout is not None and flood.stdout.readline() == b"held\n"
        assert scene.dtctl("bob", "status").code == 0
        assert scene.client.get("connections") == []
        flood.communicate(timeout=20)
    assert any("too many connections" in text for text in scene.events(9156))
    assert json.dumps(scene.events(9156)).count("too many connections") == 1
