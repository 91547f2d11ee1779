"""nibble sweep: a table of schemes by corpora for one model."""

import argparse
import re
from pathlib import Path

from nibble_tools import arguments
from nibble_tools.failure import Failure
from nibble_tools.progress import Progress
from nibble_tools.server import connect

from nibble.v1 import common_pb2  # after the server's, which makes the stubs
from nibble_client import Client
from nibble_tools.schemes import PRESETS, Fields, Scheme, read_schemes
from nibble_tools.sweep_runner import Plan, Row, Runner, label
from nibble_tools.sweep_state import State
from nibble_tools.sweep_tables import write_page, write_tables


def corpus(text: str) -> common_pb2.CorpusRef:
    """NAME, or NAME:A:B for the texts A to B of a .jsonl."""
    found = re.fullmatch(r"([^:]+)(?::([1-9]\d*):([1-9]\d*))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME or NAME:A:B")
    name, first, last = found.groups()
    if first is None:
        return common_pb2.CorpusRef(name=name)
    return common_pb2.CorpusRef(name=name, first_text=int(first), last_text=int(last))


def parser() -> arguments.Parser:
    made = arguments.Parser(
        "nibble sweep",
        "Quantizes a model by many schemes, by jobs of the server, evaluates each on every corpus "
        "and writes the table as PREFIX.md, PREFIX.csv and PREFIX.html. What is found is kept in "
        "PREFIX.state.json: the same command goes on where it was stopped.\n\n"
        "presets:\n  paper-table-1  integers against floating point, W8A8 and W4A8, with LoRC\n"
        "  constraints    real scales, M1, and M2 by each rounding, with and without LoRC\n"
        "  lorc           ranks and metrics, and smaller groups of as many bits\n\n"
        "A file of --schemes is TOML; fields are those of nibble.v1.JobSpec:\n"
        "  [defaults]\n  activations = \"e4m3\"\n  group_size = 64\n\n"
        "  [[scheme]]\n  name = \"W16A16\"        # no fields: the model as it is\n\n"
        "  [[scheme]]\n  name = \"FP4 M2 LoRC\"\n  weights = \"e2m1\"\n  lorc_rank = 8",
        "  nibble sweep opt-1.3b --preset paper-table-1 --corpus wiki.txt --corpus ptb.txt \\\n"
        "    --corpus c4.txt --calibration c4-train.jsonl --output opt-1.3b-table-1\n"
        "  nibble sweep smollm2 --schemes mine.toml --corpus wiki.txt \\\n"
        "    --calibration c4.jsonl:1:700 --calibration-windows 32 --calibration-window 512 --compute f32")
    made.add_argument("model", metavar="MODEL", help="a model of the server")
    made.add_argument("--server", default="127.0.0.1:8500", help="host:port of nibbled")
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", choices=PRESETS)
    which.add_argument("--schemes", type=Path, metavar="FILE", help="a list of schemes, TOML")
    made.add_argument("--corpus", type=corpus, action="append", required=True, metavar="NAME[:A:B]",
                      help="a corpus of the server to evaluate on; may be repeated")
    made.add_argument("--calibration", type=corpus, metavar="NAME[:A:B]",
                      help="the corpus that GPTQ calibrates on")
    made.add_argument("--output", type=Path, metavar="PREFIX",
                      help="where to write; default MODEL-PRESET or MODEL-FILE")
    made.add_argument("--group-size", type=int, default=256, help="of the presets; default 256")
    made.add_argument("--calibration-windows", type=arguments.positive, help="default 128")
    made.add_argument("--calibration-window", type=arguments.positive, help="tokens; default 2048")
    made.add_argument("--window", type=arguments.positive, help="tokens to evaluate; default 2048")
    made.add_argument("--windows", type=arguments.positive, help="default all of the corpus")
    made.add_argument("--compute", choices=("bf16", "f32"), default="bf16",
                      help="arithmetic of what is not quantized; default bf16")
    made.add_argument("--keep", action="store_true", help="keep the quantized models")
    made.add_argument("--ahead", type=int, default=1, choices=range(9),
                      help="jobs queued while another is evaluated; default 1")
    return made


def choose_schemes(client: Client, options: argparse.Namespace, shared: Fields) -> list[Scheme]:
    if options.schemes is not None:
        return read_schemes(options.schemes)

    def bits(fields: Fields) -> float:
        estimate = client.estimate(model=options.model, output=f"{options.model[:80]}-estimate",
                                   **shared, **fields)
        return float(estimate.linear_bits_per_weight)
    return PRESETS[options.preset](options.group_size, bits)


def make_plan(client: Client, options: argparse.Namespace) -> Plan:
    shared: Fields = {"compute": options.compute}
    if options.calibration is not None:
        shared["corpus"] = options.calibration
        shared["windows"] = options.calibration_windows
        shared["window"] = options.calibration_window
    schemes = choose_schemes(client, options, shared)
    for scheme in schemes:
        calibrated = scheme.fields is not None and scheme.fields["weights"] != "none" and (
            scheme.fields.get("method", "gptq") != "rtn")
        if calibrated and options.calibration is None:
            raise Failure(f"--calibration: found none, expected a corpus for {scheme.name!r}")
    return Plan(options.model, schemes, options.corpus, shared,
                {"window": options.window, "windows": options.windows, "compute": options.compute},
                options.keep, options.ahead)


def main(words: list[str]) -> None:
    options = parser().parse_args(words)
    what = options.preset or options.schemes.stem
    prefix = options.output or Path(f"{options.model}-{what}")
    labels = [label(each) for each in options.corpus]
    if len(set(labels)) < len(labels):
        raise Failure(f"--corpus: found {', '.join(labels)}, expected different ones")

    title = f"{options.model}: {what}"

    def changed(rows: list[Row]) -> None:
        write_tables(prefix, title, rows, labels)

    state = State(prefix.with_name(prefix.name + ".state.json"))
    with connect(options.server) as client, Progress() as progress:
        runner = Runner(client, make_plan(client, options), state, progress, changed)
        try:
            runner.run()
        finally:
            write_page(prefix, title, runner.rows, labels)
    failed = [row.scheme.name for row in runner.rows if row.failure]
    if failed:
        raise Failure(f"{len(failed)} of {len(runner.rows)} schemes failed ({', '.join(failed)}); "
                      "the same command tries them again")
    print(prefix.with_name(prefix.name + ".md").read_text(encoding="utf-8"), end="")
