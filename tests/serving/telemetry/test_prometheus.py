"""A real Prometheus scrapes a server under load, and every panel of the Grafana dashboard has something to show."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.servers import ROOT, server_process
from tests.serving.telemetry.scraped import load, until
from tests.serving.test_planned import make_plan

DASHBOARD = ROOT / "configs" / "deploy" / "grafana" / "exegpt.json"
# Where .ci/run puts Debian's package.
UNPACKED = ROOT / ".cache" / "prometheus" / "usr" / "bin"


def program(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), str(UNPACKED)]))
    if found is None:
        pytest.skip(f"{name} is not installed; .ci/run prometheus fetches Debian's package")
    return found


def expressions() -> dict[str, str]:
    """Of every panel, for all servers and the last seconds."""
    dashboard = json.loads(DASHBOARD.read_text())
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", "20s")
        .replace("$instance", ".*")
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def prometheus(target: str, folder: Path) -> Iterator[str]:
    """Scrapes `target` every second; yields its own URL."""
    scrape = {"job_name": "exegpt", "scrape_interval": "1s", "static_configs": [{"targets": [target]}]}
    # JSON is YAML.
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": [scrape]}))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    try:
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait()


def values(url: str, expression: str) -> list[float]:
    """What Prometheus says to it now; nothing while it does not answer."""
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=30) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 503:
            return []
        raise RuntimeError(f"{expression}: {error.read().decode()}") from error
    except OSError:
        return []
    return [float(series["value"][1]) for series in found["data"]["result"]]


def test_every_panel_shows_something(tiny_model: Path, tmp_path: Path) -> None:
    program("prometheus")
    plan = make_plan(tiny_model, tmp_path, (range(4, 40, 6), range(1, 30, 4)), 2**20)
    made_from = (f"--plan={plan}", f"--profile={tmp_path / 'profile.json'}", f"--cluster={tmp_path / 'cluster.json'}")
    flags = ("--engine=fake", "--fake_step_s=0.002", "--metrics_address=127.0.0.1:0", *made_from)
    missing = expressions()
    assert len(missing) > 20
    done = threading.Event()
    with server_process(tiny_model, *flags) as server, prometheus(server.address_of("metrics"), tmp_path) as url:

        def work() -> None:
            while not done.wait(0.3):
                load(server.address, 10, tokens=8)

        worker = threading.Thread(target=work)
        worker.start()
        try:

            def all_shown() -> bool:
                for name, expression in tuple(missing.items()):
                    if any(math.isfinite(value) for value in values(url, expression)):
                        del missing[name]
                return not missing

            with contextlib.suppress(AssertionError):
                until(all_shown, 90)
        finally:
            done.set()
            worker.join()
        assert not missing


def test_panels_name_only_metrics_that_there_are() -> None:
    """Without Prometheus too: what a panel asks for is a name that the code gives."""
    text = "".join((ROOT / "serving" / "telemetry" / "families.py").read_text().split())
    asked = {name for one in expressions().values() for name in re.findall(r"exegpt_(?!engine_process)\w+", one)}
    assert len(asked) > 15
    for name in asked:
        assert f'"{re.sub("_(total|bucket|sum|count)$", "", name)}"' in text, name


def test_promtool_finds_nothing_to_say(tiny_model: Path) -> None:
    """Of our own names; vLLM's have a colon, which it bars."""
    tool = program("promtool")
    with server_process(tiny_model, "--engine=fake", "--metrics_address=127.0.0.1:0") as server:
        load(server.address, 4)
        with urllib.request.urlopen(f"http://{server.address_of('metrics')}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines(keepends=True)
    own = "".join(line for line in lines if re.match(r"(# \w+ )?exegpt_", line))
    checked = subprocess.run([tool, "check", "metrics"], input=own, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
