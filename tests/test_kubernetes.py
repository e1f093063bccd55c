"""The manifests of deploy/kubernetes: Kubernetes knows each field, pods are bound, and Keyturn takes the settings."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings, read
from tests.conftest import SECRET
from tests.service import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
FILES = sorted(FOLDER.rglob("*.yaml"))
OF_OTHERS = {"Kustomization", "PodMonitor"}  # Kubernetes itself has no schema for these


def documents() -> dict[Path, dict[str, Any]]:
    return {file: yaml.safe_load(file.read_text()) for file in FILES}


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for document in documents().values():
        spec = document.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield document["metadata"]["name"], spec["template"]


def the(kind: str, name: str = "keyturn") -> dict[str, Any]:
    [found] = [d for d in documents().values() if d["kind"] == kind and d.get("metadata", {}).get("name") == name]
    return found


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_kubernetes_knows_each_field(version: str) -> None:
    validate = shutil.which("kubernetes-validate", path=f"{ROOT / '.venv-package' / 'bin'}:{os.environ['PATH']}")
    if validate is None:
        pytest.skip("kubernetes-validate is not installed (python3 dev.py package)")
    files = [file for file, document in documents().items() if document["kind"] not in OF_OTHERS]
    done = subprocess.run(
        [validate, "-k", version, "--strict", *files], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(" passed for ") == len(files) >= 8


def test_kustomize_is_given_each_manifest() -> None:
    listed = set()
    for kustomization in FOLDER.rglob("kustomization.yaml"):
        text = kustomization.read_text().replace("# - metrics.yaml #", "- metrics.yaml #")
        listed |= {kustomization.parent / name for name in yaml.safe_load(text)["resources"]}
    assert listed == {file for file in FILES if file.name != "kustomization.yaml"}


def test_each_pod_is_bound_as_the_restricted_standard_of_kubernetes_asks() -> None:
    assert the("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    names = set()
    for name, template in pods():
        names.add(name)
        pod = template["spec"]
        assert pod["enableServiceLinks"] is False, name  # no KEYTURN_PORT=tcp://…
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == 10001, name  # the image's
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        [container] = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert container["resources"]["limits"]["memory"], name
        [volume] = pod["volumes"]
        assert volume["secret"]["defaultMode"] == 0o440, name  # Keyturn refuses a secret that everyone may read
    assert names == {"keyturn", "keyturn-migrate", "keyturn-gc"}


def test_service_budget_policy_and_monitor_choose_the_pods_that_serve() -> None:
    labels = dict(pods())["keyturn"]["metadata"]["labels"]
    assert the("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert the("Service")["spec"]["selector"] == labels
    assert the("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert the("PodMonitor")["spec"]["selector"]["matchLabels"] == labels
    assert the("NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    [container] = dict(pods())["keyturn"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8000, "metrics": int(the("ConfigMap")["data"]["KEYTURN_METRICS_PORT"])}


def test_a_pod_answers_for_longer_without_its_database_than_keyturn_verifies() -> None:
    [container] = dict(pods())["keyturn"]["spec"]["containers"]
    readiness = container["readinessProbe"]
    alone = Settings.model_fields["verify_without_database"].default
    assert readiness["httpGet"]["path"] == "/readyz"
    assert readiness["periodSeconds"] * readiness["failureThreshold"] > alone.total_seconds()
    assert container["livenessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/healthz"


@pytest.mark.parametrize("name", ["keyturn", "keyturn-gc"])
def test_keyturn_takes_the_settings_of_the_pods(tmp_path: Path, name: str) -> None:
    [container] = dict(pods())[name]["spec"]["containers"]
    [mount] = container["volumeMounts"]
    (tmp_path / "database-url").write_text("postgresql://keyturn:secret@db/keyturn")
    (tmp_path / "master-secret").write_text(SECRET)
    for file in tmp_path.iterdir():
        file.chmod(0o440)
    environment = {each["name"]: each["value"].replace(mount["mountPath"], str(tmp_path)) for each in container["env"]}
    settings = read({**the("ConfigMap")["data"], **environment})
    assert settings.issuer == "https://auth.example.com"
    assert settings.metrics_port == 9464
    assert str(settings.postgres) == "postgresql://keyturn@db:5432/keyturn"
