"""Configuration: a TOML file, checked whole before anything uses it.

The file is `replicator.toml` in the agent's home, else `/etc/replicator/replicator.toml`, else there is none
and the defaults of `limits.py` hold. `etc/replicator.toml` shows every key with its default.
"""

import difflib
import os
import re
import shlex
import tomllib
from collections.abc import Callable
from typing import Any, get_type_hints

import msgspec

from replicator import limits, transmission
from replicator.addresses import parse_host_port
from replicator.errors import ConfigError, UsageError
from replicator.plain import is_entry

SYSTEM_FILE = "/etc/replicator/replicator.toml"
UNLIMITED = "unlimited"
WATCH_ON, WATCH_OFF = "on", "off"
WATCHES = ("auto", WATCH_ON, WATCH_OFF)


class Agent(msgspec.Struct, frozen=True):
    """[agent]"""

    name: str = ""  # "": the host name
    listen: str = limits.LISTEN
    insecure: bool = False


class Access(msgspec.Struct, frozen=True):
    """[access]: who may use the control API, here and from other hosts."""

    admin_group: str = limits.ADMIN_GROUP  # may do everything; "": nobody but root
    monitor_group: str = limits.MONITOR_GROUP  # may look; "": nobody
    listen: str = ""  # for remote control; "": none
    certificate: str = ""  # PEM files of remote control
    key: str = ""
    client_ca: str = ""  # whose certificates stand for passwords; "": nobody's
    pam_service: str = limits.PAM_SERVICE  # "": no passwords
    pam_directory: str = ""  # "": the system's
    session_minutes: int = limits.SESSION_MINUTES


class Queue(msgspec.Struct, frozen=True):
    """[queue]: journals on a source and spools on a target alike. Sizes in bytes."""

    memory_directory: str = limits.MEMORY_DIRECTORY
    memory_size: int = limits.MEMORY_QUEUE_BYTES
    segment_size: int = limits.SEGMENT_BYTES
    disk_directory: str = ""  # "": `queue` in the home directory
    disk_size_max: int | None = limits.DISK_QUEUE_BYTES  # None: unlimited; 0: no disk queue
    disk_free_min: int = limits.DISK_FREE_MIN_BYTES
    alert_percent: int = limits.QUEUE_ALERT_PERCENT


class Target(msgspec.Struct, frozen=True):
    """[target]"""

    root: str = limits.TARGET_ROOT
    watch: str = "auto"  # whether changes of others in a copy are looked for: WATCHES
    keep_deleted: str = ""  # directory for what deletions take out of copies; "": it is removed


class Connection(msgspec.Struct, frozen=True):
    """[connection]: of this source with its targets."""

    auto_reconnect: bool = limits.AUTO_RECONNECT
    reconnect_at_start: bool = limits.RECONNECT_AT_START
    auto_remirror: str = limits.AUTO_REMIRROR
    congestion_control: str = ""  # "": that of the host


class Transmission(msgspec.Struct, frozen=True):
    """[transmission]: of connections that are made without saying it. Texts: see `transmission.py`."""

    compression: str = ""  # "": off
    bandwidth: str = ""  # "": unlimited


class Mirror(msgspec.Struct, frozen=True):
    """[mirror]"""

    replication_ratio: int = 0  # RP-05: frames of changes per step of a mirror
    remap_links: bool = limits.REMAP_LINKS
    checksum_all: bool = limits.CHECKSUM_ALL  # of this source: mirrors with checksum compare all files
    local_copy: bool = limits.LOCAL_COPY  # of this source: to a target on this host the kernel copies


class Verify(msgspec.Struct, frozen=True):
    """[verify]: the verification log of this source. Sizes in bytes."""

    log_directory: str = ""  # "": `log` in the home directory
    log_name: str = limits.VERIFY_LOG_NAME
    log_size_max: int = limits.VERIFY_LOG_BYTES
    log_append: bool = True
    log_files: int = 1


