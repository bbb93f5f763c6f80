"""Files of configs/deploy: what they say fits the flags, each other, and what the tools here can check of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from absl import flags

from serving.commands import serve
from serving.doors.health import LIVENESS
from serving.flags import config
from tests.serving.servers import ROOT

DEPLOY = ROOT / "configs" / "deploy"
UNIT, DOCKERFILE, SETTINGS = DEPLOY / "exegpt.service", DEPLOY / "Dockerfile", DEPLOY / "serve.toml"
OBJECTS = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def object_of(kind: str) -> Any:
    (found,) = (each for each in OBJECTS if each["kind"] == kind)
    return found


POD = object_of("Deployment")["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
IN_CLUSTER = object_of("ConfigMap")["data"]["serve.toml"]


def resolved(text: str, directory: Path) -> dict[str, object]:
    """The flags of `exegpt serve` under this file. Raises as the command would say it."""
    path = directory / "serve.toml"
    path.write_text(text)
    values: flags.FlagValues = serve.FLAGS
    values.unparse_flags()
    config.parse(values, "exegpt serve", [f"--config={path}"])
    return config.resolved(values)


@pytest.mark.parametrize("text", [SETTINGS.read_text(), IN_CLUSTER], ids=["serve.toml", "kubernetes.yaml"])
def test_settings_are_flags_of_the_server(text: str, tmp_path: Path) -> None:
    found = resolved(text, tmp_path)
    said = tomllib.loads(text)
    assert {name: found[name] for name in said} == said
    # Beyond loopback nothing is open.
    assert {"tls_cert", "tls_key", "keys"} <= set(said)
    assert "allow_remote" not in said


@pytest.mark.parametrize("path", [UNIT, DOCKERFILE, DEPLOY / "kubernetes.yaml"], ids=lambda path: path.name)
def test_commands_and_flags_exist(path: Path) -> None:
    known = {*config.own_flags(serve.FLAGS)}
    used = set()
    for line in path.read_text().splitlines():
        if re.search(r"\bserve\b.*--", line):
            used |= set(re.findall(r"--(?:no)?([a-z_]+)", line.partition("serve")[2]))
    assert used
    assert used <= known


def test_probes_ask_the_port_that_answers_them(tmp_path: Path) -> None:
    found = resolved(IN_CLUSTER, tmp_path)
    ports = {each["name"]: each["containerPort"] for each in CONTAINER["ports"]}
    assert found["address"] == f"0.0.0.0:{ports['grpc']}"
    assert found["health_address"] == f"0.0.0.0:{ports['health']}"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["grpc"]["port"] == ports["health"]
    assert CONTAINER["livenessProbe"]["grpc"]["service"] == LIVENESS
    assert "service" not in CONTAINER["readinessProbe"]["grpc"]


def test_there_is_time_to_drain(tmp_path: Path) -> None:
    found = resolved(IN_CLUSTER, tmp_path)
    before_s = float(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    needed_s = before_s + float(str(found["settle_s"])) + float(str(found["drain_s"]))
    assert needed_s + 5 < POD["spec"]["terminationGracePeriodSeconds"]
    alone = resolved(SETTINGS.read_text(), tmp_path)
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert float(str(alone["settle_s"])) + float(str(alone["drain_s"])) + 5 < float(stop_s)


def test_pods_belong_together_and_own_nothing() -> None:
    labels = POD["metadata"]["labels"]
    assert object_of("Service")["spec"]["selector"] == labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert object_of(kind)["spec"]["selector"]["matchLabels"] == labels
    assert object_of("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    assert object_of("PodDisruptionBudget")["spec"]["minAvailable"] < object_of("Deployment")["spec"]["replicas"]
    pod, own = POD["spec"]["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"]
    assert pod["runAsUser"] > 0
    assert own["readOnlyRootFilesystem"]
    assert not own["allowPrivilegeEscalation"]
    assert own["capabilities"]["drop"] == ["ALL"]
    assert POD["spec"]["automountServiceAccountToken"] is False


def test_every_path_is_mounted_and_what_is_written_is_no_part_of_the_image(tmp_path: Path) -> None:
    mounts = {PurePosixPath(each["mountPath"]): each for each in CONTAINER["volumeMounts"]}
    assert {each["name"] for each in CONTAINER["volumeMounts"]} == {each["name"] for each in POD["spec"]["volumes"]}
    found = resolved(IN_CLUSTER, tmp_path)
    paths = {name: PurePosixPath(str(value)) for name, value in found.items() if str(value).startswith("/")}
    for name, path in paths.items():
        (mount,) = (each for at, each in mounts.items() if at == path or at in path.parents)
        assert mount.get("readOnly", False) == (name not in ("admin_socket", "compilation_cache"))


def test_the_image_copies_what_is_there_and_runs_as_nobody() -> None:
    text = DOCKERFILE.read_text()
    sources = [word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
    (user,) = re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE)
    assert user == (str(POD["spec"]["securityContext"]["runAsUser"]), str(POD["spec"]["securityContext"]["runAsGroup"]))
    assert text.rindex("USER ") > text.rindex("COPY --from")


def test_constraints_of_the_image_name_every_package_of_the_lock() -> None:
    """The one line of the Dockerfile that is a program."""
    (program,) = re.findall(r"sed -n '([^']+)' (requirements/\S+)", DOCKERFILE.read_text())
    made = subprocess.run(["sed", "-n", program[0], ROOT / program[1]], capture_output=True, text=True, check=True)
    lines = made.stdout.splitlines()
    assert len(lines) == len(re.findall(r"==", (ROOT / program[1]).read_text()))
    assert all(re.fullmatch(r"[a-z0-9._-]+==[0-9][\w.+!]*", line) for line in lines)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_the_unit_is_well_formed(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    # The command has to exist; this Python stands in.
    text, count = re.subn(r"(?<=^ExecStart=)\S+", sys.executable, UNIT.read_text(), flags=re.MULTILINE)
    assert count == 1
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    unit.write_text(text.replace("KillMode=mixed", "KillMode=fixed"))
    wrong = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False, timeout=60)
    assert "kill mode" in wrong.stderr
