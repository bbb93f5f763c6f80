"""An unchanged tritonclient, blocking and asyncio: whole answers, streams, errors, time-outs, cancel, compression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from exegpt_jax.testing.fake import next_token
from serving.client import Client
from serving.security.tls import TlsFiles
from serving.server import ServerOptions
from tests.serving.certificates import Authority
from tests.serving.clients import foreign
from tests.serving.servers import VOCABULARY, RunningServer, fake_service, running_server
from tests.serving.test_generation_door import until


@pytest.fixture(scope="module")
def slow(tiny_model: Path) -> Iterator[RunningServer]:
    """Its long answers take seconds, so that there is something to leave."""
    with running_server(fake_service(tiny_model, fake_step_s=0.01)) as running:
        yield running


def ask(server: RunningServer, case: str, program: str = "triton_sync.py") -> Any:
    found = foreign.run(program, server.address, case)
    # Whatever it was, nothing stays behind.
    until(lambda: server.frontend.admitted == 0 and server.runner.stats().live_bytes == 0)
    return found


def grown(prompt: Sequence[int], count: int) -> list[int]:
    """The fake engine's answer."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, VOCABULARY))
    return tokens[len(prompt) :]


def test_it_is_told_of_the_server_and_its_models(server: RunningServer) -> None:
    found = ask(server, "about")
    assert (found["live"], found["ready"], found["model_ready"]) == (True, True, [True, True, False])
    assert found["server"]["name"] == "exegpt"
    assert found["metadata"]["inputs"][0] == {"name": "text_input", "datatype": "BYTES", "shape": ["1"]}
    config = found["config"]["config"]
    assert config["model_transaction_policy"] == {"decoupled": True}
    assert config["input"][0] == {"name": "input_ids", "data_type": "TYPE_INT32", "dims": ["-1"]}
    assert found["statistics"]["model_stats"][0]["name"] == "model"
    assert [(each["name"], each["state"]) for each in found["index"]["models"]] == [
        ("model", "READY"),
        ("model_tokens", "READY"),
    ]
    assert found["load"] == "StatusCode.UNIMPLEMENTED"


def test_whole_answers_plain_and_compressed(server: RunningServer) -> None:
    with Client(server.address) as client:
        text = client.generate("hello", max_tokens=20, ignore_eos=True).text
    found = ask(server, "infer")
    assert found["plain"] == {"text_output": [text], "finish_reason": ["length"], "num_output_tokens": [20]}
    assert found["gzip"] == found["deflate"] == found["plain"]
    assert found["only"] == {"text_output": [text]}
    assert found["tokens"] == {"output_ids": grown([5, 6, 7], 20)}


def test_errors_have_a_status_and_one_line(server: RunningServer) -> None:
    assert ask(server, "errors") == [
        ["StatusCode.INVALID_ARGUMENT", "temperature: 7 is not a number in [0, 2]"],
        ["StatusCode.INVALID_ARGUMENT", "stream: cannot be true for ModelInfer; ask with ModelStreamInfer"],
        ["StatusCode.NOT_FOUND", "model_name: 'other' is not served; served are model and model_tokens"],
        ["StatusCode.INVALID_ARGUMENT", "input_ids[1]: 320 is no token id in [0, 319]"],
    ]


def test_time_outs(slow: RunningServer) -> None:
    found = ask(slow, "time_outs")
    assert [status for status, _ in found[:2]] == ["StatusCode.DEADLINE_EXCEEDED"] * 2
    # The first was let in, when nothing was known of phases; by then it is known that the answer takes longer.
    assert found[1][1].startswith("the deadline cannot be met: the answer would take about ")
    # On a stream a request is refused in band, where Triton has no status.
    assert found[2][0] is None
    assert found[2][1].startswith("[request id: late] the deadline cannot be met: ")


def test_cancel_of_a_call_and_of_a_stream(slow: RunningServer) -> None:
    assert ask(slow, "cancel") == ["StatusCode.CANCELLED", "StatusCode.CANCELLED"]


