"""Control sockets: calls, refusals, descriptors, a second owner."""

import os
from functools import partial
from pathlib import Path

import pytest
import trio

from replicator.child import control
from replicator.errors import ExitCode, NotPermittedError, ReplicatorError, UnreachableError, UsageError


async def add(first: int, second: int) -> int:
    return first + second


async def refuse() -> None:
    raise ReplicatorError("not now: try later")


async def refuse_as(kind: str) -> None:
    raise {"usage": UsageError, "permission": NotPermittedError, "peer": UnreachableError}[kind](kind)


async def echo(timeout_s: float, name: str) -> list[object]:
    return [timeout_s, name]


async def sleep() -> None:
    await trio.sleep_forever()


async def fail() -> None:
    raise ValueError("a bug")


async def read_all(descriptors: list[int]) -> str:
    (descriptor,) = descriptors
    with open(descriptor) as file:
        return file.read()


async def lend() -> control.WithDescriptors:
    reading, writing = os.pipe()
    os.write(writing, b"lent")
    os.close(writing)
    return control.WithDescriptors("here", [reading])


HANDLERS: dict[str, control.Handler] = {
    handler.__name__: handler for handler in (add, refuse, refuse_as, echo, sleep, fail, read_all, lend)
}


async def test_calls_and_refusals(
    tmp_path: Path, nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "run" / "x.sock")
    await nursery.start(partial(control.serve, path, HANDLERS))
    assert os.stat(path).st_mode & 0o777 == 0o600
    async with control.Control(path) as client:
        assert await client.call("add", first=2, second=3) == 5
        with pytest.raises(ReplicatorError, match="not now: try later"):
            await client.call("refuse")
        with pytest.raises(ReplicatorError, match="ValueError: a bug"):
            await client.call("fail")
        with pytest.raises(ReplicatorError, match="no such control call: nothing"):
            await client.call("nothing")
        with pytest.raises(ReplicatorError, match="TypeError"):
            await client.call("add", first=2)
        assert await client.call("add", first=1, second=1) == 2
    assert "ValueError: a bug" in capsys.readouterr().err


async def test_arguments_may_have_any_name(tmp_path: Path, nursery: trio.Nursery) -> None:
    path = str(tmp_path / "x.sock")
    await nursery.start(partial(control.serve, path, HANDLERS))
    client = control.Control(path)
    assert await client.call("echo", 5.0, timeout_s=0.5, name="n") == [0.5, "n"]
    assert await client.call("echo", timeout_s=7, name="n") == [7, "n"]
    with pytest.raises(UnreachableError, match=r"did not answer 'sleep' within 0\.05 s"):
        await client.call("sleep", 0.05)


async def test_a_refusal_keeps_its_exit_code(tmp_path: Path, nursery: trio.Nursery) -> None:
    path = str(tmp_path / "x.sock")
    await nursery.start(partial(control.serve, path, HANDLERS))
    for kind, code in (("usage", ExitCode.USAGE), ("permission", ExitCode.NOT_PERMITTED)):
        with pytest.raises(ReplicatorError, match=kind) as refused:
            await control.Control(path).call("refuse_as", kind=kind)
        assert refused.value.exit_code is code
    with pytest.raises(ReplicatorError, match="peer") as refused:
        await control.Control(path).call("refuse_as", kind="peer")
    assert refused.value.exit_code is ExitCode.FAILED  # the child itself can be reached


async def test_descriptors_travel_both_ways(tmp_path: Path, nursery: trio.Nursery) -> None:
    path = str(tmp_path / "x.sock")
    await nursery.start(partial(control.serve, path, HANDLERS))
    (tmp_path / "note").write_text("hello")
    async with control.Control(path) as client:
        descriptor = os.open(tmp_path / "note", os.O_RDONLY)
        try:
            assert await client.call_with_descriptors("read_all", 5.0, [descriptor]) == ("hello", [])
        finally:
            os.close(descriptor)
        value, (received,) = await client.call_with_descriptors("lend")
        assert value == "here"
        with open(received) as file:
            assert file.read() == "lent"


async def test_a_second_owner_is_refused_and_a_dead_one_replaced(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    path = str(tmp_path / "x.sock")
    await nursery.start(partial(control.serve, path, HANDLERS))
    with pytest.raises(ReplicatorError, match="another process already serves"):
        await control.serve(path, HANDLERS)
    dead = str(tmp_path / "dead.sock")
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(dead)
    listener.close()
    await nursery.start(partial(control.serve, dead, HANDLERS))
    async with control.Control(dead) as client:
        assert await client.call("add", first=1, second=1) == 2
    nursery.cancel_scope.cancel()


async def test_a_deep_home_is_no_obstacle(tmp_path: Path, nursery: trio.Nursery) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    path = str(deep / "x.sock")
    await nursery.start(partial(control.serve, path, HANDLERS))
    async with control.Control(path) as client:
        assert await client.call("add", first=1, second=1) == 2
    nursery.cancel_scope.cancel()
