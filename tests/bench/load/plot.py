#!/usr/bin/env python3
"""Draws throughput against latency from what the load benches append with --json."""

import argparse
import json
import sys

EXAMPLES = """examples:
  plot.py load.jsonl --out load.png
  plot.py cpu.jsonl gpu.jsonl --out load.svg --title "SmolLM2-135M W4A8, 2 cores"
"""

LATENCIES = [("first_token_ms", "first token"), ("inter_token_ms", "inter-token")]


class PlotError(Exception):
    pass


def read_points(paths):
    points = []
    for path in paths:
        try:
            with open(path) as lines:
                for number, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    try:
                        points.append(json.loads(line))
                    except ValueError as error:
                        raise PlotError(f"{path}:{number}: not a line of JSON: {error}")
        except OSError as error:
            raise PlotError(f"{path}: {error.strerror}")
    if not points:
        raise PlotError("found no load, expected at least one line")
    return points


def draw_loads(axes, points, latency):
    """One mix: p50 as a line through the loads, and up to p99 as a bar."""
    curves = {}
    for point in points:
        arrival = "closed" if point["concurrency"] else "Poisson"
        curves.setdefault((point["model"], point["bench"], arrival), []).append(point)
    for (model, bench, arrival), curve in curves.items():
        curve.sort(key=lambda point: point["concurrency"] or point["rate"])
        x = [point["tokens_per_second"] for point in curve]
        p50 = [point[latency]["p50"] for point in curve]
        above = [point[latency]["p99"] - point[latency]["p50"] for point in curve]
        axes.errorbar(
            x,
            p50,
            yerr=[[0] * len(x), above],
            marker="o" if arrival == "closed" else "s",
            linestyle="-" if arrival == "closed" else ":",
            capsize=3,
            label=f"{model}, {bench}, {arrival}",
        )
        for point, at in zip(curve, zip(x, p50)):
            load = str(point["concurrency"] or f"{point['rate']:g}/s")
            axes.annotate(load, at, textcoords="offset points", xytext=(5, -11), fontsize=8)


def draw(points, out, title):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    mixes = list(dict.fromkeys(point["mix"] for point in points))
    figure, grid = pyplot.subplots(
        len(LATENCIES), len(mixes), figsize=(5 * len(mixes), 8), squeeze=False
    )
    for column, mix in enumerate(mixes):
        for row, (latency, name) in enumerate(LATENCIES):
            axes = grid[row][column]
            draw_loads(axes, [point for point in points if point["mix"] == mix], latency)
            axes.set_title(f"{mix}: {name}, p50 to p99", fontsize=10)
            axes.set_xlabel("output tokens a second")
            axes.set_ylabel("ms")
            axes.set_yscale("log")
            axes.grid(True, which="both", alpha=0.3)
    grid[0][0].legend(fontsize=8)
    if title:
        figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(out, dpi=100)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", nargs="+", help="files that --json named")
    parser.add_argument("--out", required=True, help=".png, .svg or .pdf")
    parser.add_argument("--title", default="", help="above the plots")
    arguments = parser.parse_args()
    try:
        draw(read_points(arguments.json), arguments.out, arguments.title)
    except (PlotError, KeyError, OSError, ValueError) as error:
        missing = "no field " if isinstance(error, KeyError) else ""
        print(f"plot.py: {missing}{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
