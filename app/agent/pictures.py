"""Thumbnails and previews, made with Pillow in a thread; the server never decodes an image.

Only formats of the list are tried, and an image is refused by its announced size before a pixel of it is decoded.
"""

import io
import warnings
from dataclasses import dataclass
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError

from app.agent.errors import OutputRefused

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 50_000_000
THUMBNAIL_SIDE = 512  # pixels
PREVIEW_LIMIT = 256 * 1024  # bytes
PREVIEW_SIDES = (1280, 960, 640, 400, 256)  # pixels, tried until the preview is small enough
PREVIEW_SOURCE_LIMIT = 64 * 1024 * 1024  # bytes of the file that becomes a preview

Image.MAX_IMAGE_PIXELS = MAX_PIXELS


@dataclass(frozen=True)
class Picture:
    """An encoded image."""

    data: bytes
    media_type: str
    width: int
    height: int


@dataclass(frozen=True)
class Illustration:
    """What is known of an output that is an image."""

    width: int
    height: int
    thumbnail: Picture | None


def illustrate(file: IO[bytes]) -> Illustration | None:
    """The size and thumbnail of an image file; None where it is none, no thumbnail where it has too many pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                width, height = image.size
                thumbnail = _fit(image, THUMBNAIL_SIDE) if width * height <= MAX_PIXELS else None
                return Illustration(width, height, thumbnail)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError):
        return None


def preview(data: bytes, name: str) -> Picture:
    """The image as it is where it is small enough, else a smaller one. Raises OutputRefused for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise OutputRefused(f"preview {name}: expected at most {MAX_PIXELS} pixels, found {image.size}")
                image.load()
                if len(data) <= PREVIEW_LIMIT and image.format in ("PNG", "JPEG", "WEBP"):
                    return Picture(data, Image.MIME[image.format], *image.size)
                return _small_enough(image, name)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError) as error:
        raise OutputRefused(f"preview {name}: expected an image, found none that can be read ({error})") from None


def _small_enough(image: Image.Image, name: str) -> Picture:
    for side in PREVIEW_SIDES:
        picture = _fit(image, side)
        if len(picture.data) <= PREVIEW_LIMIT:
            return picture
    raise OutputRefused(f"preview {name}: expected at most {PREVIEW_LIMIT} bytes after scaling down, found more")


def _fit(image: Image.Image, side: int) -> Picture:
    image.draft("RGB", (side, side))  # JPEG decodes straight to a smaller size
    small = ImageOps.exif_transpose(image)
    small.thumbnail((side, side))
    transparent = small.has_transparency_data
    small = small.convert("RGBA" if transparent else "RGB")
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=82)
    return Picture(buffer.getvalue(), "image/webp", *small.size)
