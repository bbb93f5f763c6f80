"""Servers for tests: the real one on loopback over a fake engine, on a thread here or as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from exegpt_jax.runner.loop import Runner
from exegpt_jax.testing.tiny_text import write_tiny_text
from exegpt_jax.text.prompts import ModelText
from serving import assemble
from serving.commands import serve
from serving.doors import generation, health
from serving.frontend import Frontend
from serving.progress import Display
from serving.security.keys import Keyring
from serving.server import ServerOptions, make_server

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 320
CACHE_TOKENS = 256
ANYWHERE = ServerOptions("127.0.0.1:0")

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CACHE_TOKENS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def write_tiny_model(directory: Path) -> Path:
    """A model directory without weights: enough for the fake engine."""
    write_tiny_text(directory, vocab_size=VOCABULARY)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


def fake_service(directory: Path, **overrides: object) -> assemble.Service:
    """What `exegpt serve --engine=fake` would serve with these flags."""
    # Not the values: a test before may have left its own.
    values = {name: serve.FLAGS[name].default for name in serve.FLAGS}
    arguments = {**values, "engine": "fake", "model": str(directory), **overrides}
    serve.FLAGS.unparse_flags()
    texts = [f"--{name}={value}" for name, value in arguments.items() if value is not None]
    serve.FLAGS(["test", *texts])
    with Display() as display:
        return assemble.assemble(directory, serve.FLAGS, display)


@dataclasses.dataclass
class RunningServer:
    """A server on a thread of this process. `frontend` and `states` belong to its loop: use `call` to reach them."""

    address: str
    loop: asyncio.AbstractEventLoop
    frontend: Frontend
    states: health.Health
    runner: Runner
    text: ModelText

    def drain(self) -> bool:
        """As SIGTERM begins it; requests are refused from here on."""
        return asyncio.run_coroutine_threadsafe(self.frontend.drain(0.1), self.loop).result(10)

    def call(self, function: object, *arguments: object) -> object:
        """Runs a plain function on the server's loop."""

        async def run() -> object:
            return function(*arguments)  # type: ignore[operator]

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)


@contextlib.contextmanager
def running_server(
    service: assemble.Service,
    *,
    max_requests: int = 64,
    warm: bool = True,
    options: ServerOptions = ANYWHERE,
) -> Iterator[RunningServer]:
    """Serves `service` on a free port until the block ends."""
    started: list[RunningServer] = []
    ready, stop = threading.Event(), threading.Event()

    async def live() -> None:
        frontend = Frontend(max_requests, options.key_limit, options.queue)
        states = health.Health([generation.SERVICE_NAME])
        keyring = None if options.keys is None else Keyring(options.keys)
        server, address = make_server(options, frontend, states, keyring)
        await server.start()
        runner = Runner(service.plan, service.executor, frontend.hand_over)
        runner.start()
        if warm:
            frontend.open(service.text, runner)
            states.set_serving(True)
        started.append(RunningServer(address, asyncio.get_running_loop(), frontend, states, runner, service.text))
        ready.set()
        await asyncio.to_thread(stop.wait)
        frontend.cut_short()
        runner.stop()
        states.close()
        await server.stop(1)

    thread = threading.Thread(target=lambda: asyncio.run(live()), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield started[0]
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


@dataclasses.dataclass
class ServerProcess:
    """`exegpt serve` as a user starts it; `said` is what it has printed until it was ready."""

    process: subprocess.Popen[str]
    address: str
    said: list[str] = dataclasses.field(default_factory=list)

    def address_of(self, what: str) -> str:
        """Where it says that something is, such as metrics."""
        (found,) = (line.partition(" on ")[2] for line in self.said if line.startswith(f"{what} on "))
        return found

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def finish(self, timeout_s: float = 60) -> tuple[int, str, str]:
        """Exit status, standard output and standard error."""
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err


def exegpt(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "serving.cli", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


@contextlib.contextmanager
def server_process(directory: Path, *flags: str, wait_ready: bool = True) -> Iterator[ServerProcess]:
    """Starts it on a free port; kills it if the test left it running."""
    process = subprocess.Popen(
        exegpt("serve", f"--model={directory}", "--address=127.0.0.1:0", *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # gRPC's own lines quote what peers sent.
        errors="replace",
        cwd=directory,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        address = ""
        said = []
        for line in process.stdout:
            said.append(line.rstrip("\n"))
            if found := re.fullmatch(r"listening on (\S+)\n", line):
                address = found[1]
                if not wait_ready:
                    break
            elif line == "ready\n":
                break
        yield ServerProcess(process, address, said)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def faults(err: str) -> list[str]:
    """Lines of a server's log that no client and no end of a connection may bring."""
    # grpc.aio's own, where a client leaves while a message is written to it.
    left = "ExecuteBatchError raised in core"
    return [line for line in err.splitlines() if " ERROR " in line and left not in line]


def engine_pid(server: ServerProcess) -> int | None:
    """Of the engine process that a server has at the moment, if it has one; templates have another process."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = f"\nPPid:\t{server.process.pid}\n" in (folder / "status").read_text()
            # Empty of one that has died.
            if ours and b"serving.engine.child" in (folder / "cmdline").read_bytes():
                return int(folder.name)
    return None


def is_alive(pid: int) -> bool:
    """Whether a process runs, or could."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
