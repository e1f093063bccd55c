"""The terminal: one frame after another in its other screen, and the screen as it was at the end.

Control sequences of ECMA-48 and xterm, no library. A frame is written in one piece, so it does not flicker. The width
of a line counts its characters without the sequences.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

from ..log_console import wants_colours
from .view import Line, Style

_COLOURS: dict[Style, str] = {"plain": "", "bold": "1", "dim": "2", "good": "32", "warning": "33", "bad": "31"}
_ENTER = "\x1b[?1049h\x1b[?25l"  # the other screen, without a cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def is_capable(stream: TextIO) -> bool:
    """Whether a stream is a terminal that knows the control sequences."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def text_of(lines: Sequence[Line], *, colours: bool = False, width: int | None = None) -> list[str]:
    """Lines as text. A line that is longer than `width` ends with an ellipsis."""
    return [_cut(line, colours, width) for line in lines]


def _cut(line: Line, colours: bool, width: int | None) -> str:  # noqa: FBT001  # one way to call it
    left = sum(len(span.text) for span in line) if width is None else width
    too_long = width is not None and sum(len(span.text) for span in line) > width
    left -= too_long
    parts = []
    for span in line:
        text = span.text[: max(left, 0)]
        left -= len(text)
        code = _COLOURS[span.style] if colours else ""
        parts.append(f"\x1b[{code}m{text}\x1b[0m" if code and text else text)
    return "".join(parts).rstrip(" ") + ("…" if too_long else "")


class Screen:
    """The other screen of a terminal."""

    def __init__(self, output: TextIO, colours: bool) -> None:  # noqa: FBT001  # one way to call it
        self._output = output
        self._colours = colours
        self._input = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._before = None if self._input is None else termios.tcgetattr(self._input)
        self._woken, self._wake = os.pipe()
        for end in (self._woken, self._wake):
            os.set_blocking(end, False)

    def draw(self, lines: Sequence[Line]) -> None:
        """Draws a frame as large as the terminal is now. Lines that find no room are counted in the last one."""
        width, height = self._size()
        shown = text_of(lines, colours=self._colours, width=width)
        if len(shown) > height:
            hidden = len(shown) - height + 1
            shown[height - 1 :] = [f"… {hidden} more lines: enlarge the window"[:width]]
        frame = f"{_REST_OF_LINE}\r\n".join(shown)
        self._write(f"{_HOME}{frame}{_REST_OF_LINE}{_REST_OF_SCREEN}")

    def _size(self) -> tuple[int, int]:
        """Columns and lines. A terminal that does not know its size counts as one of the usual size."""
        try:
            size = os.get_terminal_size(self._output.fileno())
        except OSError:
            return 80, 24
        return size.columns or 80, size.lines or 24

    def wait(self, seconds: float) -> bool:
        """Waits. Returns early if the size changed or a key was typed. False: the user wants to leave (q, CTRL+D)."""
        sources = [self._woken, *([] if self._input is None else [self._input])]
        ready, _, _ = select.select(sources, [], [], seconds)
        if self._woken in ready:
            with suppress(BlockingIOError):
                os.read(self._woken, 1024)
        if self._input in ready:
            typed = os.read(self._input or 0, 1024)
            return bool(typed) and not {*typed.lower()} & {*b"q\x04"}
        return True

    def enter(self) -> None:
        """Shows the other screen, and takes each key as it is typed. CTRL+C and CTRL+Z keep their meanings."""
        if self._input is not None:
            tty.setcbreak(self._input)
        self._write(_ENTER)

    def leave(self) -> None:
        """Shows the first screen, as it was."""
        self._write(_LEAVE)
        if self._input is not None and self._before is not None:
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)

    def wake(self, *_: object) -> None:
        """Lets `wait` return."""
        with suppress(BlockingIOError):  # it is woken already
            os.write(self._wake, b"\0")

    def suspend(self, number: int, _frame: FrameType | None) -> None:
        """Stops the process (CTRL+Z) with the first screen, and goes on in the other one."""
        self.leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # the process stands still here until SIGCONT
        signal.signal(number, self.suspend)
        self.enter()
        self.wake()

    def close(self) -> None:
        """Closes what `wait` reads."""
        os.close(self._woken)
        os.close(self._wake)

    def _write(self, text: str) -> None:
        # Not through the stream's buffer: a signal's act writes too, and a buffer takes no call within a call.
        left = text.encode(self._output.encoding, errors="replace")
        while left:
            left = left[os.write(self._output.fileno(), left) :]


@contextmanager
def screen(output: TextIO) -> Iterator[Screen]:
    """The other screen while the block runs. However it ends, the terminal is as it was."""
    output.flush()
    shown = Screen(output, wants_colours(output))
    acts: Mapping[signal.Signals, Callable[[int, FrameType | None], object]] = {
        signal.SIGWINCH: shown.wake,
        signal.SIGTSTP: shown.suspend,
    }
    before = {number: signal.signal(number, act) for number, act in acts.items()}
    try:
        shown.enter()
        yield shown
    finally:
        for number, former in before.items():
            signal.signal(number, former)
        shown.leave()
        shown.close()
