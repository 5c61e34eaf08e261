"""How long applications waited, out of what the probe tells."""

from kit import probe


def test_a_wait_belongs_to_the_moment_before_its_end() -> None:
    output = "9.9 0.3\n10.5 0.006\n20.1 0.02\n"
    assert probe.stalls(output, [10.0, 20.0, 30.0]) == [0.3, 0.02, 0.0]


def test_a_wait_over_two_moments_belongs_to_both() -> None:
    assert probe.stalls("9.0 3.0\n", [10.0, 11.0]) == [3.0, 3.0]


def test_told() -> None:
    assert probe.told([0.1, 0.3, 0.2]) == "applications waited 200 ms (median), at most 300 ms"
