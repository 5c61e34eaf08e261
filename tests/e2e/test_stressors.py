"""stress-ng on a mount: each stressor of file systems verifies what it does, then both sides are equal.

`SOAK_STRESS_S=2 make soak` gives each two seconds instead of two minutes.
"""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
from kit.campaign import amount
from kit.protected import Protected, protected

STRESS_S = amount("STRESS_S", 120)
END_TIMEOUT_S = 100  # for a stressor to end after its time
DRAIN_TIMEOUT_S = 900
WORKERS = 2
CONFIGURATION = "[mirror]\nremap_links = false\n"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.soak,
    pytest.mark.timeout_s(STRESS_S + END_TIMEOUT_S + DRAIN_TIMEOUT_S + 200),
]

# Options that keep files small: what is to be stressed is the mount, not the disk. No getdent: it reads the
# directories of the host.
STRESSORS = {
    "access": (),
    "aio": (),
    "aiol": (),
    "chdir": (),
    "chmod": (),
    "chown": (),
    "close": (),
    "copy-file": ("--copy-file-bytes", "128m"),
    "dentry": (),
    "dir": (),
    "dirdeep": ("--dirdeep-inodes", "4000"),
    "dirmany": (),
    "dup": (),
    "fallocate": ("--fallocate-bytes", "32m"),
    "fcntl": (),
    "fiemap": ("--fiemap-bytes", "16m"),
    "file-ioctl": (),
    "filename": (),
    "flock": (),
    "fpunch": (),
    "fstat": (),
    "hdd": ("--hdd-bytes", "64m"),
    "inotify": (),
    "io-uring": (),
    "iomix": ("--iomix-bytes", "64m"),
    "lease": (),
    "link": (),
    "locka": (),
    "lockf": (),
    "lockofd": (),
    "mknod": (),
    "mmap": ("--mmap-bytes", "32m", "--mmap-file"),
    "msync": ("--msync-bytes", "16m"),
    "open": (),
    "readahead": ("--readahead-bytes", "64m"),
    "rename": (),
    "revio": ("--revio-bytes", "32m"),
    "seek": ("--seek-size", "32m", "--seek-punch"),
    "sendfile": (),
    "splice": (),
    "symlink": (),
    "sync-file": ("--sync-file-bytes", "32m"),
    "touch": (),
    "utime": (),
    "verity": (),
    "xattr": (),
}
NEEDS_REMOVAL = {"filename", "inotify"}  # they expect that their files are gone, or are told so


@cache
def known() -> frozenset[str]:
    """The stressors of the installed stress-ng; none if there is none."""
    if shutil.which("stress-ng") is None:
        return frozenset()
    said = subprocess.run(["stress-ng", "--stressors"], capture_output=True, text=True, check=True).stdout
    return frozenset(said.split())


def stress(pair: Protected, stressor: str) -> str:
    """Two workers for a while; they leave their files behind. Returns what was said."""
    command = ["stress-ng", f"--{stressor}", str(WORKERS), *STRESSORS[stressor], "--timeout", f"{STRESS_S}s"]
    options = ["--temp-path", pair.source, "--verify", "--metrics-brief"]
    if stressor not in NEEDS_REMOVAL:
        options.append("--keep-files")
    done = subprocess.run(
        [*command, *options],
        cwd=pair.source,  # where some make files, whatever --temp-path says
        capture_output=True,
        text=True,
        check=False,
        timeout=STRESS_S + END_TIMEOUT_S,
    )
    said = done.stdout + done.stderr
    assert done.returncode in (0, 3), f"{done.returncode}: {said}"
    if done.returncode == 3 or not re.search(rf" {stressor} +[1-9]", said):  # operations that it counted
        pytest.skip(f"stress-ng cannot do it here: {said.strip().splitlines()[-1]}")
    return said


@pytest.mark.parametrize("stressor", STRESSORS)
def test_stressor(stressor: str, tmp_path: Path) -> None:
    if stressor not in known():
        pytest.skip("no stress-ng here" if not known() else "this stress-ng does not have it")
    # They make absolute links, and the links have to be equal.
    with protected(tmp_path, configuration=CONFIGURATION) as pair:
        print(stress(pair, stressor))
        pair.assert_equal(DRAIN_TIMEOUT_S)
        assert pair.status["target_data_state"] == "OK"
