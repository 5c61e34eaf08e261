"""Passwords by the real PAM, with services that lie in the test's directory."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kit import machine

from replicator.agent import pam

SERVICES = {
    "permits": "auth required pam_permit.so\naccount required pam_permit.so\n",
    "denies": "auth required pam_deny.so\naccount required pam_permit.so\n",
    "closed": "auth required pam_permit.so\naccount required pam_deny.so\n",
    # What pam_exec gets on its standard input is the password.
    "asks": "auth required pam_exec.so expose_authtok quiet {}/asks.sh\naccount required pam_permit.so\n",
    # The first question is answered, the second one is not.
    "twice": "auth required pam_exec.so expose_authtok quiet {}/asks.sh\nauth required pam_unix.so\n",
}


@pytest.fixture
def services(tmp_path: Path) -> str:
    for name, text in SERVICES.items():
        (tmp_path / name).write_text(text.format(tmp_path))
    program = tmp_path / "asks.sh"
    program.write_text(
        "#!/bin/sh\n"
        '[ "$(tr -d \'\\0\')" = "pass wörd" ] && [ "$PAM_RHOST" = 10.0.0.1 ] && [ "$PAM_USER" = someone ]\n'
    )
    program.chmod(0o755)
    try:
        pam._libraries()
    except pam.PamError as error:
        pytest.skip(str(error))
    return str(tmp_path)


def check(service: str, password: str, directory: str) -> str:
    return pam.authenticate(service, "someone", password, "10.0.0.1", directory)


def test_who_is_let_in(services: str) -> None:
    assert check("permits", "x", services) == "someone"


def test_a_password_is_what_was_given(services: str) -> None:
    if not machine.is_root():
        pytest.skip("pam_exec runs as root")
    assert check("asks", "pass wörd", services) == "someone"
    for wrong in ("pass", "", "pass word", "x" * 1000):
        with pytest.raises((pam.RefusedError, pam.PamError)):
            check("asks", wrong, services)


@pytest.mark.parametrize("service", ["denies", "closed"])
def test_who_is_refused(services: str, service: str) -> None:
    with pytest.raises(pam.RefusedError):
        check(service, "x", services)


def test_a_failure_takes_no_time_of_a_thread(services: str) -> None:
    """pam_unix asks for two seconds; slowing down is not its affair here."""
    Path(services, "unix").write_text("auth required pam_unix.so\naccount required pam_unix.so\n")
    began_s = time.monotonic()
    with pytest.raises(pam.RefusedError):
        pam.authenticate("unix", "root", "certainly wrong", "10.0.0.1", services)
    assert time.monotonic() - began_s < 1.5


def test_a_service_that_is_not_there(services: str) -> None:
    with pytest.raises(pam.PamError):
        check("none", "x", services)


def test_a_nul_character_cuts_nothing_off(services: str) -> None:
    with pytest.raises(pam.RefusedError):
        check("permits", "x\0y", services)


def test_many_threads(services: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: check("permits", str(n), services), range(200)))
    assert found == ["someone"] * 200
