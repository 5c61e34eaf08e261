"""A protected directory: two agents, a mount, a copy. The usual beginning of an end-to-end test."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit import dtd
from kit.dtd import Agent
from kit.snapshots import beneath
from kit.trees import assert_same_tree

DRAIN_TIMEOUT_S = 50  # less than a command may take


class Protected:
    """`source` on agent `alpha` is mounted and copied to `copy` by agent `beta`."""

    def __init__(self, directory: Path, alpha: Agent, beta: Agent, copy: Path | None = None) -> None:
        self.source = directory / "source"
        self.copy = copy or directory / "copy"
        self.alpha = alpha
        self.beta = beta
        self.id = ""

    def connect(self, *options: str, wait: bool = True) -> None:
        self.source.mkdir(exist_ok=True)
        target = f"{self.beta.address}:{self.copy}"
        wanted = ("--wait",) if wait else ()
        self.id = str(self.alpha.json("protect", self.source, target, *wanted, *options)["id"])

    @property
    def status(self) -> dict[str, Any]:
        (status,) = self.alpha.json("status")
        assert isinstance(status, dict)
        return status

    @property
    def mount_id(self) -> str:
        (mount,) = self.alpha.json("mount", "list")
        return str(mount["id"])

    def drained(self, timeout_s: int = DRAIN_TIMEOUT_S) -> None:
        """All that was done is on the target."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            step_s = min(timeout_s, DRAIN_TIMEOUT_S)
            waited = self.alpha.dtctl("wait", self.id, "--timeout", str(step_s))
            if waited.code == 0:
                return
            assert waited.code == 1 and time.monotonic() < deadline_s, f"{waited.err}{self.status}"

    def assert_equal(self, timeout_s: int = DRAIN_TIMEOUT_S, ignore: frozenset[str] = frozenset()) -> None:
        """The copy equals what the storage below the mount has, and what programs see on the mount.

        `ignore`: aspects that `kit.trees` would compare.
        """
        self.drained(timeout_s)
        with beneath(self.alpha.home, self.mount_id) as below:
            assert_same_tree(below, self.copy, ignore)


@contextmanager
def protected(
    directory: Path, *, configuration: str = "", beta_configuration: str = "", connect: bool = True
) -> Iterator[Protected]:
    """Started, connected and mirrored; everything is down afterwards. Configurations are replicator.toml."""
    for name, text in (("alpha", configuration), ("beta", beta_configuration)):
        (directory / name).mkdir()
        (directory / name / "replicator.toml").write_text(text)
    with dtd.running(directory, "alpha", "beta") as (alpha, beta):
        pair = Protected(directory, alpha, beta)
        if connect:
            pair.connect()
        yield pair


def serves(mountpoint: Path) -> bool:
    """Whether a capture answers there: the name and attributes of a dead mount stay in the kernel's cache."""
    try:
        os.statvfs(mountpoint)
    except OSError:
        return False
    return os.path.ismount(mountpoint)
