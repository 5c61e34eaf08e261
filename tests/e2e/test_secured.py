"""Agents on two hosts: paired, refused, revoked, renewed; what goes over the cable is encrypted."""

import ipaddress
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from kit import dtd, machine
from kit.dtd import Agent
from kit.hosts import lan
from kit.patience import until
from kit.protected import Protected

from replicator.agent.state import load_identity
from replicator.paths import Home
from replicator.security import certificates, pem, tls

pytestmark = pytest.mark.e2e
SECURED = "[security]\nloopback_plain = false\n"


@contextmanager
def on_hosts(directory: Path, *names: str) -> Iterator[list[Agent]]:
    """Agents on hosts of their own that know nothing of each other."""
    with lan(*names) as hosts:
        agents = [Agent(directory / name, name, host) for name, host in zip(names, hosts, strict=True)]
        try:
            for agent in agents:
                agent.start()
            yield agents
        finally:
            for agent in agents:
                agent.close()


def events_of(agent: Agent, text: str) -> list[str]:
    return [e["text"] for e in agent.json("events") if text in e["text"]]


def pair(alpha: Agent, beta: Agent) -> None:
    code = beta.json("pair", "--show")["code"]
    paired = alpha.dtctl("pair", beta.address, "--code", code)
    assert paired.code == 0, paired.err


def protect(directory: Path, alpha: Agent, beta: Agent) -> Protected:
    pair_ = Protected(directory, alpha, beta)
    (directory / "source").mkdir(exist_ok=True)
    (directory / "source" / "first").write_bytes(b"a secret that nobody else reads" * 1000)
    pair_.connect()
    return pair_


@pytest.mark.skipif(not machine.has_network_namespaces(), reason="hosts need network namespaces")
def test_a_stranger_is_refused_and_one_line_pairs(tmp_path: Path) -> None:
    with on_hosts(tmp_path, "alpha", "beta") as (alpha, beta):
        (tmp_path / "source").mkdir()
        refused = alpha.dtctl("protect", tmp_path / "source", f"{beta.address}:{tmp_path / 'copy'}")
        assert refused.code == 1 and "dtctl pair" in refused.err, refused.err
        assert len(refused.err.strip().splitlines()) == 1
        assert len(events_of(beta, "does not know this one")) == 1
        pair(alpha, beta)
        tested = protect(tmp_path, alpha, beta)
        tested.assert_equal()
        assert alpha.dtctl("trust", "list").out.split()[0] == "beta"
        shown = beta.json("identity")["fingerprint"]
        assert alpha.json("trust", "list")[0]["fingerprint"] == shown
        assert shown in alpha.dtctl("trust", "list").out  # as a whole: it is there to be compared
        for agent in (alpha, beta):
            home = Home(str(agent.home))
            modes = [os.stat(path).st_mode & 0o777 for path in (home.credentials, home.trust)]
            assert modes == [0o600, 0o700]
        # Nothing comes in plain text, or in an older TLS.
        host = beta.host
        assert host is not None
        address, port = beta.address.split(":")
        knock = f"import socket; s = socket.create_connection(({address!r}, {port})); "
        knock += f"s.sendall(b'REPLICATOR 1 replicate {beta.uuid}\\n'); print(s.recv(100))"
        assert alpha.host is not None
        python = [*alpha.host.command, "python3", "-c", knock]
        for _ in range(3):
            said = subprocess.run(python, capture_output=True, text=True, timeout=30, check=False)
            assert said.stdout.strip() == "b''", said
        assert len(events_of(beta, "plain text is refused")) == 1
        if shutil.which("openssl") is not None:
            command = [*alpha.host.command, "openssl", "s_client", "-tls1_2", "-connect", beta.address]
            client = subprocess.run(
                command, input="", capture_output=True, text=True, timeout=30, check=False
            )
            assert client.returncode != 0 and "Cipher is (NONE)" in client.stdout
            assert len(events_of(beta, "an older TLS than 1.3")) == 1
        tested.assert_equal()


