"""Names from elsewhere made harmless: as a file on this machine, and as the name of an output for people."""

import re
import unicodedata

FILE_LIMIT = 120  # bytes of UTF-8, well under what file systems allow
OUTPUT_LIMIT = 255  # characters

_NOT_IN_FILES = re.compile(r'[/\\<>:"|?*]')
# Characters that turn the direction of text: a name must not look like another one.
_TURNING = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def file_name(name: str, *, fallback: str = "file") -> str:
    """One path component that is safe anywhere: no separators, no control characters, no leading dot or dash."""
    last = re.split(r"[/\\]", name)[-1]
    clean = _NOT_IN_FILES.sub("_", _printable(last)).strip(" ").lstrip(".-").rstrip(". ")
    return _shorten(clean, FILE_LIMIT) or fallback


def output_name(path: str) -> str:
    """A name for people, with / between folders; the same rules, less strict."""
    parts = [_printable(part).strip() for part in path.split("/")]
    kept = [part for part in parts if part not in ("", ".", "..")]
    name = "/".join(kept)[-OUTPUT_LIMIT:]
    return name.lstrip("/") or "file"


def _printable(text: str) -> str:
    text = _TURNING.sub("_", text.encode("utf-8", "replace").decode())
    return "".join("_" if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)


def _shorten(name: str, most: int) -> str:
    raw = name.encode()
    if len(raw) <= most:
        return name
    stem, dot, extension = name.rpartition(".")
    if not dot or len(extension.encode()) > 16:
        return raw[:most].decode(errors="ignore")
    room = most - len(extension.encode()) - 1
    return stem.encode()[:room].decode(errors="ignore") + "." + extension
