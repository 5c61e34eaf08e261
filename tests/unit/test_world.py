"""What the operating system's side of the World adds to the operating system."""

import os
import socket
from pathlib import Path

import pytest

from replicator.world import World


async def test_a_refused_connection_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError) as refused:
        await World().connect("127.0.0.1", port)
    assert refused.value.strerror == "Connection refused"


def test_directories_are_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        World().disk.makedirs(str(tmp_path / "a" / "b"))
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b")] == [0o700, 0o700]
    World().disk.makedirs(str(tmp_path / "a" / "b"))
    (tmp_path / "file").touch()
    for path in ("file", "file/below"):
        with pytest.raises(OSError):
            World().disk.makedirs(str(tmp_path / path))