class Meter(msgspec.Struct, frozen=True):
    """[meter]: when the recovery point of a connection is an event. In seconds; 0: never."""

    lag_warning_s: int = limits.LAG_WARNING_S
    lag_error_s: int = limits.LAG_ERROR_S


class Security(msgspec.Struct, frozen=True):
    """[security]: how other agents are spoken to."""

    ca: str = ""  # file: certificates of the organisation's authority; "": only paired agents are trusted
    certificate: str = ""  # file: of this agent, by that authority
    key: str = ""  # file: its private key; "": in the file of the certificate
    allow_plain: tuple[str, ...] = ()  # hosts and networks with which plain text is spoken
    loopback_plain: bool = True


class Failover(msgspec.Struct, frozen=True):
    """[failover]: scripts of monitors that are added from now on (FO-10), as command lines; "": none. How
    much room divergence bundles may take, in bytes. As whom an etcd that is the witness is asked.
    """

    question: str = ""
    pre_failover: str = ""
    post_failover: str = ""
    pre_failback: str = ""
    post_failback: str = ""
    source_post_failback: str = ""
    script_wait: bool = True
    script_timeout_s: int = int(limits.SCRIPT_TIMEOUT_S)
    script_on_failure: str = limits.SCRIPT_ON_FAILURE[0]
    scripts_for_others: str = limits.SCRIPTS_FOR_OTHERS  # other agents may start those in here; "": none
    divergence_size_max: int | None = None  # None: as much as the disk has
    etcd_user: str = ""  # "": etcd wants none
    etcd_password_file: str = limits.ETCD_PASSWORD_FILE
    etcd_authorities: str = ""  # certificates that are believed with etcds://; "": those of the system


class Log(msgspec.Struct, frozen=True):
    """[log]. Sizes in bytes."""

    size_max: int = limits.LOG_BYTES
    files: int = limits.LOG_FILES


class Config(msgspec.Struct, frozen=True):
    """The whole configuration."""

    agent: Agent = Agent()
    queue: Queue = Queue()
    target: Target = Target()
    connection: Connection = Connection()
    transmission: Transmission = Transmission()
    mirror: Mirror = Mirror()
    verify: Verify = Verify()
    meter: Meter = Meter()
    security: Security = Security()
    access: Access = Access()
    failover: Failover = Failover()
    log: Log = Log()


# --- what a value may be ---

_UNITS = {
    "": 1,
    "B": 1,
    "KIB": limits.KIB,
    "MIB": limits.MIB,
    "GIB": 1024 * limits.MIB,
    "TIB": 1024**2 * limits.MIB,
}


def parse_size(text: str) -> int | None:
    """Bytes of a size like "128 MiB" or "5242880"; None if it is none."""
    match = re.fullmatch(r"\s*([0-9]{1,15})\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        return None
    return int(match[1]) * _UNITS[match[2].upper()]


def show_size(size_bytes: int | None) -> str:
    """The shortest exact spelling of a size that `parse_size` reads."""
    if size_bytes is None:
        return UNLIMITED
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size_bytes and size_bytes % _UNITS[unit.upper()] == 0:
            return f"{size_bytes // _UNITS[unit.upper()]} {unit}"
    return str(size_bytes)


class _Wrong(Exception):
    """A value is not allowed; its text says what is."""


Check = Callable[[Any], object]


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise _Wrong('must be a text in "quotes"')
    return value


def _name(value: Any) -> str:
    if len(_text(value)) > limits.NAME_CHARS or any(not c.isprintable() or c == "/" for c in value):
        raise _Wrong(f"must be at most {limits.NAME_CHARS} printable characters without /")
    return str(value)


def _file_name(value: Any) -> str:
    if not _name(value) or value in (".", ".."):
        raise _Wrong("must be the name of a file")
    return str(value)


def _listen(value: Any) -> str:
    try:
        parse_host_port(_text(value), default_port=limits.PORT)
    except UsageError as error:
        raise _Wrong(f'must be "HOST:PORT": {error}') from None
    return str(value)


def _control_listen(value: Any) -> str:
    try:
        return str(parse_host_port(_text(value), default_port=limits.CONTROL_PORT)) if value else _text(value)
    except UsageError as error:
        raise _Wrong(f'must be "HOST:PORT" or "": {error}') from None


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("must be true or false")
    return value


def _directory(value: Any) -> str:
    if not os.path.isabs(_text(value)) or os.path.normpath(value) != value:
        raise _Wrong("must be an absolute path")
    return str(value)


def _directory_or_default(value: Any) -> str:
    return "" if value == "" else _directory(value)


def _plain_peers(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) and is_entry(v) for v in value):
        raise _Wrong('must be a list of hosts and networks, as ["10.0.0.7", "10.1.0.0/16"]')
    return tuple(value)