@pytest.mark.parametrize("program", ["triton_sync.py", "triton_asyncio.py"])
def test_a_stream_of_32_ids(slow: RunningServer, program: str) -> None:
    told = ask(slow, "stream_many", program)
    for number in range(32):
        mine = [(ids, final) for name, ids, final in told if name == f"r{number}"]
        assert len(mine) > 1
        assert [final for _, final in mine] == [False] * (len(mine) - 1) + [True]
        assert [token for ids, _ in mine for token in ids] == grown([number + 1] * 3, 40)
    # Multiplexed: not one answer behind the other.
    assert len({name for name, _, _ in told[:32]}) > 4


def test_the_end_of_a_stream_is_told_with_the_answer_or_apart(server: RunningServer) -> None:
    found = ask(server, "stream_ends")
    ((name, outputs, final),) = found["whole"]
    assert (name, outputs.keys(), final) == ("whole", {"text_output"}, True)
    assert [final for _, _, final in found["apart"]] == [False] * (len(found["apart"]) - 1) + [True]
    assert found["apart"][-1] == ["apart", {}, True]
    said = "".join(outputs["text_output"][0] for _, outputs, _ in found["apart"][:-1])
    # A whole answer has the prompt in front.
    assert "x" + said == outputs["text_output"][0]


def test_errors_in_band_leave_the_stream_open(slow: RunningServer) -> None:
    found = ask(slow, "stream_errors")
    assert [message for _, message in found["errors"]] == [
        "[request id: good] id: is under way on this call; choose another",
        "[request id: bad] max_tokens: 0 is not an integer of at least 1",
    ]
    assert found["finals"] == ["good", "good"]


def test_a_strict_stream_ends_with_a_status(slow: RunningServer) -> None:
    found = ask(slow, "stream_strict")
    assert found["error"] == ["StatusCode.INVALID_ARGUMENT", "max_tokens: 0 is not an integer of at least 1"]
    assert "no longer in valid state" in found["refused"]


def test_asyncio_whole_answers(server: RunningServer) -> None:
    found = ask(server, "infer", "triton_asyncio.py")
    assert (found["live"], found["ready"], found["server"]) == (True, True, "exegpt")
    assert found["answers"] == [grown([number + 1] * 3, 20) for number in range(32)]


def test_asyncio_errors(server: RunningServer) -> None:
    line = "max_tokens: 0 is not an integer of at least 1"
    assert ask(server, "errors", "triton_asyncio.py") == [
        [None, f"[request id: bad] {line}"],
        "good",
        ["StatusCode.INVALID_ARGUMENT", line],
    ]


def test_asyncio_time_out_and_cancel(slow: RunningServer) -> None:
    timed_out, cancelled, stream_cancelled = ask(slow, "leave", "triton_asyncio.py")
    assert timed_out[0] == "StatusCode.DEADLINE_EXCEEDED"
    assert cancelled == "CancelledError"
    assert stream_cancelled is True


def test_tls_and_a_certificate_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, mine = authority.sign("server"), authority.sign("client")
    for client_ca, files in ((None, ()), (authority.cert, (mine.key, mine.cert))):
        options = ServerOptions("127.0.0.1:0", tls=TlsFiles(certificate.cert, certificate.key, client_ca))
        with running_server(fake_service(tiny_model), options=options) as server:
            found = foreign.run("triton_sync.py", server.address, "infer", authority.cert, *files)
            assert found["tokens"] == {"output_ids": grown([5, 6, 7], 20)}
            told = foreign.run("triton_sync.py", server.address, "stream_many", authority.cert, *files)
            assert {name for name, _, final in told if final} == {f"r{number}" for number in range(32)}
            # With a certificate of its own where one is wanted, and in the clear nowhere.
            for less in [(), (authority.cert,)][: 1 + len(files) // 2]:
                with pytest.raises(AssertionError, match=r"StatusCode\.UNAVAILABLE"):
                    foreign.run("triton_sync.py", server.address, "infer", *less)
