"""What is shipped for services and clusters: samples that start them, the OCF agent, the notify script."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import postgres
from kit.machine import is_root

pytestmark = pytest.mark.fs
ETC = Path(__file__).parents[2] / "etc"
SAMPLES = ("postgresql", "nfs", "samba", "nginx", "snmptrap")
KINDS = ("pre-failover", "post-failover", "pre-failback", "post-failback", "source-post-failback")
OCF_ROOT = Path("/usr/lib/ocf")

needs_root = pytest.mark.skipif(not is_root(), reason="starts services as root")


def needs(program: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"no {program} here (Debian package {package})"
    )


def run(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **variables}
    return subprocess.run(
        [ETC / "scripts" / name, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )


def well(name: str, *arguments: str, **variables: str) -> str:
    done = run(name, *arguments, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class StandIns:
    """Programs in a PATH of their own, which note how they were called. `answers`: what one does."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "bin"
        self.directory.mkdir()
        self.log = directory / "calls"
        self.log.touch()

    def make(self, name: str, body: str = "") -> None:
        path = self.directory / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.log}\n{body}\n')
        path.chmod(0o755)

    @property
    def path(self) -> str:
        return f"{self.directory}:{os.environ['PATH']}"

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def stand_ins(tmp_path: Path) -> StandIns:
    return StandIns(tmp_path)


# --- all of them ---


@needs("shellcheck", "shellcheck")
def test_shellcheck_finds_nothing() -> None:
    files = [*(ETC / "scripts").iterdir(), ETC / "ocf" / "replicator", ETC / "keepalived" / "notify"]
    done = subprocess.run(
        ["shellcheck", "-x", "-P", ETC / "scripts", *files], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SAMPLES)
def test_each_says_what_it_wants_and_what_is_missing(name: str, tmp_path: Path) -> None:
    assert run(name).returncode != 0
    assert run(name, "nonsense").returncode != 0
    (tmp_path / "bin").mkdir()
    for program in ("sh", "basename", "dirname", "tr", "sort", "tail", "id", "setpriv"):
        found = shutil.which(program)
        assert found is not None
        (tmp_path / "bin" / program).symlink_to(found)
    bare = {"PATH": str(tmp_path / "bin"), "REPLICATOR_ROOTS": "1", "REPLICATOR_ROOT_1": "/nowhere"}
    done = run(name, "--check", **bare, PG_BIN="/nowhere")
    assert done.returncode == 1 and "missing here:" in done.stderr, done


@pytest.mark.parametrize("kind", ("question", *KINDS))
def test_a_trap_says_what_happens(kind: str, stand_ins: StandIns) -> None:
    stand_ins.make("snmptrap")
    told = {"REPLICATOR_SCRIPT": kind, "REPLICATOR_GROUP": "web", "REPLICATOR_REASON": "no answer"}
    well("snmptrap", PATH=stand_ins.path, SNMPTRAP_HOST="10.0.0.9", **told)
    (call,) = stand_ins.calls()
    assert call.startswith("snmptrap -v 2c -c public 10.0.0.9 ")
    assert f" s {kind} " in call and " s web " in call and call.endswith(" s no answer")
    well("snmptrap", PATH=stand_ins.path, SNMPTRAP_HOST="10.0.0.9", REPLICATOR_TEST="1", **told)
    assert len(stand_ins.calls()) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_test_changes_nothing(kind: str, stand_ins: StandIns, tmp_path: Path) -> None:
    for name in ("exportfs", "smbd", "nginx", "testparm"):
        stand_ins.make(name)
    stand_ins.make("smbcontrol", "exit 1")  # nothing runs
    (tmp_path / "conf").write_text("")
    told = {
        "REPLICATOR_SCRIPT": kind,
        "REPLICATOR_TEST": "1",
        "REPLICATOR_ROOTS": "1",
        "REPLICATOR_ROOT_1": str(tmp_path),
        "REPLICATOR_SOURCE_ROOT_1": "/srv/source",
        "PATH": stand_ins.path,
        "NGINX_CONF": str(tmp_path / "conf"),
        "NGINX_PID": str(tmp_path / "none"),
        "SMB_CONF": str(tmp_path / "conf"),
    }
    for name in ("nfs", "samba", "nginx"):
        well(name, **told)
    looks = ("nginx -t", "testparm", "smbcontrol --configfile")
    assert all(call.startswith(looks) for call in stand_ins.calls()), stand_ins.calls()


# --- PostgreSQL ---


@pytest.fixture
def cluster() -> Iterator[Path]:
    """Where the user of a server may get."""
    directory = Path(tempfile.mkdtemp(prefix="sample-"))
    directory.chmod(0o755)
    try:
        postgres.create(directory / "cluster")
        yield directory / "cluster"
    finally:
        shutil.rmtree(directory)


