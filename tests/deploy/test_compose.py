"""docker-compose.yml: it is one by the specification's schema, and names nothing that is not there."""

import json
from pathlib import Path

import jsonschema
import pytest

from app.settings import FOREIGN, Settings, load
from tests.deploy.manifests import DEPLOY, ROOT, compose, environment, variables

SERVICES = compose()["services"]
KNOWN = {f"RUNYARD_{name.upper()}" for name in Settings.model_fields} | FOREIGN
AGENTS = {"RUNYARD_AGENT_URL", "RUNYARD_AGENT_KEY"}


def test_the_file_is_valid_by_the_compose_specification() -> None:
    schema = json.loads((Path(__file__).with_name("compose-spec.json")).read_text())

    jsonschema.Draft7Validator(schema).validate(compose())


def test_the_schema_finds_a_wrong_file() -> None:
    schema = json.loads((Path(__file__).with_name("compose-spec.json")).read_text())
    wrong = compose()
    wrong["services"]["first"]["restarts"] = "always"

    with pytest.raises(jsonschema.ValidationError, match="restarts"):
        jsonschema.Draft7Validator(schema).validate(wrong)


def test_what_the_issue_of_production_asks_for_is_there() -> None:
    images = {name: service["image"] for name, service in SERVICES.items()}

    assert images["database"] == "postgres:18"
    assert images["valkey"].startswith("valkey/valkey:9")
    assert images["objects"].startswith("chrislusf/seaweedfs:")
    assert SERVICES["first"] == SERVICES["second"]
    assert {"proxy", "agent", "migrate", "bucket"} < set(SERVICES)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_each_service_names_only_what_is_there(name: str) -> None:
    service, file = SERVICES[name], compose()

    assert set(service.get("depends_on", {})) <= set(SERVICES)
    assert set(service["networks"]) <= set(file["networks"])
    for mount in service.get("volumes", []):
        source = mount.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in file["volumes"]
    for needed, condition in service.get("depends_on", {}).items():
        if condition["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[needed]
    assert all((ROOT / f"{each}.example").exists() for each in service.get("env_file", []))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_setting_that_a_service_is_given_is_one(name: str) -> None:
    given = {variable for variable in environment(name) if variable.startswith("RUNYARD_")}

    assert given <= KNOWN | (AGENTS if name == "agent" else set())


def test_the_settings_are_valid_and_let_two_replicas_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in environment("first").items():
        monkeypatch.setenv(variable, value)

    settings = load()

    assert settings.not_shared() == []
    assert settings.trusted_proxies == compose()["networks"]["inside"]["ipam"]["config"][0]["subnet"]


def test_only_the_proxy_is_reachable_and_no_secret_is_committed() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
    for example in DEPLOY.glob("*.env.example"):
        secrets = {name: value for name, value in variables(example).items() if not value.startswith("http")}
        assert all("CHANGE" in value for value in secrets.values())


def test_a_replica_has_longer_to_stop_than_a_drain_takes() -> None:
    assert SERVICES["first"]["stop_grace_period"] == "30s"