def _file(value: Any) -> str:
    return "" if value == "" else _directory(value)


def _congestion_control(value: Any) -> str:
    if value != "" and not re.fullmatch(r"[a-z0-9_]{1,15}", _text(value)):
        raise _Wrong('must be the name of one, as "bbr"')
    return str(value)


def _number(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise _Wrong(f"must be a whole number from {low} to {high}")
        return value

    return check


def _size(low: int, high: int = 1024**5, *, unlimited: bool = False) -> Check:
    def check(value: Any) -> int | None:
        if unlimited and value == UNLIMITED:
            return None
        size = parse_size(value) if isinstance(value, str) else value
        if not isinstance(size, int) or isinstance(size, bool) or not low <= size <= high:
            also = f' or "{UNLIMITED}"' if unlimited else ""
            raise _Wrong(f'must be a size from "{show_size(low)}" to "{show_size(high)}"{also}')
        return size

    return check


def _command_line(value: Any) -> str:
    if _text(value):
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise _Wrong(f"must be a command line: {error}") from None
        if not words or not os.path.isabs(words[0]):
            raise _Wrong("must begin with the absolute path of a program or script")
    return str(value)


def _compression(value: Any) -> str:
    return _understood(value, lambda text: text and transmission.parse_compression(text))


def _bandwidth(value: Any) -> str:
    return _understood(value, transmission.parse_limit)


def _understood(value: Any, parse: Callable[[str], object]) -> str:
    try:
        parse(_text(value))
    except UsageError as error:
        raise _Wrong(str(error)) from None
    return str(value)


def _one_of(*allowed: str) -> Check:
    def check(value: Any) -> str:
        if value not in allowed:
            raise _Wrong(f"must be one of {', '.join(allowed)}")
        return str(value)

    return check


_CHECKS: dict[str, Check] = {
    "agent.name": _name,
    "agent.listen": _listen,
    "agent.insecure": _flag,
    "access.admin_group": _name,
    "access.monitor_group": _name,
    "access.listen": _control_listen,
    "access.certificate": _directory_or_default,
    "access.key": _directory_or_default,
    "access.client_ca": _directory_or_default,
    "access.pam_service": _name,
    "access.pam_directory": _directory_or_default,
    "access.session_minutes": _number(1, limits.SESSION_MINUTES_MAX),
    "queue.memory_directory": _directory,
    "queue.memory_size": _size(limits.MEMORY_QUEUE_MIN_BYTES),
    "queue.segment_size": _size(limits.SEGMENT_MIN_BYTES, limits.SEGMENT_MAX_BYTES),
    "queue.disk_directory": _directory_or_default,
    "queue.disk_size_max": _size(0, unlimited=True),
    "queue.disk_free_min": _size(0),
    "queue.alert_percent": _number(1, 100),
    "target.root": _directory,
    "target.watch": _one_of(*WATCHES),
    "target.keep_deleted": _directory_or_default,
    "transmission.compression": _compression,
    "transmission.bandwidth": _bandwidth,
    "connection.auto_reconnect": _flag,
    "connection.reconnect_at_start": _flag,
    "connection.auto_remirror": _one_of(*limits.REMIRROR),
    "connection.congestion_control": _congestion_control,
    "mirror.remap_links": _flag,
    "mirror.replication_ratio": _number(0, limits.REPLICATION_RATIO_MAX),
    "mirror.checksum_all": _flag,
    "mirror.local_copy": _flag,
    "verify.log_directory": _directory_or_default,
    "verify.log_name": _file_name,
    "verify.log_size_max": _size(limits.VERIFY_LOG_MIN_BYTES),
    "verify.log_append": _flag,
    "verify.log_files": _number(1, 999),
    "meter.lag_warning_s": _number(0, limits.LAG_MAX_S),
    "meter.lag_error_s": _number(0, limits.LAG_MAX_S),
    "security.ca": _file,
    "security.certificate": _file,
    "security.key": _file,
    "security.allow_plain": _plain_peers,
    "security.loopback_plain": _flag,
    "failover.question": _command_line,
    "failover.pre_failover": _command_line,
    "failover.post_failover": _command_line,
    "failover.pre_failback": _command_line,
    "failover.post_failback": _command_line,
    "failover.source_post_failback": _command_line,
    "failover.script_wait": _flag,
    "failover.script_timeout_s": _number(1, int(limits.SCRIPT_TIMEOUT_MAX_S)),
    "failover.script_on_failure": _one_of(*limits.SCRIPT_ON_FAILURE),
    "failover.scripts_for_others": _directory_or_default,
    "failover.divergence_size_max": _size(0, unlimited=True),
    "failover.etcd_user": _text,
    "failover.etcd_password_file": _directory,
    "failover.etcd_authorities": _file,
    "log.size_max": _size(limits.LOG_MIN_BYTES),
    "log.files": _number(1, 999),
}


# --- reading ---


def load(home: str, explicit: str | None = None) -> Config:
    """The configuration in force for the agent at `home`. `explicit` names a file that must exist.

    Raises ConfigError: one line that names the file, the key, and what is allowed.
    """
    for path in [explicit] if explicit is not None else [os.path.join(home, "replicator.toml"), SYSTEM_FILE]:
        try:
            with open(path, "rb") as file:
                data = file.read()
        except (FileNotFoundError, NotADirectoryError):
            if explicit is None:
                continue
            raise ConfigError(f"{path}: no such configuration file") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        return parse(data, path)
    return Config()


def parse(data: bytes, path: str) -> Config:
    """The configuration that `data` spells; `path` is only named in errors. Raises ConfigError."""
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    sections = get_type_hints(Config)
    _check_known(path, "section", document, list(sections), "")
    values: dict[str, Any] = {}
    for section, content in document.items():
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: {section}: must be a section: write [{section}] above its keys")
        _check_known(path, "key", content, list(sections[section].__struct_fields__), f"{section}.")
        checked = {}
        for key, value in content.items():
            try:
                checked[key] = _CHECKS[f"{section}.{key}"](value)
            except _Wrong as wrong:
                raise ConfigError(f"{path}: {section}.{key} = {_show(value)}: {wrong}") from None
        values[section] = sections[section](**checked)
    config = Config(**values)
    if config.queue.segment_size * 2 > config.queue.memory_size:
        raise ConfigError(
            f"{path}: queue.segment_size: must be at most half of queue.memory_size"
            f' ("{show_size(config.queue.memory_size)}")'
        )
    security = config.security
    if security.key and not security.certificate:
        raise ConfigError(f"{path}: security.key: belongs to security.certificate, which is missing")
    return config


def _check_known(path: str, kind: str, given: dict[str, Any], known: list[str], prefix: str) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"{path}: {prefix}{name}: unknown {kind}; {hint}")


def _show(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 1000:
        return "a huge number"
    text = (
        str(value).lower()
        if isinstance(value, bool)
        else f'"{value}"'
        if isinstance(value, str)
        else str(value)
    )
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."
