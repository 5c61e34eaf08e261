"""Which way a capture talks to the kernel."""

import pytest

from replicator.capture.binding_choice import choose
from replicator.errors import UsageError


@pytest.mark.parametrize(
    ("wanted", "release", "chosen"),
    [
        ("auto", "6.18.44-fc", "kernel"),
        ("auto", "5.4.0", "kernel"),
        ("auto", "5.3.18", "pyfuse3"),
        ("auto", "4.19.0-27-amd64", "pyfuse3"),
        ("auto", "strange", "pyfuse3"),
        ("kernel", "6.1.0", "kernel"),
        ("pyfuse3", "6.18.0", "pyfuse3"),
    ],
)
def test_the_kernel_decides_unless_it_is_said(wanted: str, release: str, chosen: str) -> None:
    assert choose(wanted, release) == chosen


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"needs Linux 5\.4"):
        choose("kernel", "4.19.0")
    with pytest.raises(UsageError, match="auto, kernel or pyfuse3"):
        choose("magic")
