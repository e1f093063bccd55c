"""The image: what its Dockerfile and compose.yaml promise. No Docker is needed; nothing here builds the image."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest
import yaml

from tests.conftest import CHEAP
from tests.service import ROOT, Service

DOCKERFILE = (ROOT / "Dockerfile").read_text()
HEALTHCHECK = ROOT / "deploy" / "docker" / "healthcheck.py"


def tool(name: str) -> Path:
    """A checker of `python3 dev.py package`, or of PATH."""
    path = shutil.which(name, path=f"{ROOT / '.venv-package' / 'bin'}:{os.environ['PATH']}")
    return Path(path) if path else pytest.skip(f"{name} is not installed (python3 dev.py package)")


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("127.0.0.1", None),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("127.0.0.1", "::"),
        ("127.0.0.2", "127.0.0.2"),
        ("::1", "::1"),
    ],
)
def test_the_health_check_asks_where_the_service_listens(address: str, host: str | None) -> None:
    asked: list[str] = []

    class Healthz(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if len(asked) == 1 else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(HTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

    with Server((address, 0), Healthz) as server, ThreadPoolExecutor(1) as thread:
        environment = {"KEYTURN_PORT": str(server.server_port), "http_proxy": "http://127.0.0.1:1"}
        if host:
            environment["KEYTURN_HOST"] = host
        for healthy in (True, False):
            answering = thread.submit(server.handle_request)
            done = subprocess.run([sys.executable, HEALTHCHECK], env=environment, check=False, capture_output=True)
            answering.result(10)
            assert (done.returncode == 0) is healthy, done
    assert asked == ["/healthz"] * 2
    away = subprocess.run([sys.executable, HEALTHCHECK], env=environment, check=False, capture_output=True, text=True)
    assert (away.returncode, away.stderr.count("\n")) == (1, 1), away


@pytest.mark.parametrize("port", ["tcp://10.0.0.1:9000", "", None])
def test_the_health_check_asks_port_8000_beside_a_service_link(port: str | None) -> None:
    address = runpy.run_path(str(HEALTHCHECK))["address"]
    assert address({} if port is None else {"KEYTURN_PORT": port}) == ("127.0.0.1", 8000)


def test_the_image_has_the_health_check_that_it_names() -> None:
    [copied] = re.findall(r"^COPY .*?(deploy/docker/healthcheck.py) \./$", DOCKERFILE, re.MULTILINE)
    assert f"!{copied}\n" in (ROOT / ".dockerignore").read_text()
    [words] = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert json.loads(words) == ["python", "/srv/keyturn/healthcheck.py"]
    assert re.findall(r"^WORKDIR (.*)$", DOCKERFILE, re.MULTILINE) == ["/srv/keyturn"] * 2


def test_the_image_runs_under_a_number_and_any_other_number_can_write_into_its_volume() -> None:
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["10001"]
    [volume] = re.findall(r"^VOLUME (.*)$", DOCKERFILE, re.MULTILINE)
    assert f"install -d -m 1777 {volume}\n" in DOCKERFILE
    assert f"KEYTURN_DATA_DIR={volume}/data\n" in DOCKERFILE


def test_the_image_is_labelled_with_the_release() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="(.*?)"', DOCKERFILE))
    assert labels["version"] == project["version"]
    assert labels["licenses"] == project["license"]
    assert labels["description"] == project["description"]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run([tool("hadolint"), ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_docker_compose_takes_the_file() -> None:
    words: list[str | Path] = [tool("docker-compose"), "-f", ROOT / "compose.yaml", "config", "--format", "json"]
    environment = {"PATH": os.environ["PATH"], "POSTGRES_PASSWORD": "a", "KEYTURN_SECRET": "b"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    services = json.loads(done.stdout)["services"]
    assert services["migrate"]["command"] == ["keyturn", "db", "upgrade"]
    for name in ("keyturn", "migrate", "redis"):
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]


IN_A_READ_ONLY_ROOT = """
mount --bind "$1" "$1"
mount -o remount,bind,ro /
mount -o remount,bind,ro /dev/shm
touch "$2" 2>/dev/null && exit 9
shift 2
exec "$@"
"""
"""Makes all file systems read-only but the data folder, and starts the service there. The test sees that it is so."""


def test_the_service_runs_where_nothing_can_be_written_but_the_data_folder(tmp_path: Path, logs: Path) -> None:
    inside = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-euc", IN_A_READ_ONLY_ROOT, "sh")
    data, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"
    data.mkdir()
    if not shutil.which("unshare"):
        pytest.skip("unshare is not installed")
    tried = subprocess.run([*inside, data, elsewhere, "true"], capture_output=True, text=True, check=False)
    if tried.returncode not in {0, 9}:
        pytest.skip(f"this machine lets nobody make a mount namespace: {tried.stderr.strip()}")
    assert tried.returncode == 0, "the file system could be written"
    environment = {"KEYTURN_DATA_DIR": str(data / "data"), "KEYTURN_WORKERS": "2", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {f"KEYTURN_{name.upper()}": value for name, value in CHEAP.items()}
    command = (*inside, str(data), str(elsewhere), sys.executable, "-m", "app", "serve")
    with Service.start(environment, logs=logs, command=command) as service:
        [password] = re.findall(r"^    admin@localhost   (\S+)$", service.text_with("admin@localhost"), re.MULTILINE)
        body = {"email": "admin@localhost", "password": password}
        assert httpx2.post(f"{service.url}/auth/login", json=body).status_code == 200
        assert service.terminate() in {0, -signal.SIGTERM}
    assert {path.name for path in (data / "data").iterdir()} >= {"keyturn.db"}


PINNED = "python:3.13-slim@sha256:" + "ab" * 32


def test_the_base_images_are_pinned_to_the_digests_that_docker_names(tmp_path: Path) -> None:
    """A stand-in answers as `docker buildx imagetools inspect` does: no registry is asked."""
    (tmp_path / "tools").mkdir()
    for name in ("Dockerfile", "compose.yaml", "tools/pin_images.py"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(f"""#!{sys.executable}
