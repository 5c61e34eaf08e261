"""Programs that people use, at work on the mount: they work, and so does what the target has of it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from kit.protected import protected

pytestmark = pytest.mark.e2e

COMMAND_TIMEOUT_S = 100


def run(*command: str | Path, directory: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def git(repository: Path, *arguments: str | Path) -> str:
    settings = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}
    names = {"GIT_AUTHOR_NAME": "a", "GIT_COMMITTER_NAME": "a", "EMAIL": "a@example.org"}
    options = ("-c", "safe.directory=*", "-c", "gc.auto=0")
    return run("git", *options, *arguments, directory=repository, **settings, **names)


def commit_some(repository: Path, first: int, last: int) -> None:
    for number in range(first, last):
        directory = repository / f"d{number % 3}"
        directory.mkdir(exist_ok=True)
        (directory / f"file{number}").write_text(f"content {number}\n" * (number * 40))
        (directory / "changing").write_text(f"version {number}\n")
        git(repository, "add", ".")
        git(repository, "commit", "-q", "-m", f"number {number}")


def test_git(tmp_path: Path) -> None:
    with protected(tmp_path) as pair:
        repository, copy = pair.source / "repository", pair.copy / "repository"
        repository.mkdir()
        git(repository, "init", "-q", "-b", "main")
        commit_some(repository, 1, 9)
        git(repository, "checkout", "-q", "-b", "side", "HEAD~4")
        commit_some(repository, 20, 24)
        git(repository, "checkout", "-q", "main")
        git(repository, "merge", "-q", "-X", "ours", "-m", "merge", "side")
        git(repository, "gc", "-q", "--aggressive", "--prune=now")
        git(pair.source, "clone", "-q", "repository", "clone")  # hard links between the two
        commit_some(repository, 30, 33)
        git(repository, "worktree", "add", "-q", pair.source / "worktree", "side")
        git(repository, "mv", "d0", "moved")
        git(repository, "commit", "-q", "-m", "moved")
        for mounted in (repository, pair.source / "clone"):
            git(mounted, "fsck", "--strict", "--full")
        pair.assert_equal()
        for copied in (copy, pair.copy / "clone"):
            git(copied, "fsck", "--strict", "--full")
        assert git(copy, "status", "--porcelain") == ""
        assert git(copy, "log", "--format=%H %s", "--all") == git(
            repository, "log", "--format=%H %s", "--all"
        )


def make_wheel(directory: Path) -> Path:
    """A wheel with a package, data, and a script: nothing needs a network."""
    info = "tiny-1.0.dist-info"
    files = {
        "tiny/__init__.py": "def answer() -> int:\n    return 42\n",
        "tiny/data.bin": "x" * 100_000,
        **{f"tiny/part{number}.py": f"VALUE = {number}\n" for number in range(30)},
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntiny = tiny:answer\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    wheel = directory / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


def test_a_virtual_environment(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    with protected(tmp_path) as pair:
        environment = pair.source / "environment"
        run(sys.executable, "-m", "venv", "--copies", environment, directory=pair.source)
        python = environment / "bin" / "python"
        pip = (python, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir")
        run(*pip, "install", "--no-index", wheel, directory=pair.source)
        said = run(python, "-c", "import tiny; print(tiny.answer())", directory=pair.source)
        assert said == "42\n"
        pair.assert_equal()
        # The copied interpreter runs, and finds the copied package (its settings lie beside it).
        code = "import tiny; print(tiny.__file__)"
        said = run(pair.copy / "environment" / "bin" / "python", "-c", code, directory=pair.copy)
        assert said.startswith(str(pair.copy))
        run(*pip, "uninstall", "-y", "tiny", directory=pair.source)
        pair.assert_equal()
