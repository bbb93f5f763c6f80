"""`exegpt serve` locked and `exegpt client` with its key, as processes; what is missing or half given is one line."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.flags.connection import KEY_VARIABLE
from tests.serving.certificates import Authority
from tests.serving.servers import environment, exegpt, server_process

OLD, NEW = "old-key-0123456789", "new-key-0123456789"


def run(*arguments: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        exegpt(*arguments),
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment(), **(variables or {})},
        check=False,
    )


def test_certificates_and_keys_from_end_to_end(tiny_model: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server_files, client_files = authority.sign("server"), authority.sign("client")
    keys = tmp_path / "keys"
    keys.write_text(f"gateway client {OLD}\n")
    flags = (
        *("--engine=fake", f"--tls_cert={server_files.cert}", f"--tls_key={server_files.key}"),
        *(f"--tls_client_ca={authority.cert}", f"--keys={keys}", "--health_address=127.0.0.1:0"),
    )
    with server_process(tiny_model, *flags) as server:
        ask = ("client", f"--address={server.address}", "--prompt=x", "--max_tokens=3", "--timeout_s=60")
        prove = (f"--tls_ca={authority.cert}", f"--tls_cert={client_files.cert}", f"--tls_key={client_files.key}")
        assert run(*ask, *prove, variables={KEY_VARIABLE: OLD}).returncode == 0
        unknown = run(*ask, *prove, variables={KEY_VARIABLE: NEW})
        assert unknown.returncode == 1
        assert unknown.stderr.startswith("exegpt: UNAUTHENTICATED: authorization: give one of the server's keys")
        bare = run(*ask, f"--tls_ca={authority.cert}", variables={KEY_VARIABLE: OLD})
        assert bare.stderr.startswith("exegpt: UNAVAILABLE: ")
        # Probes get in without any of it.
        with grpc.insecure_channel(server.address_of("health")) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

        given = tmp_path / "given"
        given.write_text(NEW + "\n")
        keys.write_text(f"gateway client {NEW}\n")
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert run(*ask, *prove, f"--key_file={given}").returncode == 0
        assert run(*ask, *prove, variables={KEY_VARIABLE: OLD}).returncode == 1
        server.terminate()
        status, _, err = server.finish()
    assert status == 0
    assert "keys changed and is in force" in err
    assert OLD not in err
    assert NEW not in err


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--tls_cert=x.crt",), "tls_key: not given, but another flag of TLS is; give certificate and key"),
        (("--tls_client_ca=x.crt",), "tls_cert: not given, but another flag of TLS is"),
        (("--tls_cert=x.crt", "--tls_key=x.key"), "tls_cert: x.crt: no such file; name one that exists"),
        (("--keys=absent",), "keys: absent: no such file"),
        (("--key_limit=3",), "key_limit: 3 given without --keys"),
        (("--health_address=nowhere",), "health_address: nowhere cannot be bound"),
        (("--address=0.0.0.0:0",), "address: 0.0.0.0 is not this machine's loopback, and there is no encryption"),
    ],
)
def test_what_is_missing_is_one_line(tiny_model: Path, flags: tuple[str, ...], line: str) -> None:
    done = run("serve", f"--model={tiny_model}", "--engine=fake", "--address=127.0.0.1:0", *flags)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"exegpt: {line}")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--tls_cert=x",), "exegpt: tls_key: not given, but its other half is; give both or neither"),
        (("--key_file=absent",), "exegpt: key_file: absent: no such file; name one that exists"),
        (("--tls_ca=absent",), "exegpt: tls_ca: absent: no such file; name one that exists"),
    ],
)
def test_the_clients_half_is_one_line_too(flags: tuple[str, ...], line: str) -> None:
    done = run("client", "--prompt=x", *flags)
    assert (done.returncode, done.stderr.strip()) == (1, line)
