"""The manifests of deploy/kubernetes: they parse, refer to what is there, and name settings and series that exist."""

import re
from typing import Any

import pytest
import yaml

from app.agent.config import load as load_agent
from app.interfaces.rest.metrics import _Shown
from app.persistence.gauges import Present
from app.services.measures import Measures
from app.services.metrics import Measured
from app.settings import Settings, load
from tests.deploy.manifests import DEPLOY

FOLDER = DEPLOY / "kubernetes"
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
FILES = [*KUSTOMIZATION["resources"], "secret.example.yaml"]
OBJECTS: list[dict[str, Any]] = [each for file in FILES for each in yaml.safe_load_all((FOLDER / file).read_text())]
KINDS = {
    "Namespace": "v1",
    "ConfigMap": "v1",
    "Secret": "v1",
    "Service": "v1",
    "Job": "batch/v1",
    "Deployment": "apps/v1",
    "PodDisruptionBudget": "policy/v1",
    "Ingress": "networking.k8s.io/v1",
    "ScaledObject": "keda.sh/v1alpha1",
}
WORKLOADS = [each for each in OBJECTS if each["kind"] in {"Deployment", "Job"}]
HOUR = 3600  # seconds that a quiet socket must be borne at least


def of(kind: str, name: str) -> dict[str, Any]:
    """The one object of this kind and name."""
    (found,) = [each for each in OBJECTS if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def containers(workload: dict[str, Any]) -> list[dict[str, Any]]:
    pod = workload["spec"]["template"]["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_every_file_is_used_and_every_object_is_known() -> None:
    assert {file.name for file in FOLDER.glob("*.yaml")} == {*FILES, "kustomization.yaml"}
    assert {(each["kind"], each["apiVersion"]) for each in OBJECTS} == set(KINDS.items())
    names = [(each["kind"], each["metadata"]["name"]) for each in OBJECTS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("kind", ["Deployment", "Service", "PodDisruptionBudget"])
def test_selectors_find_pods(kind: str) -> None:
    for each in (each for each in OBJECTS if each["kind"] == kind):
        selector = each["spec"]["selector"]
        wanted = selector.get("matchLabels", selector).items()
        found = [
            w["metadata"]["name"] for w in WORKLOADS if wanted <= w["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert found == [each["metadata"]["name"]]


def test_ports_lead_from_the_ingress_to_the_process() -> None:
    (rule,) = of("Ingress", "runyard")["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    (port,) = of("Service", backend["name"])["spec"]["ports"]
    (server,) = containers(of("Deployment", "server"))
    (listening,) = server["ports"]

    assert backend["port"]["name"] == port["name"]
    assert port["targetPort"] == listening["name"]
    assert str(listening["containerPort"]) == of("ConfigMap", "runyard")["data"]["RUNYARD_PORT"]
    assert {server[f"{probe}Probe"]["httpGet"]["port"] for probe in ("startup", "liveness", "readiness")} == {"http"}
    assert server["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert server["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_what_containers_refer_to_is_there() -> None:
    for workload in WORKLOADS:
        volumes = {each["name"]: each for each in workload["spec"]["template"]["spec"].get("volumes", [])}
        for volume in volumes.values():
            assert "configMap" not in volume or of("ConfigMap", volume["configMap"]["name"])
        for container in containers(workload):
            assert container["image"] in {each["name"] for each in KUSTOMIZATION["images"]}
            assert container["command"][0] in {"runyard", "runyard-agent"}
            assert {each["name"] for each in container.get("volumeMounts", [])} <= set(volumes)
            for source in container.get("envFrom", []):
                (kind, reference), *_ = source.items()
                assert of({"configMapRef": "ConfigMap", "secretRef": "Secret"}[kind], reference["name"])
            for variable in container.get("env", []):
                if secret := variable.get("valueFrom", {}).get("secretKeyRef"):
                    assert secret["key"] in of("Secret", secret["name"])["stringData"]


def test_the_settings_are_settings_and_let_replicas_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {**of("ConfigMap", "runyard")["data"], **of("Secret", "runyard")["stringData"]}
    assert set(given) <= {f"RUNYARD_{name.upper()}" for name in Settings.model_fields}
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    settings = load()

    assert settings.not_shared() == []


def test_a_pod_has_longer_to_stop_than_a_drain_takes() -> None:
    pod = of("Deployment", "server")["spec"]["template"]["spec"]

    assert pod["terminationGracePeriodSeconds"] == 30
    assert all("lifecycle" not in container for container in pod["containers"])


def test_the_ingress_bears_quiet_sockets() -> None:
    told = of("Ingress", "runyard")["metadata"]["annotations"]

    for way in ("read", "send"):
        assert int(told[f"nginx.ingress.kubernetes.io/proxy-{way}-timeout"]) >= HOUR


def test_the_agents_configuration_is_one(tmp_path: Any) -> None:
    (tmp_path / "agent.toml").write_text(of("ConfigMap", "runyard-agent")["data"]["agent.toml"])
    (agent,) = containers(of("Deployment", "agents"))
    environment = {each["name"]: each.get("value", "ak-0123456789") for each in agent["env"]}

    config = load_agent({"config": str(tmp_path / "agent.toml"), "state_dir": str(tmp_path)}, environment)

    grace = of("Deployment", "agents")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert config.drain_timeout is not None
    assert config.drain_timeout < grace
    assert "kubernetes" in config.labels


def test_keda_asks_for_series_that_are_served() -> None:
    scaled = of("ScaledObject", "agents")["spec"]
    query = scaled["triggers"][0]["metadata"]["query"]
    present = Present(depth={"kubernetes": 1}, oldest=0, younger_than={}, slots_free=0, slots_held=0, sessions=0)
    families = {family.name: family for family in _Shown(Measured(present, {}, Measures().all())).collect()}

    asked = re.findall(r"(runyard_\w+)\{(\w+)(?:=~|=)\"", query)

    assert asked == [("runyard_queue_depth", "requirement"), ("runyard_slots", "state")]
    for name, label in asked:
        assert all(label in sample.labels for sample in families[name].samples)
    assert query.count("or vector(0)") == query.count("max") == len(asked)
    assert of("Deployment", scaled["scaleTargetRef"]["name"])
    assert "replicas" not in of("Deployment", "agents")["spec"]


@pytest.mark.parametrize(
    ("requirement", "matches"),
    [("kubernetes", True), ("", True), ("gpu,kubernetes", False), ("gpu", False)],
)
def test_the_query_counts_what_these_agents_can_do(requirement: str, *, matches: bool) -> None:
    query = of("ScaledObject", "agents")["spec"]["triggers"][0]["metadata"]["query"]
    (pattern,) = re.findall(r'requirement=~"([^"]+)"', query)

    assert bool(re.fullmatch(pattern, requirement)) is matches
