"""Writes a model folder whole or not at all, and says what was wrong in one sentence."""

import contextlib
import json
import os
import shutil
from pathlib import Path


class ImportRefused(Exception):
    """The input cannot be imported; the message says what was found and what was expected."""


@contextlib.contextmanager
def staged(out_dir):
    """Yields an empty folder beside `out_dir`, renamed to it at the end, removed on any error."""
    out_dir = Path(out_dir).resolve()
    if out_dir.exists():
        raise ImportRefused(f"{out_dir}: exists already, expected a new name")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    staging = out_dir.parent / f".{out_dir.name}.import-{os.getpid()}"
    staging.mkdir()
    try:
        yield staging
        os.rename(staging, out_dir)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def copy_file(source, target):
    """Copies what `source` holds; a hub cache's links are followed."""
    shutil.copyfile(source, target)


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_json(path):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ImportRefused(f"{path}: not found, expected the file in the folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ImportRefused(f"{path}: {error}, expected a JSON file") from None
    if not isinstance(value, dict):
        raise ImportRefused(f"{path}: found {type(value).__name__}, expected a JSON object")
    return value
