"""What a sweep has found so far, in a file that outlives it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nibble_tools.failure import Failure
from nibble_tools.page import write_file


@dataclass
class Quantized:
    """A scheme's model; of the model as it is, only its sizes."""

    linear_bits_per_weight: float
    model_bits_per_weight: float
    bytes: int
    seconds: float | None = None
    relative_error: float | None = None


@dataclass
class Made:
    """What stands on the server for a scheme, until it is removed."""

    model: str
    job: str


@dataclass
class Cell:
    """A scheme's perplexity on one corpus."""

    perplexity: float
    windows: int
    tokens: int
    seconds: float


def key_of(*parts: Any) -> str:
    """The same for equal parts: results are found again by what they are of."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class State:
    """Kept by what each entry is of, so that a file may serve sweeps that overlap."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.quantized: dict[str, Quantized] = {}
        self.cells: dict[str, Cell] = {}
        self.made: dict[str, Made] = {}
        if path.exists():
            self._read()

    def _read(self) -> None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            self.quantized = {key: Quantized(**each) for key, each in content["quantized"].items()}
            self.cells = {key: Cell(**each) for key, each in content["cells"].items()}
            self.made = {key: Made(**each) for key, each in content["made"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Failure(f"{self._path}: found {error!r}, expected a sweep's state; move it away "
                          "to begin anew") from error

    def save(self) -> None:
        content = {"quantized": self.quantized, "cells": self.cells, "made": self.made}
        write_file(self._path, json.dumps(content, default=asdict, indent=1))
