"""A server with keys that speaks VllmEngine too: its methods are as closed as the others."""

from __future__ import annotations

from pathlib import Path

from serving.security.methods import BY_KIND, OPEN
from tests.serving.clients import gateway
from tests.serving.reflected import bearer, code_of, registered_methods

KEY = "k-4f6d8b1a9c3e5071"
# Of the protocol, and not of this server: they would be UNIMPLEMENTED.
CLOSED = {
    f"/vllm.grpc.engine.VllmEngine/{name}"
    for name in ("FlushCache", "StartProfile", "StopProfile", "SubscribeKvEvents")
}


def test_every_method_but_the_health_check_refuses_without_a_key(tiny_model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"gateway client {KEY}\n")
    with gateway.engine(tiny_model, tmp_path, "--engine=fake", f"--keys={keys}") as server:
        methods = set(registered_methods(server.address, KEY))
        assert "/vllm.grpc.engine.VllmEngine/Generate" in methods
        assert methods - BY_KIND["client"] - OPEN == CLOSED
        for method in methods - OPEN:
            assert code_of(server.address, method, ()) == "UNAUTHENTICATED", method
        for method in CLOSED:
            assert code_of(server.address, method, bearer(KEY)) == "PERMISSION_DENIED"
        server.terminate()
        server.finish()
