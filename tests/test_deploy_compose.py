"""deploy/compose.yaml, as far as it can be looked at without Docker: files are there, addresses and ports agree."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
BUILT = {name: service["build"] for name, service in SERVICES.items() if "build" in service}


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there_and_stays_as_it_is(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, _, target = volume.partition(":")
        if source.startswith("."):
            assert (DEPLOY / source).is_dir(), volume
            assert target.endswith(":ro"), volume


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_built_from_a_file_that_is_there_or_has_its_version_pinned(name: str) -> None:
    if name in BUILT:
        context = DEPLOY / BUILT[name]["context"]
        dockerfile = context / BUILT[name].get("dockerfile", "Dockerfile")
        assert dockerfile.is_file()
        ignored = (context / ".dockerignore").read_text().split()
        for line in dockerfile.read_text().splitlines():
            if line.startswith("COPY ") and "--from" not in line:
                source = line.split()[1]
                assert (context / source).exists(), line
                assert f"!{source}" in ignored or f"!{source.split('/')[0]}" in ignored, f"{line}: is ignored"
    else:
        tag = SERVICES[name]["image"].rpartition(":")[2]
        assert tag.lstrip("v").count(".") == 2, SERVICES[name]["image"]


def test_ports_are_for_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len(set(ports)) == len(ports)


def test_they_find_each_other() -> None:
    prometheus = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in SERVICES
    assert SERVICES[host]["environment"]["GATEWAY_METRICS_ADDRESS"] == f"0.0.0.0:{port}"
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    url = urlsplit(sources["datasources"][0]["url"])
    assert url.hostname in SERVICES
    assert f"127.0.0.1:{url.port}:{url.port}" in SERVICES[url.hostname]["ports"]
    (asked,) = [each.removeprefix("--host=") for each in SERVICES["locust"]["command"] if each.startswith("--host=")]
    assert urlsplit(asked).hostname in SERVICES
    for service in SERVICES.values():
        assert set(service.get("depends_on", [])) <= SERVICES.keys()


def test_locust_takes_its_command(tmp_path: Path) -> None:
    """In folders as the container has them, which come from the volumes."""
    for volume in SERVICES["locust"]["volumes"]:
        source, target, _ = volume.split(":")
        place = tmp_path / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to((DEPLOY / source).resolve())
    command = [each.replace("=/src/", f"={tmp_path}/src/") for each in SERVICES["locust"]["command"]]
    done = subprocess.run(
        [sys.executable, "-m", "locust", *command, "--list"], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert {"OipJson", "TensorFlowServing", "TorchServe"} <= set(done.stdout.split())