import sys
_, *words, tagged, option, template = sys.argv
assert words == ["buildx", "imagetools", "inspect"] and option == "--format" and template == "{{{{json .Manifest}}}}"
print('{{"mediaType": "application/vnd.oci.image.index.v1+json", "digest": "sha256:' + "ab" * 32 + '", "size": 1}}')
""")
    docker.chmod(0o755)

    def pin() -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "tools.pin_images"]
        environment = {"PATH": str(docker.parent)}
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    for _ in range(2):  # a second call renews the digest, and adds none
        done = pin()
        assert done.returncode == 0, done
        assert f"ARG PYTHON_IMAGE={PINNED}\n" in (tmp_path / "Dockerfile").read_text()
        services = yaml.safe_load((tmp_path / "compose.yaml").read_text())["services"]
        assert services["postgres"]["image"] == "postgres:18@sha256:" + "ab" * 32
        assert services["redis"]["image"].startswith("valkey/valkey:9@sha256:")
    before = (tmp_path / "Dockerfile").read_text()
    docker.write_text("#!/bin/sh\necho 'no such host' >&2\nexit 1\n")
    failed = pin()
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert failed.stderr.endswith("Docker said: no such host\n")
    assert (tmp_path / "Dockerfile").read_text() == before


def test_each_image_of_the_files_is_one_that_can_be_pinned() -> None:
    """Otherwise an image in another form would stay without a digest, and nobody would see it."""
    image = runpy.run_path(str(ROOT / "tools" / "pin_images.py"))["IMAGE"]
    named = re.findall(
        r"^(?:FROM|ARG \w+_IMAGE=).*$|^ +image: .*$", DOCKERFILE + (ROOT / "compose.yaml").read_text(), re.MULTILINE
    )
    assert [line for line in named if not image.search(line)] == [
        "FROM ${PYTHON_IMAGE} AS build",
        "FROM ${PYTHON_IMAGE}",
    ]
