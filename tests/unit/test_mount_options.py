"""Options of a mount as texts: parsed, shown, refused with one line."""

import re
from pathlib import Path

import msgspec
import pytest

from replicator import mount_options
from replicator.errors import UsageError
from replicator.mount_options import DEFAULTS, OPTIONS, MountOptions, changed, check, shown, split

DOCUMENT = Path(mount_options.__file__).parents[1] / "docs/administrators/mount-modes.md"


def test_every_field_is_in_the_table_and_the_other_way_round() -> None:
    assert tuple(OPTIONS) == MountOptions.__struct_fields__


def test_every_option_is_documented_with_its_default() -> None:
    text = DOCUMENT.read_text()
    for line in mount_options.table():
        assert re.search(
            rf"^\| `{line['name']}` \|.*\| `{re.escape(line['default'])}` \|", text, re.MULTILINE
        ), line


def test_parsing() -> None:
    texts = split(["writes=direct,reads=passthrough", "attribute_timeout=1.5", "disk_threads=4"])
    assert changed(DEFAULTS, texts) == MountOptions(
        writes="direct", reads="passthrough", attribute_timeout=1.5, disk_threads=4
    )
    assert changed(DEFAULTS, split(["request_timeout=120", "entry_timeout=0", "idle=sleep"])) == MountOptions(
        request_timeout=120, entry_timeout=0.0, idle="sleep"
    )


def test_one_is_changed_and_the_others_stay() -> None:
    options = changed(MountOptions(writes="direct", disk_threads=4), {"reads": "passthrough"})
    assert options == MountOptions(writes="direct", reads="passthrough", disk_threads=4)
    assert changed(options, {"writes": "default", "disk_threads": "default"}) == MountOptions(
        reads="passthrough"
    )
    assert mount_options.differing(options, DEFAULTS) == ["writes", "reads", "disk_threads"]


def test_what_is_shown_can_be_read_back() -> None:
    assert shown(DEFAULTS) == {}
    options = MountOptions(writes="direct", attribute_timeout=0.25, entry_timeout=3600.0, request_timeout=20)
    assert shown(options) == {
        "writes": "direct",
        "attribute_timeout": "0.25",
        "entry_timeout": "3600",
        "request_timeout": "20",
    }
    assert changed(DEFAULTS, shown(options)) == options


def test_defaults_are_not_stored() -> None:
    assert msgspec.json.encode(DEFAULTS) == b"{}"
    assert msgspec.json.encode(MountOptions(idle="poll")) == b'{"idle":"poll"}'
    assert msgspec.json.decode(b"{}", type=MountOptions) == DEFAULTS


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ({"write": "direct"}, "option 'write': must be one of writes, reads, .*"),
        ({"writes": "Direct"}, "option writes=Direct: must be cached|direct, or default"),
        ({"reads": ""}, "option reads=: must be cached|passthrough, or default"),
        (
            {"attribute_timeout": "-1"},
            "option attribute_timeout=-1: must be seconds, 0 to 86,400, or default",
        ),
        ({"attribute_timeout": "nan"}, "option attribute_timeout=nan: must be seconds.*"),
        ({"entry_timeout": "86401"}, "option entry_timeout=86401: must be seconds, 0 to 86,400, or default"),
        ({"disk_threads": "0"}, "option disk_threads=0: must be 1 to 256, or default"),
        ({"disk_threads": "٣"}, "option disk_threads=٣: must be 1 to 256, or default"),
        (
            {"request_timeout": "65536"},
            "option request_timeout=65536: must be seconds, 0 to 65535; 0 is none.*",
        ),
        ({"idle": "spin"}, "option idle=spin: must be auto|poll|sleep, or default"),
    ],
)
def test_what_makes_no_sense_is_refused(texts: dict[str, str], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        changed(DEFAULTS, texts)
    assert re.fullmatch(reason.replace("|", r"\|"), str(caught.value)), str(caught.value)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["direct"], "option 'direct': must be NAME=VALUE"),
        (["writes=direct,"], "option '': must be NAME=VALUE"),
        (["writes=direct", "writes=cached"], "option writes: is there twice"),
    ],
)
def test_what_is_no_option_is_refused(words: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        split(words)


def test_what_a_binding_or_a_kernel_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="option idle=poll: needs the kernel binding, and this is pyfuse3"):
        check(MountOptions(idle="poll"), "pyfuse3", "6.18.0")
    with pytest.raises(UsageError, match=r"reads=passthrough: needs Linux 6\.9, and this is 6\.8\.12-amd64"):
        check(MountOptions(reads="passthrough"), "kernel", "6.8.12-amd64")
    with pytest.raises(UsageError, match=r"writes=direct: needs Linux 6\.18"):
        check(MountOptions(writes="direct"), "kernel", "6.17.1")
    with pytest.raises(UsageError, match=r"request_timeout=30: needs Linux 6\.16"):
        check(MountOptions(request_timeout=30), "kernel", "strange")
    check(DEFAULTS, "pyfuse3", "5.4.0")
    check(MountOptions(writes="direct", reads="passthrough", request_timeout=1), "kernel", "10.0.0")
    check(MountOptions(attribute_timeout=1.0, disk_threads=1), "kernel", "5.4.0")


def test_the_mount_helper_passes_all_of_them_on() -> None:
    helper = (DOCUMENT.parents[2] / "etc/mount.replicator").read_text()
    for name in OPTIONS:
        assert re.search(rf"^ +(\S+ \| )*{name}=\*( \| \S+)*\)$", helper, re.MULTILINE), name
