"""What may be captured and mounted where: decisions on parsed mountinfo."""

from pathlib import Path

import pytest

from replicator.errors import UsageError
from replicator.fs.mounts import (
    Captured,
    check_mount,
    is_lock,
    lock_at,
    mount_at,
    mount_over,
    parse_mountinfo,
    resolve,
    without,
)

MOUNTINFO = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw,nosuid - proc proc rw
24 22 0:22 / /sys rw shared:7 master:2 - sysfs sysfs rw
25 22 8:2 / /srv rw,relatime - xfs /dev/sda2 rw
26 25 8:3 / /srv/big\040disk\134x rw,relatime - ext4 /dev/sda3 rw
27 22 0:40 / /data rw,relatime - fuse.replicator /data rw,user_id=0
28 25 0:41 / /srv rw,relatime - xfs /dev/sdb1 rw
29 22 0:42 / /dev rw - devtmpfs devtmpfs rw
"""
MOUNTS = parse_mountinfo(MOUNTINFO)


def test_mountinfo_is_parsed_with_escapes_and_optional_fields() -> None:
    assert len(MOUNTS) == 8
    assert MOUNTS[4].point == "/srv/big disk\\x"
    assert MOUNTS[2].fstype == "sysfs"


def test_of_several_mounts_on_one_point_the_topmost_counts() -> None:
    at = mount_at("/srv", MOUNTS)
    assert at is not None
    assert at.source == "/dev/sdb1"
    over = mount_over("/srv/a/b", MOUNTS)
    assert over is not None
    assert over.source == "/dev/sdb1"
    assert mount_at("/srv/a", MOUNTS) is None
    root = mount_over("/srvx", MOUNTS)
    assert root is not None
    assert root.point == "/"


def test_a_mount_beneath_another_is_listed_after_it_and_does_not_count() -> None:
    text = "40 60 0:1 / /d rw - fuse.replicator /d rw\n60 22 0:2 / /d rw - fuse.replicator /d rw\n"
    mounts = parse_mountinfo(MOUNTINFO + text)
    for found in (mount_at("/d", mounts), mount_over("/d/e", mounts)):
        assert found is not None
        assert (found.id, found.device) == (40, "0:1")


def test_without_a_mount_there_is_nothing_that_was_mounted_on_it() -> None:
    text = "51 50 0:1 / /data/in/er rw - tmpfs t rw\n50 27 0:2 / /data/in rw - ext4 /dev/x rw\n"
    mounts = parse_mountinfo(text + MOUNTINFO)
    assert [entry.id for entry in without(mounts, {27})] == [22, 23, 24, 25, 26, 28, 29]
    assert without(mounts, ()) == mounts
    check_mount("/data", "/data", without(mounts, {27}))


@pytest.mark.parametrize("path", ["/home/a", "/srv/small", "/home"])
def test_ordinary_directories_may_be_captured(path: str) -> None:
    check_mount(path, path, MOUNTS)
    check_mount(path, "/mnt", MOUNTS)


@pytest.mark.parametrize(
    ("path", "mountpoint", "reason"),
    [
        ("/", "/mnt", "the root directory"),
        ("/home", "/", "the root directory"),
        ("/proc/1", "/proc/1", "proc file system"),
        ("/sys", "/mnt", "sysfs file system"),
        ("/home", "/dev/shm", "devtmpfs file system"),
        ("/data", "/data", "captured already"),
        ("/data/sub", "/data/sub", "captured already"),
        ("/data/sub", "/mnt", "captured already"),
        ("/srv", "/srv", r"mounted at /srv/big disk\\x"),
        ("/home", "/srv", r"mounted at /srv/big disk\\x"),
        ("/home", "/home/at", "inside the other"),
        ("/home/src", "/home", "inside the other"),
    ],
)
def test_refusals_name_the_reason(path: str, mountpoint: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        check_mount(path, mountpoint, MOUNTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "mountpoint"),
    [
        ("/home/a", "/home/a"),
        ("/home/a/b", "/home/a/b"),
        ("/home", "/home"),
        ("/other", "/mnt/a"),
        ("/other", "/mnt"),
        ("/mnt/a", "/mnt/a"),
    ],
)
def test_a_mount_inside_a_mount_is_refused_before_it_shows(path: str, mountpoint: str) -> None:
    with pytest.raises(UsageError, match="captured already"):
        check_mount(path, mountpoint, MOUNTS, captured=[Captured("/home/a", "/mnt/a")])


def test_similar_names_are_no_nesting() -> None:
    check_mount("/home/ab", "/mnt/ab", MOUNTS, captured=[Captured("/home/a", "/mnt/a")])


def test_the_agents_own_directories_are_not_captured() -> None:
    with pytest.raises(UsageError, match="own directory /var/lib/replicator/queue"):
        check_mount("/var", "/var", MOUNTS, own_directories=["/var/lib/replicator/queue"])
    check_mount("/var/lib/data", "/var/lib/data", MOUNTS, own_directories=["/var/lib/replicator"])


def test_resolving(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").touch()
    (tmp_path / "link").symlink_to("d")
    assert resolve(str(tmp_path / "link")) == str(tmp_path / "d")
    with pytest.raises(UsageError, match="not a directory"):
        resolve(str(tmp_path / "f"))
    with pytest.raises(UsageError, match="No such file"):
        resolve(str(tmp_path / "none"))


LOCKS = parse_mountinfo(r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
25 22 8:2 /@srv /srv rw,relatime - btrfs /dev/sda2 rw
30 22 8:1 /var/copy /var/copy ro,relatime - ext4 /dev/sda1 rw
31 25 8:2 /@srv /srv ro,relatime - btrfs /dev/sda2 rw
32 22 8:1 /var/other /var/backup ro,relatime - ext4 /dev/sda1 rw
33 22 8:1 /var/rw /var/rw rw,relatime - ext4 /dev/sda1 rw
34 22 0:50 / /var/empty ro,nosuid - tmpfs replicator-lock ro,size=4k
35 22 0:51 / /var/tmp ro,nosuid - tmpfs tmpfs ro,size=4k
36 22 8:3 /var/disk /var/disk ro,relatime - ext4 /dev/sdc1 rw
""")


def test_a_lock_is_the_covered_directory_read_only_or_our_empty_file_system() -> None:
    assert [entry.id for entry in LOCKS if is_lock(entry, LOCKS)] == [30, 31, 34]
    lock = lock_at("/srv", LOCKS)
    assert lock is not None and lock.id == 31
    assert lock_at("/var/tmp", LOCKS) is None
