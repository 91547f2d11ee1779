"""nibble corpora prepare: evaluation texts from a user's own copies, as the papers cut them."""

import argparse
import gzip
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from nibble_tools import arguments
from nibble_tools.failure import Failure
from nibble_tools.page import write_file

# How many texts of C4's first validation file GPTQ takes.
C4_TEXTS = 1100


def read_rows(path: Path, fields: tuple[str, ...]) -> Iterator[str]:
    """The lines of a text without their ends, or a field of each JSON object; .gz is unpacked."""
    name = path.name.removesuffix(".gz")
    open_file = gzip.open if path.name.endswith(".gz") else open
    try:
        with open_file(path, "rt", encoding="utf-8") as file:
            if name.endswith((".json", ".jsonl")):
                yield from _objects(path, file, fields)
            else:
                yield from (line.removesuffix("\n") for line in file)
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise Failure(f"{path}: found {error}, expected UTF-8 text") from error


def _objects(path: Path, file: Iterable[str], fields: tuple[str, ...]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise Failure(f"{path} line {number}: found {error}, expected a JSON object on each "
                          "line") from error
        found = [entry[name] for name in fields if name in entry] if isinstance(entry, dict) else []
        if not found or not isinstance(found[0], str):
            raise Failure(f"{path} line {number}: found no text, expected an object with "
                          f"{' or '.join(map(repr, fields))}")
        yield found[0]


def wikitext(paths: list[Path]) -> str:
    """The dataset's rows joined by two newlines.

    A row is a line with its end, an empty string where the line is blank: as the dataset has them,
    so that a line that is not blank is followed by three newlines.
    """
    def rows() -> Iterator[str]:
        for path in paths:
            whole = ".json" in path.name
            for row in read_rows(path, ("text",)):
                yield row if whole or not row.strip() else row + "\n"
    return "\n\n".join(row if row.strip() else "" for row in rows())


def ptb(paths: list[Path]) -> str:
    """The stripped lines joined by one space."""
    return " ".join(row.strip() for path in paths for row in read_rows(path, ("sentence", "text")))


def c4(paths: list[Path]) -> str:
    """The first texts, as JSON lines: nibble joins them by one space, as the recipe does."""
    texts = list(islice((row for path in paths for row in read_rows(path, ("text",))), C4_TEXTS))
    if len(texts) < C4_TEXTS:
        raise Failure(f"found {len(texts)} texts, expected at least {C4_TEXTS}, those of "
                      "c4-validation.00000-of-00008.json.gz")
    lines = io.StringIO()
    for text in texts:
        lines.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return lines.getvalue()


RECIPES: dict[str, tuple[Callable[[list[Path]], str], str, str]] = {
    "wikitext2-raw": (wikitext, "wikitext2-raw.txt", "wiki.test.raw, or its rows as JSON lines"),
    "ptb": (ptb, "ptb.txt", "ptb.test.txt, or its rows as JSON lines"),
    "c4": (c4, "c4.jsonl", "c4-validation.00000-of-00008.json.gz")}


def parser() -> arguments.Parser:
    made = arguments.Parser(
        "nibble corpora prepare",
        "Makes the texts on which GPTQ, ZeroQuant and others report perplexity, from your own "
        "copies of the datasets:\n"
        "  wikitext2-raw  wiki.test.raw: the rows joined by two newlines\n"
        "  ptb            ptb.test.txt: the stripped lines joined by one space\n"
        f"  c4             c4-validation.00000-of-00008.json.gz: the first {C4_TEXTS} texts joined "
        "by one space;\n                 evaluate it with --windows 256\n\n"
        "Inputs are .txt (or any text of lines) and .json or .jsonl with one object a line and the "
        "dataset's\nfield (\"text\", of PTB \"sentence\"), all of them also as .gz. Parquet is not "
        "read.",
        "  nibble corpora prepare wikitext2-raw wikitext-2-raw/wiki.test.raw\n"
        "  nibble corpora prepare c4 en/c4-validation.00000-of-00008.json.gz --output c4.jsonl\n"
        "  nibble corpora push wikitext2-raw.txt")
    made.add_argument("recipe", choices=RECIPES)
    made.add_argument("inputs", type=Path, nargs="+", metavar="INPUT", help="in their order")
    made.add_argument("--output", type=Path, metavar="FILE",
                      help="the corpus to write; default RECIPE.txt, of c4 c4.jsonl")
    return made


def output_of(options: argparse.Namespace) -> Path:
    default = Path(RECIPES[options.recipe][1])
    output: Path = options.output or default
    if output.suffix != default.suffix:
        raise Failure(f"--output: found {output}, expected a name that ends in {default.suffix}")
    if output.exists():
        raise Failure(f"--output: found {output}, expected a new file")
    return output


def main(words: list[str]) -> None:
    options = parser().parse_args(words)
    output = output_of(options)
    make, _, expected = RECIPES[options.recipe]
    text = make(options.inputs)
    if not text.strip():
        raise Failure(f"INPUT: found no text, expected {expected}")
    write_file(output, text)
    print(f"wrote {output}, {len(text.encode()):,} bytes", file=sys.stdout)
