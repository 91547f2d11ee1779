"""nibble report: what a job did, or what a model is, as one HTML file."""

import sys
from pathlib import Path

import grpc
from google.protobuf import json_format

from nibble_tools import arguments
from nibble_tools.failure import Failure
from nibble_tools.page import page, write_file
from nibble_tools.progress import Progress
from nibble_tools.server import connect

from nibble.v1 import evaluation_pb2  # after the server's, which makes the stubs
from nibble_client import Client, NibbleError
from nibble_tools import profile_section, quantization_section
from nibble_tools.subject import Subject, of_job, of_model


def parser() -> arguments.Parser:
    made = arguments.Parser(
        "nibble report",
        "Draws the report of a job or a model: spec, sizes, errors of every layer and linear, time "
        "and memory; with a profile also what goes into the linears.",
        "  nibble report job-f7339393159987dc --html report.html\n"
        "  nibble report smollm2-w4a8 --html report.html --profile c4.jsonl --windows 4\n"
        "  nibble evaluate profile --model smollm2 --corpus c4.jsonl --json > profile.jsonl\n"
        "  nibble report smollm2 --html report.html --profile-json profile.jsonl")
    made.add_argument("subject", metavar="JOB|MODEL", help="a job's id, or a model's name")
    made.add_argument("--server", default="127.0.0.1:8500", help="host:port of nibbled")
    made.add_argument("--html", required=True, type=Path, metavar="FILE", help="the file to write")
    profile = made.add_mutually_exclusive_group()
    profile.add_argument("--profile", metavar="CORPUS",
                         help="profile the activations on this corpus (a job's: of its source)")
    profile.add_argument("--profile-json", type=Path, metavar="FILE",
                         help="draw a profile that `nibble evaluate profile --json` has printed")
    made.add_argument("--windows", type=arguments.positive, help="windows to profile; default 16")
    made.add_argument("--window", type=arguments.positive,
                      help="tokens of a window; default 2048, or the context where that is less")
    made.add_argument("--token", type=int, default=0,
                      help="whose values formats place, counted through the windows; default 0")
    made.add_argument("--compute", choices=("bf16", "f32"), default="bf16",
                      help="arithmetic of the profile; default bf16")
    return made


def find_subject(client: Client, name: str) -> Subject:
    try:
        return of_job(client.job(name, include_layers=True))
    except NibbleError as error:
        if error.code is not grpc.StatusCode.NOT_FOUND:
            raise
    try:
        return of_model(client.model(name, include_report=True))
    except NibbleError as error:
        if error.code not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT):
            raise
        raise Failure(f"JOB|MODEL: found {name!r}, expected a job or a model of the "
                      "server") from error


def run_profile(client: Client, model: str,
                options: object) -> list[evaluation_pb2.ActivationProfile]:
    profile = client.profile_activations(
        model, options.profile, windows=options.windows, window=options.window,
        compute=options.compute, placement_token=options.token)
    with Progress() as progress:
        for response in profile:
            if response.layers_total:
                progress.show(f"profile of {model}: layer {response.layers_done} of "
                              f"{response.layers_total}")
    return profile.profiles


def read_profile(path: Path) -> list[evaluation_pb2.ActivationProfile]:
    profiles, done = [], False
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Failure(f"{path}: found {error}, expected UTF-8 text") from error
    for number, line in enumerate(text.splitlines(), 1):
        try:
            response = json_format.Parse(line, evaluation_pb2.ProfileActivationsResponse())
        except json_format.ParseError as error:
            raise Failure(f"{path} line {number}: found {error}, expected a line of `nibble "
                          "evaluate profile --json`") from error
        done = response.done
        if response.HasField("profile"):
            profiles.append(response.profile)
    if not done:
        raise Failure(f"{path}: found a profile without its end, expected all of it")
    return profiles


def main(words: list[str]) -> None:
    options = parser().parse_args(words)
    with connect(options.server) as client:
        subject = find_subject(client, options.subject)
        profiles = []
        if options.profile is not None:
            profiles = run_profile(client, subject.profiled, options)
        elif options.profile_json is not None:
            profiles = read_profile(options.profile_json)
    body = quantization_section.section(subject)
    if profiles:
        body += profile_section.section(profiles)
    write_file(options.html, page(subject.title, body))
    print(f"wrote {options.html}", file=sys.stdout)
