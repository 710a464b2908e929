"""The example workflow: a Julia or Mandelbrot set, rendered by tiles, on one core.

A real task in small: typed parameters, many steps with progress, log lines, previews of the picture so far, and files:
`palette.png` at once; at the end `image.png`, `stats.json` and `field.bin` (float32, row by row, escape times).

Alone:      python -m app.demo.render --width 1024 --height 512 --out /tmp/picture
As a task:  python -m app.demo.render parameters.json   (finds the rest in RUNYARD_OUTPUTS and RUNYARD_EVENTS_FD)

Invariant: what is here needs numpy and Pillow and nothing else of this project: any program becomes a task this way.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, PngImagePlugin

ESCAPE = 16.0  # square of the radius beyond which a point is lost; larger than 4 makes the colours smooth
PREVIEW_EVERY = 0.6  # seconds
PREVIEW_WIDTH = 512  # pixels
LOG_EVERY = 8  # tiles

LIMITS = {
    "width": (16, 16384),
    "height": (16, 16384),
    "iterations": (1, 10000),
    "tile": (16, 4096),
    "samples": (1, 8),
}
# Four anchors each, from the fastest escape to the slowest; the set itself is the last.
PALETTES: dict[str, tuple[tuple[int, int, int], ...]] = {
    "ember": ((12, 8, 22), (150, 32, 32), (250, 150, 40), (255, 246, 214)),
    "ocean": ((4, 12, 32), (10, 82, 140), (64, 196, 208), (240, 252, 255)),
    "forest": ((10, 16, 10), (34, 92, 48), (150, 186, 74), (250, 246, 206)),
    "mono": ((0, 0, 0), (86, 86, 86), (172, 172, 172), (255, 255, 255)),
}


@dataclass(frozen=True)
class Scene:
    """What to render; the names are those of the workflow's parameters."""

    title: str = ""
    width: int = 4096  # pixels; with the default height the field has 32 MiB
    height: int = 2048
    iterations: int = 100
    palette: str = "ember"
    julia: bool = True  # else the Mandelbrot set
    seed_real: float = -0.8
    seed_imaginary: float = 0.156
    center_x: float = 0.0
    center_y: float = 0.0
    zoom: float = 1.0
    tile: int = 256  # pixels
    samples: int = 2  # for each pixel, in each direction
    smooth: bool = True  # colours between the bands
    overlay: str | None = None  # path of a picture that is laid over the result
    overlay_strength: float = 0.35


class Channel:
    """Tells whoever runs this how far it is: the line protocol where there is one, else nothing but the log."""

    def __init__(self, descriptor: str | None) -> None:
        self._pipe = os.fdopen(int(descriptor), "w", buffering=1) if descriptor else None

    def say(self, **message: Any) -> None:
        """One line of the protocol."""
        if self._pipe:
            self._pipe.write(json.dumps(message) + "\n")


def render(scene: Scene, outputs: Path, channel: Channel) -> dict[str, Any]:
    """Render `scene` into files below `outputs`, return its figures. Raises ValueError where it makes no sense."""
    check(scene)
    outputs.mkdir(parents=True, exist_ok=True)
    colours = palette(scene.palette)
    Image.fromarray(np.repeat(colours[None], 32, axis=0)).save(outputs / "palette.png")
    channel.say(output=str(outputs / "palette.png"), name="palette.png", mediaType="image/png")
    began = time.monotonic()
    field, picture = paint(scene, colours, Painter(scene, outputs.parent, channel))
    seconds = time.monotonic() - began
    print(f"{field.size} pixels in {seconds:.2f} s; writing the files")
    steps = len(tiles(scene))
    done = {"step": steps, "total": steps}
    channel.say(progress={**done, "fraction": 0.97, "stage": "write", "message": "writing the files"})
    field.tofile(outputs / "field.bin")
    finish(scene, picture, outputs / "image.png")
    figures = measure(scene, field, seconds)
    (outputs / "stats.json").write_text(json.dumps(figures, indent=2) + "\n")
    channel.say(output=str(outputs / "stats.json"), name="stats.json", mediaType="application/json")
    channel.say(progress={**done, "fraction": 1.0, "stage": "done", "message": "all files are written"})
    channel.say(result={name: figures[name] for name in ("pixels", "inside", "mean", "seconds")})
    return figures


