"""TLS and mTLS over real handshakes, certificates that are exchanged under a running server, and unusable files."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import pytest

from serving import assemble
from serving.client import AsyncClient, Client, ServerError, Tls
from serving.security.addresses import check_address
from serving.security.tls import TlsFiles, server_credentials
from serving.server import ServerOptions
from tests.serving.certificates import Authority, Certificate
from tests.serving.servers import fake_service, running_server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Certificate:
    return authority.sign("server")


@pytest.fixture
def service(tiny_model: Path) -> assemble.Service:
    return fake_service(tiny_model, fake_step_s=0.001)


def options(certificate: Certificate, client_ca: Path | None = None) -> ServerOptions:
    return ServerOptions("127.0.0.1:0", tls=TlsFiles(certificate.cert, certificate.key, client_ca))


def answers(address: str, tls: Tls | None) -> bool:
    """Whether a new connection gets an answer."""
    with Client(address, tls=tls) as client:
        try:
            return client.generate("x", max_tokens=2, timeout_s=20).finish.completion_tokens > 0
        except ServerError as error:
            if error.code != "UNAVAILABLE":
                raise
            return False


def test_who_trusts_the_authority_is_answered(
    service: assemble.Service, authority: Authority, certificate: Certificate
) -> None:
    async def ask_both_ways(address: str) -> None:
        async with AsyncClient(address, tls=Tls(ca=authority.cert)) as client, client.session() as session:
            whole = await asyncio.gather(client.generate("x", max_tokens=4), session.generate("x", max_tokens=4))
            assert whole[0].token_ids == whole[1].token_ids

    with running_server(service, options=options(certificate)) as server:
        assert answers(server.address, Tls(ca=authority.cert))
        asyncio.run(ask_both_ways(server.address))
        assert not answers(server.address, None)
        assert not answers(server.address, Tls())
        assert not answers(server.address, Tls(ca=authority.cert, server_name="another"))


def test_clients_show_a_certificate_of_the_right_authority(
    service: assemble.Service, authority: Authority, certificate: Certificate, tmp_path: Path
) -> None:
    client, stranger = authority.sign("client"), Authority(tmp_path, "stranger").sign("client")
    with running_server(service, options=options(certificate, authority.cert)) as server:
        assert answers(server.address, Tls(authority.cert, client.cert, client.key))
        assert not answers(server.address, Tls(authority.cert))
        assert not answers(server.address, Tls(authority.cert, stranger.cert, stranger.key))


def test_an_exchanged_certificate_counts_and_a_broken_one_does_not(
    service: assemble.Service, authority: Authority, certificate: Certificate, tmp_path: Path
) -> None:
    second = Authority(tmp_path, "second")
    renewed = second.sign("renewed")
    files = Certificate(tmp_path / "tls.crt", tmp_path / "tls.key")
    shutil.copy(certificate.cert, files.cert)
    shutil.copy(certificate.key, files.key)
    old, new = Tls(ca=authority.cert), Tls(ca=second.cert)
    with running_server(service, options=options(files)) as server, Client(server.address, tls=old) as standing:
        standing.generate("x", max_tokens=2)
        assert answers(server.address, old)
        # Only half of the pair has come yet.
        shutil.copy(renewed.cert, files.cert)
        time.sleep(1.1)
        assert answers(server.address, old)
        shutil.copy(renewed.key, files.key)
        time.sleep(1.1)
        assert answers(server.address, new)
        assert not answers(server.address, old)
        assert standing.generate("x", max_tokens=2).finish.completion_tokens > 0


def test_files_that_cannot_be_used_are_one_line(certificate: Certificate, authority: Authority, tmp_path: Path) -> None:
    nothing, other = tmp_path / "nothing.pem", Authority(tmp_path, "other").sign("server")
    nothing.write_text("nothing\n")
    with pytest.raises(ValueError, match=r"^tls_cert: .* are no certificate and its unencrypted key"):
        server_credentials(TlsFiles(nothing, certificate.key))
    with pytest.raises(ValueError, match="KEY_VALUES_MISMATCH"):
        server_credentials(TlsFiles(certificate.cert, other.key))
    with pytest.raises(ValueError, match=r"^tls_client_ca: .* holds no certificate"):
        server_credentials(TlsFiles(certificate.cert, certificate.key, nothing))
    with pytest.raises(FileNotFoundError):
        server_credentials(TlsFiles(certificate.cert, tmp_path / "absent"))
    with pytest.raises(ValueError, match="come together"):
        Client("127.0.0.1:1", tls=Tls(cert=certificate.cert))


def test_only_loopback_is_open_without_protection(caplog: pytest.LogCaptureFixture) -> None:
    for address in ("127.0.0.1:1", "localhost:0", "[::1]:80"):
        check_address(address, encrypted=False, locked=False, allow_remote=False)
    check_address("0.0.0.0:1", encrypted=True, locked=True, allow_remote=False)
    assert not caplog.records
    for encrypted, locked, line in (
        (False, False, r"no encryption \(--tls_cert, --tls_key\) and keys \(--keys\)"),
        (True, False, r"no keys \(--keys\)"),
        (False, True, r"no encryption \("),
    ):
        with pytest.raises(ValueError, match=line):
            check_address("0.0.0.0:1", encrypted=encrypted, locked=locked, allow_remote=False)
        check_address("0.0.0.0:1", encrypted=encrypted, locked=locked, allow_remote=True)
        assert "can be reached from other machines, without" in caplog.records[-1].getMessage()


def test_a_key_no_header_can_carry_is_refused_unseen() -> None:
    for key in ("", "two words", "line\nbreak", "schlüssel"):
        with pytest.raises(ValueError, match=r"^key: is not one word") as refusal:
            Client("127.0.0.1:1", key=key)
        assert not key or key not in str(refusal.value)
