"""Unix sockets: who is at the other end, and addresses that fit."""

import os
import socket
from pathlib import Path

import pytest
import trio

from replicator import limits
from replicator.unix_sockets import peer_credentials, socket_address


def test_both_ends_know_each_other() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_credentials(ours) == (os.getpid(), os.geteuid(), os.getegid())


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_is_seen_however_high_the_number() -> None:
    """Ids are unsigned: 2³² - 2 is one of them."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # any abstract address
        listener.listen()
        child = os.fork()
        if child == 0:
            try:
                os.setgid(2**32 - 3)
                os.setuid(2**32 - 2)
                with socket.socket(socket.AF_UNIX) as connecting:
                    connecting.connect(listener.getsockname())
                    connecting.recv(1)
            finally:
                os._exit(0)
        accepted, _ = listener.accept()
        with accepted:
            assert peer_credentials(accepted) == (child, 2**32 - 2, 2**32 - 3)
        os.waitpid(child, 0)


async def test_a_socket_of_trio_serves_as_well() -> None:
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        assert peer_credentials(ours).pid == os.getpid()


def test_who_is_no_unix_socket_has_nobody() -> None:
    with socket.socket(socket.AF_INET) as sock:
        assert peer_credentials(sock).pid == 0


@pytest.mark.parametrize("depth", [1, 30])
def test_a_socket_can_be_reached_however_deep_it_lies(tmp_path: Path, depth: int) -> None:
    directory = tmp_path.joinpath(*["directory"] * depth)
    directory.mkdir(parents=True)
    path = str(directory / "api.sock")
    assert (len(path) > limits.UNIX_SOCKET_PATH_BYTES) == (depth == 30)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as connecting:
        with socket_address(path) as address:
            listener.bind(address)
        listener.listen()
        with socket_address(path) as address:
            connecting.connect(address)


def test_there_is_no_address_in_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError), socket_address(str(tmp_path / ("x" * 200) / "api.sock")):
        pass