def check(scene: Scene) -> None:
    """Refuse what cannot be rendered, with a sentence that names the parameter."""
    for name, (low, high) in LIMITS.items():
        if not low <= getattr(scene, name) <= high:
            raise ValueError(f"{name}: expected {low} to {high}, found {getattr(scene, name)}")
    if scene.palette not in PALETTES:
        raise ValueError(f"palette: expected one of {', '.join(PALETTES)}, found {scene.palette!r}")
    if not scene.zoom > 0:
        raise ValueError(f"zoom: expected more than 0, found {scene.zoom}")


def palette(name: str, size: int = 1024) -> NDArray[np.uint8]:
    """The colours of a palette, evenly spaced between its anchors; shape (size, 3)."""
    anchors = np.array(PALETTES[name], dtype=np.float32)
    places = np.linspace(0, len(anchors) - 1, size)
    return np.stack([np.interp(places, range(len(anchors)), anchors[:, c]) for c in range(3)], axis=1).astype(np.uint8)


def tiles(scene: Scene) -> list[tuple[slice, slice]]:
    """Rows and columns of every tile, from the middle of the picture outwards."""
    corners = [(y, x) for y in range(0, scene.height, scene.tile) for x in range(0, scene.width, scene.tile)]
    middle = (scene.height - scene.tile) / 2, (scene.width - scene.tile) / 2
    corners.sort(key=lambda corner: (corner[0] - middle[0]) ** 2 + (corner[1] - middle[1]) ** 2)
    return [
        (slice(y, min(y + scene.tile, scene.height)), slice(x, min(x + scene.tile, scene.width))) for y, x in corners
    ]


def plane(scene: Scene, rows: slice, columns: slice) -> NDArray[np.complex64]:
    """The points of the complex plane under these pixels, `samples` in each direction for a pixel."""
    span = 3.2 / scene.zoom  # width of the picture in the plane
    many = scene.samples
    x = (np.arange(columns.start * many, columns.stop * many) + 0.5) / (scene.width * many) - 0.5
    y = (np.arange(rows.start * many, rows.stop * many) + 0.5 - scene.height * many / 2) / (scene.width * many)
    points: NDArray[np.complex64] = (
        (x[None, :] * span + scene.center_x) + 1j * (y[:, None] * span + scene.center_y)
    ).astype(np.complex64)
    return points


def escape_times(scene: Scene, points: NDArray[np.complex64]) -> NDArray[np.float32]:
    """After how many steps each point leaves the circle (parts of steps if `smooth`); `iterations` where it stays."""
    z = points.ravel().copy()
    c = z.copy()
    if scene.julia:
        c.fill(complex(scene.seed_real, scene.seed_imaginary))
    times = np.full(z.size, scene.iterations, dtype=np.float32)
    index = np.arange(z.size)
    for step in range(scene.iterations):
        z *= z
        z += c
        size = z.real * z.real + z.imag * z.imag
        gone = size > ESCAPE
        if gone.any():
            fraction = np.log2(np.log2(size[gone]) / 2) if scene.smooth else 0.0
            times[index[gone]] = np.maximum(step + 1 - fraction, 0)
            stay = ~gone
            z, c, index = z[stay], c[stay], index[stay]
            if not index.size:
                break
    return times.reshape(points.shape)


