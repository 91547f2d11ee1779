"""Progress on stderr: a line that is redrawn on a terminal, plain lines elsewhere."""

import sys


class Progress:
    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._shown = ""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._live and self._shown:
            print(file=sys.stderr)

    def show(self, text: str) -> None:
        """What is being done; elsewhere than on a terminal only when it has changed."""
        if self._live:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        elif text != self._shown:
            print(text, file=sys.stderr, flush=True)
        self._shown = text

    def note(self, text: str) -> None:
        """Something that stays to be read."""
        print(f"\r\033[K{text}" if self._live else text, file=sys.stderr, flush=True)
        self._shown = ""
