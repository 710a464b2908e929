"""A wrong setting stops the start with a sentence that names it."""

import pytest

from app import settings
from app.settings import WrongSetting, load


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(f"RUNYARD_{name.upper()}", raising=False)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"port": "abc"}, "port (RUNYARD_PORT)"),
        ({"port": "70000"}, "port (RUNYARD_PORT)"),
        ({"lease": "5"}, "lease: expected at least three beats (15 s), found 5 s"),
        ({"host": "0.0.0.0"}, "public_url: expected the address that browsers use"),
        ({"public_url": "runyard.example"}, "public_url: expected http(s)://host[:port], found 'runyard.example'"),
        ({"public_url": "https://x.example/path"}, "public_url: expected http(s)://host[:port]"),
        ({"secret_key": "short"}, "secret_key: expected at least 32 characters, found 5"),
        ({"s3_endpoint": "http://127.0.0.1:9"}, "s3_access_key, s3_secret_key: expected both"),
        ({"introspection": "sometimes"}, "introspection (RUNYARD_INTROSPECTION)"),
        ({"time_scale": "0"}, "time_scale (RUNYARD_TIME_SCALE)"),
        ({"role": "api,cook"}, "role: expected some of agents, api, loops, found 'api,cook'"),
        ({"role": ","}, "role: expected some of"),
        ({"workers": "9"}, "expected at most 90 connections of all workers to our own PostgreSQL, found 108"),
        ({"workers": "4", "metrics_port": "65534"}, "metrics_port: expected a port for each of 4 workers"),
    ],
)
def test_a_wrong_setting_is_named(given: dict[str, str], says: str) -> None:
    with pytest.raises(WrongSetting) as refused:
        load(given)

    assert says in str(refused.value)


def test_a_setting_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNYARD_PORTT", "1")

    with pytest.raises(WrongSetting, match="RUNYARD_PORTT: no such setting"):
        load()


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNYARD_PORT", "9000")

    assert load().port == 9000
    assert load({"port": "9001"}).port == 9001


def test_another_process_reads_the_same_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = load({"port": "9001", "secret_key": "s" * 40, "lease": "60", "role": "api", "trusted_proxies": "10.0.0.1"})

    for name, value in chosen.environment().items():
        monkeypatch.setenv(name, value)

    assert load() == chosen


def test_a_secret_is_never_shown() -> None:
    secret = "s" * 40

    shown = repr(load({"secret_key": secret, "database_url": "postgresql://u:hunter2@h/d"}))

    assert secret not in shown
    assert "hunter2" not in shown


def test_every_setting_is_in_the_table_and_the_help() -> None:
    names = {name for name, *_ in settings.table()}

    assert names == set(settings.Settings.model_fields)
    assert all(f"RUNYARD_{name.upper()}" in settings.markdown() for name in names)


def test_what_keeps_replicas_apart_is_named() -> None:
    assert load().not_shared() == ["database_url", "redis_url", "s3_endpoint", "secret_key", "pepper"]


def test_every_timing_is_scaled() -> None:
    scaled = load({"time_scale": "0.1"})

    assert scaled.seconds("lease") == pytest.approx(3.0)