@needs_root
@pytest.mark.skipif(bool(postgres.why_not()), reason=postgres.why_not())
def test_postgresql_is_started_on_a_copy_and_stopped(cluster: Path) -> None:
    told = {
        "REPLICATOR_ROOTS": "1",
        "REPLICATOR_ROOT_1": str(cluster),
        "PG_PORT": str(free_port()),
        "PG_SOCKET": str(cluster.parent / "socket"),
        "PG_OPTIONS": "-c listen_addresses='' -c shared_buffers=16MB",
    }

    def rows() -> str:
        command = ["psql", "-h", told["PG_SOCKET"], "-p", told["PG_PORT"], "-U", "postgres", "-Atqc"]
        query = "select count(*) from pgbench_accounts"
        return subprocess.check_output([*command, query, "postgres"], text=True, cwd="/").strip()

    well("postgresql", "--check", **told)
    # As a copy has it: of a server of another host, whose number somebody else has here.
    (cluster / "postmaster.pid").write_text(f"{os.getpid()}\n/srv/data\n")
    try:
        assert "would run:" in well("postgresql", "post-failover", REPLICATOR_TEST="1", **told)
        assert "PostgreSQL serves" in well("postgresql", "post-failover", **told)
        assert rows() == "100000"
        assert "runs on" in well("postgresql", "post-failover", **told)  # once more
        well("postgresql", "pre-failback", **told)
        assert "no server runs" in well("postgresql", "pre-failback", **told)
        well("postgresql", "source-post-failback", **told)
        assert rows() == "100000"
    finally:
        well("postgresql", "pre-failback", **told)
    done = run("postgresql", "post-failover", **{**told, "REPLICATOR_ROOT_1": str(cluster.parent)})
    assert done.returncode == 1 and "is no cluster" in done.stderr


# --- nginx ---


