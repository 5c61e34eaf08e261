"""What a user's `dtctl` remembers of agents on other hosts: their certificates, and logins.

Certificates: `known_servers` in $XDG_CONFIG_HOME/replicator, lines `HOST:PORT FINGERPRINT`. Logins: a file
each in $XDG_STATE_HOME/replicator/logins, for the user alone. A login ends at the agent; a file of one that
has ended lets nobody in.
"""

import hashlib
import os
import tempfile

from replicator.addresses import Address


class KnownServers:
    def __init__(self) -> None:
        self.path = os.path.join(_base("XDG_CONFIG_HOME", ".config"), "known_servers")

    def fingerprint(self, server: Address) -> str:
        """Of the certificate that this server had; "" if it is not known."""
        return self._all().get(str(server), "")

    def remember(self, server: Address, fingerprint: str) -> None:
        known = self._all()
        known[str(server)] = fingerprint
        _replace(self.path, "".join(f"{name} {value}\n" for name, value in sorted(known.items())))

    def _all(self) -> dict[str, str]:
        try:
            with open(self.path) as file:
                lines = [line.split() for line in file]
        except FileNotFoundError:
            return {}
        return {words[0]: words[1] for words in lines if len(words) == 2 and not words[0].startswith("#")}


class Logins:
    def __init__(self) -> None:
        self._directory = os.path.join(_base("XDG_STATE_HOME", ".local/state"), "logins")

    def token(self, server: Address, user: str) -> str | None:
        try:
            descriptor = os.open(self._path(server, user), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        with open(descriptor) as file:
            state = os.fstat(descriptor)
            if state.st_uid != os.geteuid() or state.st_mode & 0o077:
                return None  # somebody else has made it, or could read it
            return file.read().strip() or None

    def keep(self, server: Address, user: str, token: str) -> None:
        _replace(self._path(server, user), token + "\n")

    def forget(self, server: Address, user: str) -> None:
        try:
            os.unlink(self._path(server, user))
        except FileNotFoundError:
            pass

    def forget_all(self) -> int:
        """Returns how many there were."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return 0
        for name in names:
            os.unlink(os.path.join(self._directory, name))
        return len(names)

    def _path(self, server: Address, user: str) -> str:
        name = hashlib.sha256(f"{user}@{server}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return os.path.join(self._directory, name)


def _base(variable: str, otherwise: str) -> str:
    base = os.environ.get(variable) or os.path.join(os.path.expanduser("~"), otherwise)
    return os.path.join(base, "replicator")


def _replace(path: str, text: str) -> None:
    """Write a file for its user alone, whole or not at all. OSError."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=directory)  # mode 0600
    try:
        with open(descriptor, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