class Painter:
    """Reports while the tiles are painted."""

    def __init__(self, scene: Scene, folder: Path, channel: Channel) -> None:
        self._scene = scene
        self._channel = channel
        self._preview = folder / "preview.png"
        self._shown = time.monotonic()

    def painted(self, step: int, total: int, picture: NDArray[np.uint8]) -> None:
        """A tile more is there."""
        message = f"tile {step} of {total}"
        progress = {"fraction": 0.95 * step / total, "step": step, "total": total, "stage": "render"}
        self._channel.say(progress={**progress, "message": message})
        if step % LOG_EVERY == 0 or step == total:
            print(f"{message} is painted")
        if time.monotonic() - self._shown >= PREVIEW_EVERY or step == total:
            self.show(picture)

    def show(self, picture: NDArray[np.uint8]) -> None:
        """The picture so far, small; renamed into place, so that nobody reads half of it."""
        every = max(1, self._scene.width // PREVIEW_WIDTH)
        half = self._preview.with_suffix(".part")
        Image.fromarray(np.ascontiguousarray(picture[::every, ::every])).save(half, "PNG")
        half.replace(self._preview)
        self._channel.say(preview=str(self._preview))
        self._shown = time.monotonic()


def paint(scene: Scene, colours: NDArray[np.uint8], painter: Painter) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The field (float32, height x width) and the picture (uint8, height x width x 3)."""
    field = np.zeros((scene.height, scene.width), dtype=np.float32)
    picture = np.zeros((scene.height, scene.width, 3), dtype=np.uint8)
    places = tiles(scene)
    print(f"{scene.width} x {scene.height} pixels in {len(places)} tiles, {scene.samples**2} samples each")
    for number, (rows, columns) in enumerate(places, 1):
        times = escape_times(scene, plane(scene, rows, columns))
        field[rows, columns] = averaged(times, scene.samples)
        # The square root spreads the fast escapes, where most of the picture is.
        shade = np.sqrt(times / scene.iterations) * (len(colours) - 1)
        picture[rows, columns] = averaged(colours[shade.astype(np.uint16)], scene.samples)
        painter.painted(number, len(places), picture)
    return field, picture


def averaged(values: NDArray[Any], many: int) -> NDArray[Any]:
    """One value for each block of `many` x `many` samples, of the same kind."""
    if many == 1:
        return values
    blocks = values.reshape(values.shape[0] // many, many, values.shape[1] // many, many, *values.shape[2:])
    # Sums in integers where the values are bytes: four times as fast as a mean.
    whole = np.uint16 if values.dtype == np.uint8 else np.float32
    summed: NDArray[Any] = blocks.astype(whole).sum(axis=(1, 3), dtype=whole)
    return (summed // (many * many) if whole is np.uint16 else summed / (many * many)).astype(values.dtype)


def finish(scene: Scene, picture: NDArray[np.uint8], path: Path) -> None:
    """Lay the overlay over it, write the title on it, save it."""
    image = Image.fromarray(picture)
    if scene.overlay:
        with Image.open(scene.overlay) as overlay:
            image = Image.blend(image, overlay.convert("RGB").resize(image.size), scene.overlay_strength)
        print("the overlay is laid over the picture")
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Software", "runyard example")
    if scene.title:
        notes.add_itxt("Title", scene.title)
        place = (scene.width // 64, scene.height - scene.height // 16)
        ImageDraw.Draw(image).text(place, scene.title, fill=(255, 255, 255), font_size=max(10, scene.height // 32))
    image.save(path, "PNG", compress_level=1, pnginfo=notes)


def measure(scene: Scene, field: NDArray[np.float32], seconds: float) -> dict[str, Any]:
    """The figures of `stats.json`."""
    counts, edges = np.histogram(field, bins=16, range=(0, scene.iterations))
    return {
        "scene": {name: value for name, value in asdict(scene).items() if name != "overlay"},
        "pixels": int(field.size),
        "inside": int((field >= scene.iterations).sum()),
        "mean": round(float(field.mean(dtype=np.float64)), 4),
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
        "field": {"file": "field.bin", "dtype": "float32", "shape": list(field.shape)},
        "seconds": round(seconds, 3),
    }


def main(argv: list[str] | None = None) -> int:
    """Render what the parameters file, then the options, say. Exit code 2 for parameters that make no sense."""
    given = vars(_parser().parse_args(argv))
    file, out = given.pop("parameters"), given.pop("out")
    known = {field.name for field in fields(Scene)}
    from_file = json.loads(Path(file).read_text()) if file else {}
    values = {**from_file, **{name: value for name, value in given.items() if value is not None}}
    scene = Scene(**{name: value for name, value in values.items() if name in known and value is not None})
    outputs = Path(out or os.environ.get("RUNYARD_OUTPUTS", "outputs")).absolute()
    try:
        figures = render(scene, outputs, Channel(os.environ.get("RUNYARD_EVENTS_FD")))
    except ValueError as error:
        print(f"render: {error}", file=sys.stderr)
        return 2
    print(f"done: {figures['inside']} of {figures['pixels']} pixels are in the set")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="render", description="Render a Julia or Mandelbrot set by tiles.")
    parser.add_argument("parameters", nargs="?", help="a JSON file with the parameters")
    parser.add_argument("--out", help="the directory for the files; default: RUNYARD_OUTPUTS, else ./outputs")
    for name, default in _options():
        if isinstance(default, bool):
            parser.add_argument(f"--{name.replace('_', '-')}", action=argparse.BooleanOptionalAction, default=None)
        else:
            kind = type(default) if default is not None else str
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=f"default: {default}")
    return parser


def _options() -> Iterator[tuple[str, Any]]:
    return ((field.name, field.default) for field in fields(Scene))


if __name__ == "__main__":
    sys.exit(main())
