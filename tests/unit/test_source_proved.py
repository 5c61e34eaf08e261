"""A source that has proved who it is has its own connections, and no others."""

from types import SimpleNamespace
from typing import cast

import pytest

from replicator.errors import RemoteProtocolError
from replicator.net.frames import Hello
from replicator.receiver.acceptance import Refused, _check_source
from replicator.receiver.replica import Replica

ALPHA, BETA = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


def check(proved: str, says: str, owner: str) -> None:
    replica = SimpleNamespace(state=SimpleNamespace(source_uuid=owner, source_name="its owner"))
    _check_source(proved, Hello(1, says, "name"), cast(Replica, replica))


def test_its_own_and_new_connections() -> None:
    check(ALPHA, ALPHA, "")
    check(ALPHA, ALPHA, ALPHA)
    check("", BETA, ALPHA)  # plain text proves nothing


def test_neither_anothers_connection_nor_anothers_name() -> None:
    with pytest.raises(Refused, match="its owner") as caught:
        check(BETA, BETA, ALPHA)
    assert not caught.value.retry
    with pytest.raises(RemoteProtocolError):
        check(BETA, ALPHA, ALPHA)
