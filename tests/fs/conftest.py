"""A capture with its mount, and a directory to replay its records on."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.mount import CaptureMount


@pytest.fixture
def binding() -> str:
    """Which binding it has; test modules have their own where they need another."""
    return "kernel"


@pytest.fixture
def made(tmp_path: Path, binding: str) -> Iterator[CaptureMount]:
    """Not started; everything of it is taken down afterwards."""
    capture = CaptureMount(tmp_path, settings={"binding": binding})
    try:
        yield capture
    finally:
        capture.close()


@pytest.fixture
def mount(made: CaptureMount) -> CaptureMount:
    """Serving, with a reader of its journal."""
    return made.start().attach()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Empty, as the source is at first."""
    path = tmp_path / "target"
    path.mkdir()
    os.chmod(path, 0o755)  # whatever the umask of this process is
    return path