@needs_root
@needs("nginx", "nginx-light")
def test_nginx_serves_a_copy(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("of the copy")
    port = free_port()
    conf = tmp_path / "nginx.conf"
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    conf.write_text(
        f"user root; pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port}; root {tmp_path}; }} }}\n"
    )
    told = {"NGINX_CONF": str(conf), "NGINX_PID": f"{tmp_path}/pid", "NGINX_UNIT": ""}

    def page() -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/page", timeout=5) as answer:
            data: bytes = answer.read()
            return data

    well("nginx", "--check", **told)
    try:
        well("nginx", "post-failover", **told)
        assert page() == b"of the copy"
        well("nginx", "post-failover", **told)
        assert page() == b"of the copy"
    finally:
        well("nginx", "pre-failback", **told)
    with pytest.raises(OSError):
        page()
    assert "does not run" in well("nginx", "pre-failback", **told)
    conf.write_text("nonsense")
    assert run("nginx", "post-failover", **told).returncode == 1


# --- Samba ---


@needs_root
@needs("smbd", "samba")
def test_samba_shares_a_copy(tmp_path: Path) -> None:
    for name in ("private", "state", "cache", "lock", "pid", "log", "share", "ncalrpc"):
        (tmp_path / name).mkdir(mode=0o755)
    conf = tmp_path / "smb.conf"
    port = free_port()
    conf.write_text(
        "[global]\n"
        f"smb ports = {port}\ninterfaces = lo\nbind interfaces only = yes\ndisable netbios = yes\n"
        f"private dir = {tmp_path}/private\nstate directory = {tmp_path}/state\n"
        f"cache directory = {tmp_path}/cache\nlock directory = {tmp_path}/lock\n"
        f"pid directory = {tmp_path}/pid\n"
        f"ncalrpc dir = {tmp_path}/ncalrpc\nlog file = {tmp_path}/log/smbd\nload printers = no\n"
        f"[data]\npath = {tmp_path}/share\n"
    )
    told = {"SMB_CONF": str(conf), "SMB_UNIT": ""}
    well("samba", "--check", **told)
    try:
        assert "Samba serves" in well("samba", "post-failover", **told)
        socket.create_connection(("127.0.0.1", port), 5).close()
        assert "runs already" in well("samba", "post-failover", **told)
    finally:
        well("samba", "pre-failback", **told)
    deadline_s = time.monotonic() + 10
    while any((tmp_path / "pid").glob("smbd*")) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert "does not run" in well("samba", "pre-failback", **told)


# --- NFS ---


def test_nfs_exports_the_copies_with_the_same_numbers_on_both_hosts(
    stand_ins: StandIns, tmp_path: Path
) -> None:
    """The kernel's server is nothing that a test starts."""
    stand_ins.make("exportfs")
    told = {
        "PATH": stand_ins.path,
        "NFS_UNIT": "",
        "NFS_CLIENTS": "10.0.0.0/24",
        "REPLICATOR_ROOTS": "2",
        "REPLICATOR_ROOT_1": "/srv/copies/with a space",
        "REPLICATOR_ROOT_2": "/srv/copies/b",
        "REPLICATOR_SOURCE_ROOT_1": "/srv/a",
        "REPLICATOR_SOURCE_ROOT_2": "/srv/b",
    }
    well("nfs", "post-failover", **told)
    well("nfs", "pre-failback", **told)
    well("nfs", "source-post-failback", **told)
    options = "rw,sync,no_subtree_check,fsid"
    assert stand_ins.calls() == [
        f"exportfs -o {options}=7001 10.0.0.0/24:/srv/copies/with a space",
        f"exportfs -o {options}=7002 10.0.0.0/24:/srv/copies/b",
        "exportfs -u 10.0.0.0/24:/srv/copies/with a space",
        "exportfs -u 10.0.0.0/24:/srv/copies/b",
        f"exportfs -o {options}=7001 10.0.0.0/24:/srv/a",
        f"exportfs -o {options}=7002 10.0.0.0/24:/srv/b",
    ]
    stand_ins.make("exportfs", "exit 1")
    assert run("nfs", "post-failover", **told).returncode == 1
    well("nfs", "pre-failback", **told)  # what is not exported is as it should be


# --- clusters ---

_DTCTL = """
[ "$1" = --home ] && shift 2
cd DIRECTORY || exit
case "$*" in
"status --json") printf '[\\n  {\\n    "id": 3,\\n    "repset": "x"\\n  }\\n]\\n' ;;
"failover guards --json") for name in other web; do
        printf '    "name": "%s",\\n    "is_open": true,\\n    "superseded": %s\\n' $name "$(cat $name)"
    done ;;
"failover show web --json")
    [ -s phase ] || exit 2
    printf '{\\n  "phase": "%s",\\n' "$(cat phase)"
    printf '  "settings": {"automatic": %s}\\n}\\n' "$(cat automatic)" ;;
"failover now web"*) [ ! -e refuses ] || { echo "the witness says no" >&2; exit 1; }
    echo "failed over" >phase ;;
"wait 3 --timeout"*) ;;
*) echo "unknown: $*" >&2; exit 2 ;;
esac
"""


class Cluster:
    """One host, as its cluster manager sees it, with an agent that a few files play."""

    def __init__(self, directory: Path, stand_ins: StandIns) -> None:
        self.directory = directory
        self.stand_ins = stand_ins
        stand_ins.make("dtctl", _DTCTL.replace("DIRECTORY", str(directory)))
        self.says(phase="watching", web="null", other="{", automatic="false")
        (directory / "home").mkdir()

    def says(self, **files: str) -> None:
        for name, text in files.items():
            (self.directory / name).write_text(text)

    @property
    def settings(self) -> dict[str, str]:
        return {
            "group": "web",
            "dtctl": str(self.stand_ins.directory / "dtctl"),
            "home": str(self.directory / "home"),
        }

    def ocf(self, action: str, **settings: str) -> int:
        environment = {
            **os.environ,
            "OCF_ROOT": str(OCF_ROOT),
            "OCF_RESOURCE_INSTANCE": f"test-{os.getpid()}",
            "HA_RSCTMP": str(self.directory / "tmp"),
            "OCF_RESKEY_CRM_meta_timeout": "20000",
            **{f"OCF_RESKEY_{name}": value for name, value in {**self.settings, **settings}.items()},
        }
        done = subprocess.run(
            [ETC / "ocf" / "replicator", action],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        self.said = done.stdout + done.stderr
        return done.returncode


@pytest.fixture
def cluster_host(tmp_path: Path, stand_ins: StandIns) -> Cluster:
    if not (OCF_ROOT / "lib/heartbeat/ocf-shellfuncs").exists():
        pytest.skip("no OCF shell functions here (Debian package resource-agents)")
    return Cluster(tmp_path, stand_ins)


SUCCESS, GENERIC, INSTALLED, CONFIGURED, NOT_RUNNING, PROMOTED, FAILED_PROMOTED = 0, 1, 5, 6, 7, 8, 9


@needs_root
@needs("ocf-tester", "resource-agents")
@needs("xmllint", "libxml2-utils")
def test_the_resource_agent_conforms(cluster_host: Cluster) -> None:
    options = [word for name, value in cluster_host.settings.items() for word in ("-o", f"{name}={value}")]
    done = subprocess.run(
        ["ocf-tester", "-n", f"replicator-test-{os.getpid()}", *options, ETC / "ocf" / "replicator"],
        env={**os.environ, "OCF_ROOT": str(OCF_ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0 and "passed all tests" in done.stdout, done.stdout + done.stderr


def test_promoting_a_target_is_a_failover(cluster_host: Cluster) -> None:
    host = cluster_host
    assert host.ocf("monitor") == NOT_RUNNING
    assert host.ocf("promote") != SUCCESS  # not started
    assert host.ocf("start") == SUCCESS and host.ocf("start") == SUCCESS
    assert host.ocf("monitor") == SUCCESS
    assert host.ocf("demote") == SUCCESS
    assert host.ocf("promote") == SUCCESS and host.ocf("monitor") == PROMOTED
    assert host.ocf("promote") == SUCCESS
    assert host.ocf("demote") == SUCCESS and host.ocf("monitor") == SUCCESS
    assert host.ocf("promote") == SUCCESS  # it owns it still
    assert host.ocf("stop") == SUCCESS and host.ocf("monitor") == NOT_RUNNING
    assert host.ocf("stop") == SUCCESS
    now = [call for call in host.stand_ins.calls() if "failover now" in call]
    assert len(now) == 1 and "--force" not in now[0]


def test_a_failover_that_is_refused_promotes_nothing(cluster_host: Cluster) -> None:
    host = cluster_host
    host.says(refuses="")
    assert host.ocf("start") == SUCCESS
    assert host.ocf("promote") == GENERIC and "the witness says no" in host.said
    assert host.ocf("monitor") == SUCCESS
    (host.directory / "refuses").unlink()
    assert host.ocf("promote", force="true") == SUCCESS
    assert "--force" in host.stand_ins.log.read_text()


def test_a_source_is_promoted_while_it_owns_and_drained_before_it_is_demoted(cluster_host: Cluster) -> None:
    host = cluster_host
    host.says(phase="")
    assert host.ocf("start") == SUCCESS and host.ocf("promote") == SUCCESS
    assert host.ocf("monitor") == PROMOTED
    assert host.ocf("demote") == SUCCESS
    assert any(call.endswith("wait 3 --timeout 10") for call in host.stand_ins.calls())
    assert not any("failover now" in call for call in host.stand_ins.calls())
    assert host.ocf("promote") == SUCCESS
    host.says(web="{")  # the other one has taken over meanwhile
    assert host.ocf("monitor") == FAILED_PROMOTED and "another host owns" in host.said
    assert host.ocf("demote") == SUCCESS
    assert host.ocf("promote") == GENERIC and "dtctl failback web" in host.said


def test_an_agent_that_does_not_answer_has_failed(cluster_host: Cluster) -> None:
    host = cluster_host
    assert host.ocf("start") == SUCCESS
    host.stand_ins.make("dtctl", "exit 3")
    assert host.ocf("monitor") == GENERIC
    assert host.ocf("stop") == SUCCESS


def test_wrong_settings_are_told(cluster_host: Cluster) -> None:
    host = cluster_host
    assert host.ocf("validate-all") == SUCCESS
    assert host.ocf("validate-all", group="") == CONFIGURED
    assert host.ocf("validate-all", dtctl="/no/dtctl") == INSTALLED
    assert host.ocf("validate-all", home="/no/home") == INSTALLED
    host.says(automatic="true")
    assert host.ocf("validate-all") == CONFIGURED and "--manual" in host.said
    assert host.ocf("nonsense") == 3


@pytest.mark.parametrize(
    ("state", "phase", "code", "said", "takes_over"),
    [
        ("MASTER", "watching", 0, "taken over", True),
        ("MASTER", "failed over", 0, "owns it already", False),
        ("MASTER", "", 0, "nothing to take over", False),
        ("BACKUP", "failed over", 0, "dtctl failback web", False),
        ("BACKUP", "watching", 0, "state BACKUP", False),
        ("FAULT", "watching", 0, "state FAULT", False),
        ("nonsense", "watching", 2, "unknown state", False),
        ("", "watching", 2, "usage", False),
    ],
)
def test_keepalived(
    state: str, phase: str, code: int, said: str, takes_over: bool, tmp_path: Path, stand_ins: StandIns
) -> None:
    host = Cluster(tmp_path, stand_ins)
    host.says(phase=phase)
    stand_ins.make("logger")
    environment = {"PATH": stand_ins.path, "REPLICATOR_HOME": host.settings["home"]}
    done = subprocess.run(
        [ETC / "keepalived" / "notify", "INSTANCE", "web", state, "100"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, said in done.stdout) == (code, True), done
    assert any("failover now" in call for call in stand_ins.calls()) is takes_over
    if takes_over:
        host.says(phase="watching", refuses="")
        done = subprocess.run(
            [ETC / "keepalived" / "notify", "INSTANCE", "web", state, "100"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 1 and "NOT taken over: the witness says no" in done.stdout
