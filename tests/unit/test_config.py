"""The configuration file: what is shipped equals the defaults, and each mistake is one line that helps."""

import tomllib
from pathlib import Path

import pytest

from replicator import config, limits
from replicator.config import Config, load, parse, parse_size, show_size
from replicator.errors import ConfigError

SAMPLE = Path(__file__).parents[2] / "etc" / "replicator.toml"


def test_the_sample_equals_the_defaults() -> None:
    assert parse(SAMPLE.read_bytes(), str(SAMPLE)) == Config()


def test_the_sample_shows_every_key() -> None:
    shown = {
        f"{section}.{key}" for section, keys in tomllib.loads(SAMPLE.read_text()).items() for key in keys
    }
    assert shown == set(config._CHECKS)


def test_every_key_has_a_check() -> None:
    fields = {
        f"{section}.{key}"
        for section in Config.__struct_fields__
        for key in getattr(Config(), section).__struct_fields__
    }
    assert fields == set(config._CHECKS)


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SYSTEM_FILE", str(tmp_path / "none.toml"))
    assert load(str(tmp_path)) == Config()


def test_the_home_goes_before_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "system.toml"
    monkeypatch.setattr(config, "SYSTEM_FILE", str(system))
    system.write_text('[agent]\nname = "system"\n')
    home = tmp_path / "home"
    home.mkdir()
    assert load(str(home)).agent.name == "system"
    (home / "replicator.toml").write_text('[agent]\nname = "home"\n')
    assert load(str(home)).agent.name == "home"
    assert load(str(home), str(system)).agent.name == "system"


def test_a_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: no such"):
        load(str(tmp_path), str(tmp_path / "none.toml"))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "replicator.toml").mkdir()
    with pytest.raises(ConfigError, match=r"replicator\.toml: cannot be read"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[quue]\n", "quue: unknown section; did you mean queue?"),
        ("[elephant]\n", "elephant: unknown section; known: agent, queue"),
        ("[queue]\nmemry_size = 1", "queue.memry_size: unknown key; did you mean queue.memory_size?"),
        ("[queue]\nzebra = 1", "queue.zebra: unknown key; known: "),
        ("agent = 3", "agent: must be a section: write [agent]"),
        ("[queue]\nmemory_size = 1.5", 'queue.memory_size = 1.5: must be a size from "32 MiB"'),
        ("[queue]\nmemory_size = true", "must be a size"),
        ('[queue]\nmemory_size = "31 MiB"', 'queue.memory_size = "31 MiB": must be a size from "32 MiB"'),
        ('[queue]\nmemory_size = "128 elephants"', "must be a size"),
        ('[queue]\nmemory_size = "unlimited"', "must be a size"),
        ('[queue]\nsegment_size = "20 MiB"\nmemory_size = "32 MiB"', "at most half of queue.memory_size"),
        ("[queue]\ndisk_size_max = -1", 'or "unlimited"'),
        ("[queue]\nalert_percent = 0", "queue.alert_percent = 0: must be a whole number from 1 to 100"),
        ('[queue]\nalert_percent = "50"', "must be a whole number"),
        ("[queue]\nalert_percent = true", "alert_percent = true: must be a whole number"),
        ('[queue]\nmemory_directory = "shm"', "must be an absolute path"),
        ('[queue]\nmemory_directory = ""', "must be an absolute path"),
        ('[agent]\nlisten = "::1:1500"', "IPv6 address in brackets"),
        ('[agent]\nlisten = "host:99999"', "port must be a number"),
        ('[agent]\nname = "a/b"', "without /"),
        ('[agent]\nname = ["a"]', "must be a text"),
        ("[agent]\ninsecure = 1", "must be true or false"),
        ('[connection]\ncongestion_control = "bbr 2"', 'must be the name of one, as "bbr"'),
        ("[agent\n", "not valid TOML"),
        ("\x00", "not valid TOML"),
    ],
)
def test_mistakes_are_one_line_with_file_key_and_what_is_allowed(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), "/etc/x.toml")
    message = str(caught.value)
    assert message.startswith("/etc/x.toml: ") and complaint in message and "\n" not in message


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(ConfigError, match="not valid TOML"):
        parse(b"\xff\xfe", "x")


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [
        ("0", 0),
        ("5242880", 5 * limits.MIB),
        ("128 MiB", 128 * limits.MIB),
        ("128mib", 128 * limits.MIB),
        (" 3 GiB ", 3 * 1024 * limits.MIB),
        ("1 TiB", 1024 * 1024 * limits.MIB),
        ("7 B", 7),
        ("128 MB", None),
        ("-1", None),
        ("1.5 GiB", None),
        ("", None),
        ("٣", None),
    ],
)
def test_sizes(text: str, bytes_: int | None) -> None:
    assert parse_size(text) == bytes_


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 5 * limits.MIB, 3 * 1024**3, None])
def test_sizes_are_shown_as_they_can_be_written(size: int | None) -> None:
    text = show_size(size)
    assert (None if text == config.UNLIMITED else parse_size(text)) == size


def test_sizes_may_be_numbers_and_unlimited() -> None:
    made = parse(b'[queue]\nmemory_size = 67108864\ndisk_size_max = "unlimited"\n', "x")
    assert made.queue.memory_size == 64 * limits.MIB and made.queue.disk_size_max is None
    assert parse(b"[queue]\ndisk_size_max = 0\n", "x").queue.disk_size_max == 0


@pytest.mark.parametrize(
    "text",
    [
        b"a = " + b"[" * 5000,
        b"agent = " + b"{a = " * 3000,
        b"[queue]\nmemory_size = " + b"9" * 5000,
        b"[queue]\nalert_percent = 0x" + b"f" * 5000,
        b"[agent]\nname = \xff",
    ],
)
def test_what_is_beyond_every_limit_is_one_line_as_well(text: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "replicator.toml")
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)
