"""A sweep's table as Markdown, CSV and HTML."""

import csv
import io
import json
from pathlib import Path

from nibble_tools.figures import COLOURS, MARKERS, figure, png
from nibble_tools.page import note, page, picture, table, write_file
from nibble_tools.subject import human_bytes
from nibble_tools.sweep_runner import Row


def write_tables(prefix: Path, title: str, rows: list[Row], corpora: list[str]) -> None:
    """PREFIX.md and PREFIX.csv."""
    table_file = f"# {title}\n\n{markdown(*text_table(rows, corpora))}"
    table_file += "".join(f"\n{failure}\n" for failure in failures(rows))
    write_file(prefix.with_name(prefix.name + ".md"), table_file)
    write_file(prefix.with_name(prefix.name + ".csv"), csv_table(rows, corpora))


def write_page(prefix: Path, title: str, rows: list[Row], corpora: list[str]) -> None:
    """PREFIX.html, with a picture."""
    body = table(*text_table(rows, corpora)) + "".join(map(note, failures(rows)))
    if any(row.cells for row in rows):
        body += picture(perplexity_figure(rows, corpora), "perplexity of every scheme")
    write_file(prefix.with_name(prefix.name + ".html"), page(title, body))


def text_table(rows: list[Row], corpora: list[str]) -> tuple[list[str], list[list[str]]]:
    """As people read it; "-" is what is not known yet."""
    several = len(corpora) > 1
    head = ["scheme", "bits per weight", "size", *corpora, *(["mean"] if several else [])]
    cells = []
    for row in rows:
        sizes = (["-", "-"] if row.quantized is None else
                 [f"{row.quantized.linear_bits_per_weight:.3f}", human_bytes(row.quantized.bytes)])
        found = [row.cells[each].perplexity for each in corpora if each in row.cells]
        unknown = "failed" if row.failure else "-"
        perplexities = [f"{row.cells[each].perplexity:.3f}" if each in row.cells else unknown
                        for each in corpora]
        whole = len(found) == len(corpora)
        mean = [f"{sum(found) / len(found):.3f}" if whole else "-"] if several else []
        cells.append([row.scheme.name, *sizes, *perplexities, *mean])
    return head, cells


def failures(rows: list[Row]) -> list[str]:
    return [f"{row.scheme.name} failed: {row.failure}" for row in rows if row.failure]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    return line(head) + line(["---"] + ["---:"] * (len(head) - 1)) + "".join(map(line, rows))


def csv_table(rows: list[Row], corpora: list[str]) -> str:
    """With every figure unrounded, and each scheme's spec."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scheme", "linear_bits_per_weight", "model_bits_per_weight", "bytes",
                     "job_seconds", "mean_output_error",
                     *(f"perplexity {each}" for each in corpora), "failure", "spec"])
    for row in rows:
        made = row.quantized
        sizes = [""] * 5 if made is None else [
            made.linear_bits_per_weight, made.model_bits_per_weight, made.bytes, made.seconds,
            made.relative_error]
        perplexities = [row.cells[each].perplexity if each in row.cells else "" for each in corpora]
        spec = "" if row.scheme.fields is None else json.dumps(row.scheme.fields, sort_keys=True)
        writer.writerow([row.scheme.name, *sizes, *perplexities, row.failure, spec])
    return text.getvalue()


def perplexity_figure(rows: list[Row], corpora: list[str]) -> bytes:
    """A panel for each corpus, schemes downwards."""
    made, axes = figure(1, len(corpora), 0.9 + 0.27 * len(rows))
    names = [row.scheme.name for row in rows]
    for index, (axis, corpus) in enumerate(zip(axes[0], corpora)):
        found = [(row.cells[corpus].perplexity, place) for place, row in enumerate(rows)
                 if corpus in row.cells]
        if found:
            axis.scatter(*zip(*found), color=COLOURS[4], marker=MARKERS[0], s=26)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_yticks(range(len(rows)), names if index == 0 else [""] * len(rows))
        axis.set_title(corpus)
        axis.set_xlabel("perplexity")
        axis.locator_params(axis="x", nbins=5)
    return png(made)
