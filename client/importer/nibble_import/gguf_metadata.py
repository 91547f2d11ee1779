"""The key-value pairs of a GGUF file, each held against what its reader expects of it."""

import math
from typing import Any, Callable, NamedTuple

from nibble_import.folder import ImportRefused


class Kind(NamedTuple):
    """What a value has to be; `name` is how a refusal calls it."""

    name: str
    holds: Callable[[Any], bool]


def list_of(kind, name):
    return Kind(name, lambda values: isinstance(values, list) and all(map(kind.holds, values)))


COUNT = Kind("a count", lambda value: type(value) is int and value >= 0)
NUMBER = Kind("a finite number", lambda value: type(value) in (int, float) and math.isfinite(value))
FLAG = Kind("true or false", lambda value: type(value) is bool)
TEXT = Kind("a text", lambda value: type(value) is str)
COUNTS = list_of(COUNT, "a list of counts")
NUMBERS = list_of(Kind("", lambda value: type(value) in (int, float)), "a list of numbers")
TEXTS = list_of(TEXT, "a list of texts")


class Metadata:
    """Every read raises ImportRefused for a value that is not of its kind."""

    def __init__(self, reader, path):
        self.fields = reader.fields
        self.path = path

    def get(self, key, kind, default=None):
        if key not in self.fields:
            return default
        try:
            value = self.fields[key].contents()
        except UnicodeDecodeError as error:
            raise ImportRefused(f"{self.path}: {key}: {error}, expected UTF-8") from None
        if kind.holds(value):
            return value
        found = f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:80]
        raise ImportRefused(f"{self.path}: {key} is {found}, expected {kind.name}")

    def need(self, key, kind):
        if key not in self.fields:
            raise ImportRefused(f"{self.path}: no metadata {key}, expected one")
        return self.get(key, kind)

    def token_id(self, name):
        """The id of the special token that GGUF calls `name`; None without one."""
        key = f"tokenizer.ggml.{name}_token_id"
        index = self.get(key, COUNT)
        vocab = len(self.need("tokenizer.ggml.tokens", TEXTS))
        if index is not None and index >= vocab:
            raise ImportRefused(f"{self.path}: {key} is {index}, expected less than {vocab}")
        return index
