"""What this machine lets tests do."""

import os
import shutil
import subprocess
from functools import cache


@cache
def _succeeds(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0


def is_root() -> bool:
    return os.geteuid() == 0


def has_fuse() -> bool:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def has_mount_namespaces() -> bool:
    return _succeeds("unshare", "--mount", "true")


def has_network_namespaces() -> bool:
    return _succeeds("unshare", "--net", "true")


def why_no_mounts() -> str:
    """Why tests with real mounts cannot run here; empty if they can."""
    if not is_root():
        return "real mounts need root"
    if not has_fuse():
        return "real mounts need /dev/fuse"
    if shutil.which("fusermount3") is None:
        return "real mounts need the package fuse3"
    return ""


def report() -> list[str]:
    """Facts for the header of a test run."""
    facts = {
        "root": is_root(),
        "/dev/fuse": has_fuse(),
        "mount namespaces": has_mount_namespaces(),
        "network namespaces": has_network_namespaces(),
        "/dev/shm": os.access("/dev/shm", os.W_OK),
    }
    return [f"{name} {'yes' if there else 'NO'}" for name, there in facts.items()]