def test_wrong_codes_close_pairing_and_nobody_stands_between(tmp_path: Path) -> None:
    with dtd.running(tmp_path, "alpha", "beta", configuration=SECURED) as (alpha, beta):
        assert alpha.dtctl("pair", beta.address, "--code", "ABCD-EFGH-JKLM").code == 1
        assert events_of(beta, "pairing is not open")
        nobody = alpha.dtctl("pair", "127.0.0.1:9", "--code", "ABCD-EFGH-JKLM")
        assert nobody.code == 3 and "Connection refused" in nobody.err, nobody.err
        code = alpha.json("pair", "--show")["code"]
        itself = alpha.dtctl("pair", alpha.address, "--code", code)
        assert itself.code == 1 and "is this same agent" in itself.err, itself.err
        code = beta.json("pair", "--show")["code"]
        assert re.fullmatch(r"[A-Z2-9]{4}(-[A-Z2-9]{4}){2}", code)
        with between(beta.port) as proxy:
            caught = alpha.dtctl("pair", f"127.0.0.1:{proxy}", "--code", code)
            assert caught.code == 1 and "stands between" in caught.err
        wrong = code[:-1] + ("A" if code[-1] != "A" else "B")
        for _ in range(3):
            refused = alpha.dtctl("pair", beta.address, "--code", wrong)
            assert refused.code == 1 and "wrong code" in refused.err and wrong not in refused.err
        closed = alpha.dtctl("pair", beta.address, "--code", code)
        assert closed.code == 1 and "dtctl pair --show" in closed.err
        assert events_of(beta, "pairing is closed: too many wrong codes")
        assert alpha.json("trust", "list") == beta.json("trust", "list") == []
        code = beta.json("pair", "--show")["code"]
        paired = subprocess.run(
            [*dtd._DTCTL, "--home", alpha.home, "pair", beta.address, "--code", "-"],
            input=code.lower(), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert paired.returncode == 0, paired.stderr
        assert "dtctl pair --show" in alpha.dtctl("pair", beta.address, "--code", code).err  # it was used
        for agent in (alpha, beta):
            assert code not in (agent.home / "log" / "dtd.log").read_text()


@contextmanager
def between(port: int) -> Iterator[int]:
    """Somebody with a certificate of his own who passes everything on. Yields his port."""
    credentials = certificates.make("33333333-3333-4333-8333-333333333333", "mallory").decode()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def work() -> None:
            near, _ = listener.accept()
            line = b""
            while not line.endswith(b"\n"):
                line += near.recv(1)
            far = socket.create_connection(("127.0.0.1", port))
            far.sendall(line)
            with pem.as_file(credentials) as path:
                context = tls.unverified_server_context(path, None)
            with (
                tls.unverified_client_context().wrap_socket(far) as other,
                context.wrap_socket(near, server_side=True) as one,
            ):
                back = threading.Thread(target=carry, args=(other, one), daemon=True)
                back.start()
                carry(one, other)
                back.join(20)

        def carry(one: ssl.SSLSocket, other: ssl.SSLSocket) -> None:
            with suppress(OSError):
                while data := one.recv(65536):
                    other.sendall(data)
            for end in (one, other):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        thread.join(20)


def test_renewal_and_revocation_while_it_replicates(tmp_path: Path) -> None:
    with dtd.running(tmp_path, "alpha", "beta", configuration=SECURED) as (alpha, beta):
        pair(alpha, beta)
        tested = protect(tmp_path, alpha, beta)
        since = tested.status["connected_since"]
        for agent, other in ((alpha, beta), (beta, alpha)):
            former = agent.json("identity")["fingerprint"]
            agent.dtctl("identity", "renew")
            (tested.source / agent.name).write_text("while it is renewed")
            until(lambda a=agent, f=former: a.json("identity")["fingerprint"] != f, 60)
            new = agent.json("identity")
            assert new["next_fingerprint"] == ""
            assert [p["fingerprint"] for p in other.json("trust", "list")] == [new["fingerprint"]]
        tested.assert_equal()
        assert tested.status["connected_since"] == since, "sessions go on"
        # Sessions that begin now use the new keys.
        alpha.json("transmit", "stop", tested.id)
        alpha.json("transmit", "start", tested.id)
        (tested.source / "after").write_text("it was renewed")
        tested.assert_equal()

        assert beta.dtctl("trust", "revoke", "alpha").code == 0
        until(lambda: tested.status["state"] == "Error", 20)
        until(lambda: "revoked" in tested.status["state_reason"], 20)
        (tested.source / "refused").write_text("nothing gets there")
        until(lambda: events_of(beta, "is revoked here"), 30)
        time.sleep(1)
        assert not (tested.copy / "refused").exists()
        assert len([e for e in events_of(beta, "is revoked here") if "closed" in e]) == 1
        pair(alpha, beta)  # that is how trust comes back
        tested.assert_equal()


def test_from_plain_text_to_tls_one_host_after_the_other(tmp_path: Path) -> None:
    insecure = SECURED + "[agent]\ninsecure = true\n"
    with dtd.running(tmp_path, "alpha", "beta", configuration=insecure) as (alpha, beta):
        tested = protect(tmp_path, alpha, beta)
        assert not events_of(beta, "alpha (127.0.0.1"), "nobody has proved to be alpha"
        pair(alpha, beta)
        alpha.json("transmit", "stop", tested.id)
        alpha.json("transmit", "start", tested.id)
        (tested.source / "paired").write_text("in TLS, although plain text would be spoken")
        tested.drained()
        assert events_of(beta, "alpha (127.0.0.1")
        for agent in (beta, alpha):
            agent.stop()
            (agent.home / "replicator.toml").write_text(SECURED)
            agent.start()
            (tested.source / agent.name).write_text("now it refuses plain text")
            tested.drained()
        assert not events_of(beta, "plain text is refused")
        tested.assert_equal()


def test_an_authority_signs_agents(tmp_path: Path) -> None:
    names = ("alpha", "beta", "gamma")
    agents = [Agent(tmp_path / name, name) for name in names]
    ca = Authority(tmp_path, "ours")
    other = Authority(tmp_path, "other")
    for agent in agents:
        agent.home.mkdir()
        identity = load_identity(Home(str(agent.home)).identity, agent.name)
        signer = other if agent.name == "gamma" else ca
        signer.sign(agent.home / "signed.pem", identity.uuid, agent.name)
        (agent.home / "replicator.toml").write_text(
            SECURED + f'ca = "{ca.certificate}"\ncertificate = "{agent.home}/signed.pem"\n'
        )
    with dtd.running(tmp_path, *names) as (alpha, beta, gamma):
        tested = protect(tmp_path, alpha, beta)
        tested.assert_equal()
        assert alpha.json("identity")["by_authority"] is True
        refused = gamma.dtctl("protect", tmp_path / "beta", f"{beta.address}:{tmp_path / 'copy2'}")
        assert refused.code == 1 and "does not know this one" in refused.err
        # A file that is replaced is used from then on, by both sides.
        ca.sign(beta.home / "signed.pem", alpha.uuid, "beta")  # of another agent
        alpha.json("transmit", "stop", tested.id)
        alpha.dtctl("transmit", "start", tested.id)
        until(lambda: "another agent" in tested.status["state_reason"], 20)
        ca.sign(beta.home / "signed.pem", beta.uuid, "beta")
        tested.assert_equal()
        # Expired ones are refused.
        ca.sign(alpha.home / "signed.pem", alpha.uuid, "alpha", days=-1)
        alpha.json("transmit", "stop", tested.id)
        alpha.dtctl("transmit", "start", tested.id)
        until(lambda: events_of(beta, "not valid now"), 20)


class Authority:
    """Of an organisation."""

    def __init__(self, directory: Path, name: str) -> None:
        self.certificate = directory / f"{name}.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(self._name, self._key.public_key(), 10)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        made = builder.sign(self._key, hashes.SHA256())
        self.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: Any, days: float) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=3))
            .not_valid_after(now + timedelta(days=days))
        )

    def sign(self, path: Path, uuid: str, name: str, days: float = 1) -> None:
        """A key and its certificate, in place of what is there."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName(
            [
                x509.UniformResourceIdentifier(f"urn:uuid:{uuid}"),
                x509.DNSName("localhost"),
                x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
            ]
        )
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key.public_key(), days).add_extension(names, critical=False)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        made = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        pem.write_secret(str(path), private + made)


def test_a_copy_is_restored_by_its_source_and_by_whom_a_person_allows(tmp_path: Path) -> None:
    with dtd.running(tmp_path, "alpha", "beta", "gamma", configuration=SECURED) as (alpha, beta, gamma):
        dtd.pair(alpha, beta)
        dtd.pair(gamma, beta)
        tested = protect(tmp_path, alpha, beta)
        tested.drained()
        assert len(alpha.json("restore", "copies", beta.address)) == 1
        assert gamma.json("restore", "copies", beta.address) == []
        assert beta.dtctl("trust", "restores", "gamma", "all").code == 0
        (copy,) = gamma.json("restore", "copies", beta.address)
        place = tmp_path / "restored"
        done = gamma.dtctl(
            "restore",
            "start",
            copy["uuid"],
            "--from",
            beta.address,
            "--map",
            f"{tested.source}={place}",
            "--wait",
            "--even-if",
            "replicating",
        )
        assert done.code == 0, done.err
        assert (place / "first").read_bytes() == (tested.copy / "first").read_bytes()
