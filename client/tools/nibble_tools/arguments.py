"""Command lines as `nibble` has them: one sentence on a mistake, examples in --help."""

import argparse
from typing import NoReturn

from nibble_tools.failure import Failure


class Parser(argparse.ArgumentParser):
    def __init__(self, prog: str, description: str, examples: str) -> None:
        super().__init__(prog=prog, description=description, epilog=f"examples:\n{examples}",
                         formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise Failure(f"{message} (see {self.prog} --help)")


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from 1")
    return int(text)
