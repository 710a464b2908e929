"""The example workflow: a real picture, its figures, and a definition that says what the program takes."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.agent.runtimes.protocol import Output, Preview, Progress, Result, parse
from app.demo import render
from app.demo.render import Scene
from app.domain import workflow

ROOT = Path(__file__).parents[2]
SMALL = Scene(width=96, height=64, iterations=40, tile=32, samples=1)


def test_workflow_has_exactly_the_parameters_of_the_program() -> None:
    document = json.loads((ROOT / "app" / "demo" / "workflow.json").read_text())

    draft = workflow.read(document)

    assert {p.key: p.default for p in draft.plan.parameters} == {f.name: f.default for f in fields(Scene)}
    choices = next(p.options for p in draft.plan.parameters if p.key == "palette")
    assert {option.value for option in choices} == set(render.PALETTES)
    assert draft.plan.definition == {"command": "render"}


def test_files_agree_with_each_other(tmp_path: Path) -> None:
    figures = render.render(SMALL, tmp_path / "outputs", render.Channel(None))

    field = np.fromfile(tmp_path / "outputs" / "field.bin", dtype=np.float32).reshape(64, 96)
    assert json.loads((tmp_path / "outputs" / "stats.json").read_text()) == figures
    assert figures["pixels"] == 96 * 64
    assert figures["inside"] == int((field >= 40).sum()) > 0
    assert figures["mean"] == round(float(field.mean(dtype=np.float64)), 4)
    assert sum(figures["histogram"]["counts"]) == field.size
    with Image.open(tmp_path / "outputs" / "image.png") as image:
        assert image.size == (96, 64)


@pytest.mark.parametrize("julia", [True, False])
def test_tiles_make_no_difference(tmp_path: Path, julia: bool) -> None:
    def field(tile: int) -> bytes:
        scene = Scene(width=96, height=64, iterations=30, tile=tile, samples=2, julia=julia)
        render.render(scene, tmp_path / str(tile), render.Channel(None))
        return (tmp_path / str(tile) / "field.bin").read_bytes()

    assert field(16) == field(64)


def test_known_points_escape_when_they_should() -> None:
    scene = Scene(julia=False, iterations=50, smooth=False)
    points = np.array([[0, -1, 2 + 2j, 10]], dtype=np.complex64)

    times = render.escape_times(scene, points)

    assert times.tolist() == [[50.0, 50.0, 1.0, 1.0]]


def test_overlay_and_title_change_the_picture(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10), (255, 255, 255)).save(tmp_path / "white.png")
    overlay = str(tmp_path / "white.png")
    scene = Scene(width=96, height=64, iterations=10, samples=1, overlay=overlay, overlay_strength=1.0, title="Über")

    render.render(scene, tmp_path / "outputs", render.Channel(None))

    with Image.open(tmp_path / "outputs" / "image.png") as image:
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert getattr(image, "text")["Title"] == "Über"  # noqa: B009


def test_program_speaks_the_line_protocol(tmp_path: Path) -> None:
    (tmp_path / "parameters.json").write_text(
        json.dumps({"width": 96, "height": 64, "iterations": 20, "overlay": None})
    )
    reading, writing = os.pipe()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RUNYARD_OUTPUTS": str(tmp_path / "outputs"),
        "RUNYARD_EVENTS_FD": str(writing),
    }

    done = subprocess.run(
        [sys.executable, "-m", "app.demo.render", "parameters.json", "--tile", "32"],
        cwd=tmp_path,
        env=environment,
        pass_fds=[writing],
        capture_output=True,
        check=True,
    )
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        messages = [parse(line) for line in pipe.read().splitlines()]

    steps = [m.value["step"] for m in messages if isinstance(m, Progress) and "step" in m.value]
    assert steps == [1, 2, 3, 4, 5, 6, 6, 6]
    assert [m.name for m in messages if isinstance(m, Output)] == ["palette.png", "stats.json"]
    assert any(isinstance(m, Preview) for m in messages)
    assert isinstance(messages[-1], Result)
    assert b"in the set" in done.stdout


def test_parameters_that_make_no_sense_end_with_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = render.main(["--palette", "pink", "--out", str(tmp_path)])

    assert code == 2
    assert capsys.readouterr().err == "render: palette: expected one of ember, ocean, forest, mono, found 'pink'\n"
