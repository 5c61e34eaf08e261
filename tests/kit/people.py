"""Users, groups and passwords that exist for the processes of one test only.

    with people(tmp_path, alice="dtadmin", bob="dtmon", carol="") as host:
        subprocess.run([*host.command, ...])             # there, as root
        subprocess.run([*host.command_as("bob"), ...])   # there, as bob

A mount namespace in which copies of /etc/passwd, group and shadow lie over the machine's own. It ends with
the process that keeps it, and that with its standard input: nothing is left, however the test ends.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FIRST_ID = 61_000  # of users and groups: nobody's on a usual machine
_TIMEOUT_S = 20


class Host:
    """Where these users are. It stands for a host where agents are started (`kit.dtd.Agent`)."""

    address = "127.0.0.1"

    def __init__(self, files: dict[str, Path]) -> None:
        mounts = "".join(f"mount --bind '{path}' /etc/{name}; " for name, path in files.items())
        keeper = ["unshare", "--mount", "sh", "-ec", f"{mounts} echo ready; exec cat"]
        self._keeper = subprocess.Popen(keeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == b"ready\n"

    @property
    def command(self) -> list[str]:
        """What to put before a command that is to run there."""
        return ["nsenter", f"--mount=/proc/{self._keeper.pid}/ns/mnt"]

    def command_as(self, user: str) -> list[str]:
        """The same, as a login of this user would run it."""
        return [*self.command, "setpriv", "--reuid", user, "--regid", user, "--init-groups"]

    def run(self, *command: str) -> None:
        subprocess.run([*self.command, *command], check=True, capture_output=True, timeout=_TIMEOUT_S)

    def close(self) -> None:
        self._keeper.communicate(timeout=_TIMEOUT_S)


@contextmanager
def people(directory: Path, **groups: str) -> Iterator[Host]:
    """Users, each with a group of their own name, and in one more if it is named. The password of alice is
    alice's.
    """
    files = {}
    for name in ("passwd", "group", "shadow"):
        files[name] = directory / name
        files[name].write_text(Path("/etc", name).read_text())
        files[name].chmod(0o600 if name == "shadow" else 0o644)
    members: dict[str, list[str]] = {}
    for user, group in groups.items():
        if group:
            members.setdefault(group, []).append(user)
    identifiers = iter(range(_FIRST_ID, _FIRST_ID + 100))
    for user in groups:
        number = next(identifiers)
        _append(files["passwd"], f"{user}:x:{number}:{number}::{directory}:/bin/sh")
        _append(files["group"], f"{user}:x:{number}:")
        _append(files["shadow"], f"{user}:{_hashed(user)}:20000:0:99999:7:::")
    for group, users in members.items():
        _append(files["group"], f"{group}:x:{next(identifiers)}:{','.join(users)}")
    host = Host(files)
    try:
        yield host
    finally:
        host.close()


def leave(host_files: Path, user: str) -> None:
    """Take a user out of all groups of others, as `gpasswd -d` does."""
    path = host_files / "group"
    lines = []
    for line in path.read_text().splitlines():
        head, _, users = line.rpartition(":")
        lines.append(f"{head}:{','.join(u for u in users.split(',') if u != user)}")
    path.write_text("\n".join(lines) + "\n")  # in place: what is mounted is this file


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line + "\n")


def _hashed(password: str) -> str:
    command = ["openssl", "passwd", "-6", "-stdin"]
    answer = subprocess.run(
        command, input=password, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
    )
    return answer.stdout.strip()
