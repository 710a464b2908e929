"""Arguments from parameters, lines of the protocol, names of files: what comes from a task is data."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.agent.errors import RefusedByAgent
from app.agent.names import file_name, output_name
from app.agent.runtimes.arguments import fill, places
from app.agent.runtimes.protocol import Malformed, Output, Preview, Progress, Result, parse

OWN = places(Path("/work/a"))


@given(st.text().filter(lambda text: "\0" not in text))
def test_value_stays_inside_its_argument(value: str) -> None:
    assert fill(["tool", "--title={title}", "end"], {"title": value}, OWN) == ["tool", f"--title={value}", "end"]


def test_values_are_texts_or_json() -> None:
    parameters: dict[str, Any] = {"a": 1, "b": -0.5, "c": True, "d": None, "e": [1, "x"]}

    assert fill(["{a}", "{b}", "{c}", "{d}", "{e}"], parameters, OWN) == ["1", "-0.5", "true", "", '[1,"x"]']


def test_own_places_and_braces() -> None:
    argv = ["{runyard.parameters}", "{runyard.work}/x", "{{a}}", "{a", "}", "{ }"]

    assert fill(argv, {}, OWN) == ["/work/a/parameters.json", "/work/a/x", "{a}", "{a", "}", "{ }"]


@pytest.mark.parametrize("value", ["-rf", "--exec=x", "-"])
def test_text_that_would_become_an_option_is_refused(value: str) -> None:
    with pytest.raises(RefusedByAgent, match="no option of the command"):
        fill(["rm", "{file}"], {"file": value}, OWN)


def test_text_with_a_dash_is_fine_behind_the_end_of_options_and_inside_an_argument() -> None:
    assert fill(["rm", "--", "{file}"], {"file": "-rf"}, OWN) == ["rm", "--", "-rf"]
    assert fill(["rm", "./{file}"], {"file": "-rf"}, OWN) == ["rm", "./-rf"]


def test_two_values_in_one_argument_cannot_make_an_option_together() -> None:
    with pytest.raises(RefusedByAgent, match="no option"):
        fill(["{empty}{file}"], {"empty": "", "file": "-rf"}, OWN)


@pytest.mark.parametrize(
    ("argv", "parameters", "words"),
    [
        (["{x}"], {}, "expected a parameter 'x'"),
        (["{x}"], {"x": "a\0b"}, "without NUL"),
        (["{runyard.secret}"], {"runyard.secret": "x"}, "found {runyard.secret}"),
    ],
)
def test_what_cannot_be_filled_is_refused(argv: list[str], parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(RefusedByAgent, match=words):
        fill(argv, parameters, OWN)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"progress": {"fraction": 0.5, "stage": "a\\u0000"}}', Progress({"fraction": 0.5, "stage": "a\ufffd"})),
        (b'{"progress": {"step": 1, "total": 4}}', Progress({"step": 1, "total": 4, "fraction": 0.25})),
        (b'{"progress": {"fraction": -3}}', Progress({"fraction": 0.0})),
        (b'{"preview": "a.png"}', Preview("a.png")),
        (b'{"output": "a", "name": "b", "mediaType": "text/plain"}', Output("a", "b", "text/plain")),
        (b'{"result": null}', Result(None)),
    ],
)
def test_lines_of_the_protocol(line: bytes, message: object) -> None:
    assert parse(line) == message


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"hello", b"[]", b"{}", b'{"progress": 1}', b'{"progress": {"step": "x"}}', b'{"preview": 1}'),
        *(b'{"progress": {"fraction": true}}', b'{"output": "a", "mode": 1}', b'{"preview": "a", "result": 1}'),
        *(b'{"progress": {"colour": "red"}}', b'{"output": "a", "name": 1}', b"\xff", None),
        b'{"result": "' + b"x" * 70_000 + b'"}',
    ],
)
def test_malformed_lines_say_what_was_expected(line: bytes | None) -> None:
    with pytest.raises(Malformed, match="expected"):
        parse(line)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(line: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert isinstance(parse(line), Progress | Preview | Output | Result)


@given(st.text())
def test_file_names_are_one_harmless_component(name: str) -> None:
    safe = file_name(name)

    assert safe
    assert len(safe.encode()) <= 120
    assert not set(safe) & set('/\\:*?"<>|\0\n\r')
    assert not safe.startswith((".", "-"))
    assert Path("/a", safe).parent == Path("/a")


@given(st.text())
def test_output_names_have_no_way_out(name: str) -> None:
    safe = output_name(name)

    assert safe
    assert len(safe) <= 255
    assert ".." not in safe.split("/")
    assert not safe.startswith("/")
    assert safe.encode()


def test_names_keep_what_is_harmless() -> None:
    assert file_name("C:\\temp\\Bild über Köln.png") == "Bild über Köln.png"
    assert file_name("../../.ssh/id") == "id"
    assert file_name("....") == "file"
    assert file_name("a" * 300 + ".png") == "a" * 116 + ".png"
    assert output_name("deep/./../er/a.png") == "deep/er/a.png"
    assert output_name("evil\u202egnp.exe") == "evil_gnp.exe"
