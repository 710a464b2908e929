"""From a stream of bytes to lines of text, in any pieces that a pipe gives.

Invariants:
1. How the bytes were cut into pieces makes no difference to the lines.
2. A multi-byte character is never split; what is not UTF-8 becomes U+FFFD, and so does NUL, which the database cannot
   store.
3. LF, CR LF and CR alone each end a line (a progress bar redraws its line by CR); a line over 16 KiB goes on in the
   next one.
"""

import codecs
import re

MAX_LINE = 16 * 1024  # bytes of UTF-8

_BREAK = re.compile(r"\r\n|\n|\r")


class LineCutter:
    """Cuts one stream; memory is bounded by one line."""

    def __init__(self, most: int = MAX_LINE) -> None:
        self._most = most
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._after_return = False  # a CR ended the last line: a LF that follows belongs to it

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes."""
        return self._cut(self._decoder.decode(data))

    def end(self) -> list[str]:
        """The last line, where the stream ends without a line break."""
        lines = self._cut(self._decoder.decode(b"", final=True))
        last, self._rest = self._rest, ""
        return lines + ([last] if last else [])

    def _cut(self, text: str) -> list[str]:
        if self._after_return and text:
            text = text.removeprefix("\n")
            self._after_return = False
        if text.endswith("\r"):
            self._after_return = True
        *whole, rest = _BREAK.split(self._rest + text.replace("\0", "�"))
        lines = [piece for line in whole for piece in _pieces(line, self._most)]
        *full, self._rest = _pieces(rest, self._most)
        return lines + full


def _pieces(line: str, most: int) -> list[str]:
    """The line in pieces of at most `most` bytes; the empty line is one empty piece."""
    if len(line) * 4 <= most or len(raw := line.encode()) <= most:
        return [line]
    pieces, start = list[str](), 0
    while len(raw) - start > most:
        end = start + most
        while raw[end] & 0xC0 == 0x80:  # inside a character
            end -= 1
        pieces.append(raw[start:end].decode())
        start = end
    return [*pieces, raw[start:].decode()]
