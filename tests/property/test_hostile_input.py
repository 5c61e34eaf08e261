"""No bytes from outside do harm: the targets of the fuzzer (`tests/fuzz`), with seeds that Hypothesis edits.

FUZZ_EXAMPLES makes each run longer; `make fuzz` runs the same targets guided by coverage.
"""

import os
import tracemalloc

import pytest
from fuzz.targets import FREE_BYTES, TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))

_INTERESTING = [
    b"\xff" * 8,
    bytes(8),
    b"\x7f" + b"\xff" * 7,
    b"\xdd\xff\xff\xff\xff",
    b"../",
    b"\0",
    b"[" * 50,
]

edits = st.lists(
    st.tuples(
        st.integers(0, 1 << 16),  # where
        st.integers(0, 9),  # so many bytes go
        st.one_of(st.binary(max_size=9), st.sampled_from(_INTERESTING)),  # these come
    ),
    max_size=6,
)


def edited(data: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for where, gone, come in changes:
        where %= len(data) + 1
        data = data[:where] + come + data[where + gone :]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_understood(name: str) -> None:
    """A target that refuses what honest peers say tests nothing: see the next test, which needs them."""
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_from_outside_does_harm(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=EXAMPLES, deadline=5000, suppress_health_check=list(HealthCheck), database=None)
    @given(st.sampled_from(target.seeds()), edits)
    def run(seed: bytes, changes: list[tuple[int, int, bytes]]) -> None:
        target.run(edited(seed, changes))

    run()


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_takes_memory_out_of_proportion(name: str) -> None:
    target = TARGETS[name]
    inputs = [
        edited(seed, [(place, 0, junk)])
        for seed in target.seeds()[:40]
        for place in (3, 20)
        for junk in _INTERESTING
    ]
    target.run(inputs[0])
    tracemalloc.start()
    try:
        for data in inputs:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            target.run(data)
            assert tracemalloc.get_traced_memory()[1] - before < FREE_BYTES + target.memory_factor * len(data)
    finally:
        tracemalloc.stop()
