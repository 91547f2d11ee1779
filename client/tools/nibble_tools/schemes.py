"""The quantization schemes of a sweep: presets, and lists from a file."""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nibble.v1 import quantization_pb2
from nibble_client import JobFields
from nibble_client.fields import fill
from nibble_tools.failure import Failure

Fields = dict[str, Any]

LORC_RANK = 8  # the paper's

# What a sweep sets itself, so that all schemes share it.
SHARED = {"model", "model_version", "output", "corpus", "windows", "window", "compute", "priority",
          "labels"}


@dataclass(frozen=True)
class Scheme:
    name: str
    # Fields of nibble.v1.JobSpec; None: the model as it is.
    fields: Fields | None


AS_IT_IS = Scheme("W16A16", None)

# Bits per weight of a spec, asked of the server.
Bits = Callable[[Fields], float]


def paper_table_1(group_size: int, _bits: Bits) -> list[Scheme]:
    """Weights and activations in integers or floating point (ZeroQuant-FP's main table)."""
    integer, real = {"weights_asymmetric": True}, {}
    weights = {8: (("INT", "int8", integer), ("FP", "e4m3", real)),
               4: (("INT", "int4", integer), ("FP", "e2m1", real))}
    activations = (("INT", "int8"), ("FP", "e4m3"))
    schemes = [AS_IT_IS]
    for bits, rank in ((8, 0), (4, 0), (4, LORC_RANK)):
        for weight_kind, weight, more in weights[bits]:
            for kind, activation in activations:
                if weight_kind == "FP" and kind == "INT":
                    continue  # the paper has INT-INT, INT-FP and FP-FP
                name = f"W{bits}A8 {weight_kind}-{kind}" + (" LoRC" if rank else "")
                schemes.append(Scheme(name, {
                    **more, "weights": weight, "activations": activation, "scale": "none",
                    "group_size": group_size, "act_order": False, "lorc_rank": rank}))
    return schemes


def _fp4(group_size: int, **fields: Any) -> Fields:
    """W4A8 in E2M1 and E4M3."""
    return {"weights": "e2m1", "activations": "e4m3", "group_size": group_size, "act_order": False,
            **fields}


def constraints(group_size: int, _bits: Bits) -> list[Scheme]:
    """What powers of two cost: real scales, M1, and M2 by each of its roundings."""
    scales = [("real scales", {"scale": "none"}), ("M1", {"scale": "m1"})]
    scales += [(f"M2 {rounding}", {"scale": "m2", "m2_rounding": rounding})
               for rounding in ("ceil", "floor", "mse")]
    return [AS_IT_IS] + [
        Scheme(name + (f", LoRC {rank}" if rank else ""),
               _fp4(group_size, lorc_rank=rank, **scale))
        for rank in (0, LORC_RANK) for name, scale in scales]


def lorc(group_size: int, bits: Bits) -> list[Scheme]:
    """LoRC by rank and metric, and against smaller groups of the same number of bits."""
    plain = [(rank, metric) for metric in ("weight", "input") for rank in (8, 16, 32)]
    schemes = [AS_IT_IS, Scheme(f"groups of {group_size}", _fp4(group_size, scale="m2"))]
    schemes += [Scheme(f"LoRC {rank}, {metric} metric",
                       _fp4(group_size, scale="m2", lorc_rank=rank, lorc_metric=metric))
                for rank, metric in plain]
    without = bits(_fp4(group_size, scale="m2"))
    per_rank = bits(_fp4(group_size, scale="m2", lorc_rank=1)) - without
    for smaller in (128, 64, 32, 16):
        fields = _fp4(smaller, scale="m2")
        rank = round((bits(fields) - without) / per_rank) if smaller < group_size else 0
        if rank < 1:
            continue  # even rank 1 takes more than twice as many bits
        schemes.append(Scheme(f"groups of {smaller}", fields))
        schemes.append(Scheme(f"LoRC {rank}, bits as groups of {smaller}",
                              _fp4(group_size, scale="m2", lorc_rank=rank)))
    return schemes


PRESETS: dict[str, Callable[[int, Bits], list[Scheme]]] = {
    "paper-table-1": paper_table_1, "constraints": constraints, "lorc": lorc}


def read_schemes(path: Path) -> list[Scheme]:
    """From TOML: [[scheme]] tables with a name and fields of JobSpec; [defaults] is in each."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Failure(f"{path}: found {error}, expected TOML") from error
    defaults, tables = content.pop("defaults", {}), content.pop("scheme", [])
    if (content or not isinstance(tables, list) or not tables or not isinstance(defaults, dict)
            or not all(isinstance(table, dict) for table in tables)):
        raise Failure(f"{path}: found {', '.join(content) or 'no scheme'}, expected [[scheme]] "
                      "tables and [defaults]")
    schemes = [_scheme(path, dict(table), defaults) for table in tables]
    names = [scheme.name for scheme in schemes]
    for name in names:
        if names.count(name) > 1:
            raise Failure(f"{path}: found two schemes {name!r}, expected different names")
    return schemes


def _scheme(path: Path, table: Fields, defaults: Fields) -> Scheme:
    name = table.pop("name", None)
    if not isinstance(name, str) or not name:
        raise Failure(f"{path}: found a scheme without a name, expected name = \"...\"")
    if not table:
        return Scheme(name, None)
    fields = {**defaults, **table}
    known = set(JobFields.__annotations__) - SHARED
    for field in fields:
        if field not in known:
            raise Failure(f"{path}, scheme {name!r}: found {field}, expected one of "
                          f"{', '.join(sorted(known))}")
    for field in ("weights", "activations"):
        if field not in fields:
            raise Failure(f"{path}, scheme {name!r}: found no {field}, expected a format, or none")
    try:
        fill(quantization_pb2.JobSpec, fields)
    except (TypeError, ValueError) as error:
        raise Failure(f"{path}, scheme {name!r}: {error}") from error
    return Scheme(name, fields)
