#!/usr/bin/env python3
"""The W4A8 linear beside its peers on one GPU, in one run, as a Markdown table.

Every figure is device time: microseconds of one product within a CUDA graph over weight copies that
rotate past the second-level cache, the median of five replays. Needs PyTorch with CUDA, and the
programs of the preset `cuda`. Humming is timed where its wheels can be imported:

  pip download --no-deps -d .peers humming-kernels==0.1.19 pyelftools
  unzip -d .peers/humming '.peers/humming*.whl'; unzip -d .peers '.peers/pyelftools*.whl'

example: tests/bench/gpu/bench.py --m 1,16,256,8192 --shapes 8192x8192 --out results.md
"""

import argparse
import dataclasses
import datetime
import json
import os
import re
import subprocess
import sys

import torch

SHAPES = "8192x8192,12288x4096,4096x4096,22016x4096,4096x11008,1280x8192,8192x3584"
TOKENS = "1,4,16,32,64,128,256,512,2048,8192"
COLD_BYTES = 200 << 20  # of weight copies: several times the second-level cache
DEVICE = "cuda:0"
FP8 = torch.float8_e4m3fn


@dataclasses.dataclass(frozen=True)
class Shape:
    rows: int
    cols: int

    def __str__(self):
        return f"{self.rows}x{self.cols}"


def copies(bytes_of_one):
    return max(2, min(24, -(-COLD_BYTES // bytes_of_one)))


def graph_microseconds(calls, seconds=0.02):
    """Of one of `calls`, replayed about `seconds` long."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()

    def replay(count):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(count):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) * 1e3 / count

    replay(1)
    count = max(1, min(20, int(seconds * 1e6 / replay(1))))
    return sorted(replay(count) for _ in range(5))[2] / len(calls)


class Bf16:
    """cuBLAS, bf16 x bf16."""

    def __init__(self, shape):
        self.weights = [
            torch.randn(shape.rows, shape.cols, device=DEVICE, dtype=torch.bfloat16)
            for _ in range(copies(2 * shape.rows * shape.cols))
        ]

    def time(self, tokens):
        x = torch.randn(tokens, self.weights[0].shape[1], device=DEVICE, dtype=torch.bfloat16)
        y = torch.empty(tokens, self.weights[0].shape[0], device=DEVICE, dtype=torch.bfloat16)
        return graph_microseconds([lambda w=w: torch.mm(x, w.t(), out=y) for w in self.weights])


class ScaledFp8:
    """torch._scaled_mm: cuBLASLt with one scale a tensor, its own kernel with one a row."""

    def __init__(self, shape, by_row, fast):
        self.by_row, self.fast = by_row, fast
        self.weights = [
            torch.randn(shape.rows, shape.cols, device=DEVICE).to(FP8)
            for _ in range(copies(shape.rows * shape.cols))
        ]

    def time(self, tokens):
        rows, cols = self.weights[0].shape
        x = torch.randn(tokens, cols, device=DEVICE).to(FP8)
        scale_x = torch.rand((tokens, 1) if self.by_row else (), device=DEVICE)
        scale_w = torch.rand((1, rows) if self.by_row else (), device=DEVICE)

        def call(w):
            return torch._scaled_mm(
                x, w.t(), scale_a=scale_x, scale_b=scale_w, out_dtype=torch.bfloat16,
                use_fast_accum=self.fast)

        return graph_microseconds([lambda w=w: call(w) for w in self.weights])


class Humming:
    """humming-kernels, E2M1 x E4M3, bf16 scales of groups of 128."""

    def __init__(self, shape):
        from humming.layer import HummingLayer
        from humming.testing.data import random_fill_tensor

        self.layers = []
        for _ in range(copies(shape.rows * shape.cols // 2)):
            layer = HummingLayer(
                shape_n=shape.rows, shape_k=shape.cols, num_experts=0,
                weight_config={"dtype": "float4e2m1", "group_size": 128, "scale_dtype": "bfloat16"},
                input_config={"dtype": "float8e4m3", "group_size": 0},
                torch_dtype=torch.bfloat16).to(DEVICE)
            for parameter in layer.parameters():
                random_fill_tensor(parameter)
            layer.transform()
            self.layers.append(layer)
        self.cols = shape.cols

    def time(self, tokens):
        from humming.forward import may_quant_input
        from humming.tune import get_heuristics_config

        first = self.layers[0]
        x = torch.randn(tokens, self.cols, device=DEVICE, dtype=torch.bfloat16)
        x, scale = may_quant_input(first.humming_config, x)
        tuning = get_heuristics_config(first.humming_config, use_f16_accum=False)
        compute = json.dumps({"use_f16_accum": False, "gemm_type": "dense"})

        def call(layer):
            return layer(
                inputs=x, input_scale=scale, compute_config=compute, tuning_config=tuning)

        return graph_microseconds([lambda layer=layer: call(layer) for layer in self.layers])


PEERS = {
    "bf16": Bf16,
    "fp8": lambda shape: ScaledFp8(shape, by_row=False, fast=False),
    "fp8-fast": lambda shape: ScaledFp8(shape, by_row=False, fast=True),
    "fp8-row": lambda shape: ScaledFp8(shape, by_row=True, fast=True),
    "humming": Humming,
}


def time_peer(name, shape, tokens):
    """Microseconds by number of tokens; a message where the peer has none."""
    try:
        peer = PEERS[name](shape)
    except ImportError as error:
        print(f"bench: {name} is not timed: {error}; see --help", file=sys.stderr)
        return {}
    times = {}
    for count in tokens:
        try:
            times[count] = peer.time(count)
        except Exception as error:  # a peer's own limit, whatever it raises
            print(f"bench: {name} {shape} at {count} tokens: {error}", file=sys.stderr)
    del peer
    torch.cuda.empty_cache()
    return times


def output_of(command):
    return subprocess.run(
        list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout


def time_ours(programs, shape, tokens, group, fast):
    """(microseconds by number of tokens, bytes of the weights as they lie in memory)."""
    command = [
        os.path.join(programs, "linear_bench"), "--shapes", shape, "--group", group,
        "--m", ",".join(map(str, tokens)), "--fast", int(fast)]
    text = output_of(command)
    weights = re.search(r"group -?\d+: (\d+) B of weights", text)
    rows = re.findall(r"M (\d+) rank 0 \w+: ([\d.]+) us", text)
    if weights is None or [int(count) for count, _ in rows] != tokens:
        raise RuntimeError(f"{command}: found unexpected output:\n{text}")
    return {int(count): float(us) for count, us in rows}, int(weights[1])


def time_read(programs, size):
    """Microseconds of merely reading `size` cold bytes."""
    text = output_of([os.path.join(programs, "read_floor"), "--bytes", size])
    return float(re.search(r"B: ([\d.]+) us", text)[1])


def gpu_clocks():
    query = "clocks.sm,clocks.mem,clocks.max.sm,power.limit"
    text = subprocess.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "-i", "0"],
        check=True, capture_output=True, text=True).stdout
    sm, memory, most, power = (field.strip() for field in text.split(","))
    return f"clocks at the end: SM {sm} (at most {most}), memory {memory}; power limit {power}"


def rate(shape, tokens, us):
    """What bounds the product: the 4-bit weights' bytes, or its operations."""
    if tokens <= 64:
        return f"{shape.rows * shape.cols / 2 / us / 1e6:.2f} TB/s"
    return f"{2 * tokens * shape.rows * shape.cols / us / 1e6:.0f} TFLOP/s"


def table(shape, tokens, floor, ours, peers):
    """Markdown lines: microseconds, and each peer's time over ours of the same promise."""
    names = [name for name in peers if peers[name]]
    yield f"### {shape} (read floor {floor:.2f} us)"
    yield ""
    yield "| M | nibble us | rate | x read floor | nibble fast us | " + " | ".join(
        f"{name} us (x)" for name in names) + " |"
    yield "|" + "---|" * (5 + len(names))
    for count in tokens:
        promoted = ours[False][count]
        fast = ours[True].get(count)
        cells = [
            str(count), f"{promoted:.2f}", rate(shape, count, promoted), f"{promoted / floor:.2f}",
            "" if fast is None else f"{fast:.2f}"]
        for name in names:
            time = peers[name].get(count)
            mine = fast if fast is not None and name in ("fp8-fast", "fp8-row") else promoted
            cells.append("" if time is None else f"{time:.2f} ({time / mine:.2f})")
        yield "| " + " | ".join(cells) + " |"
    yield ""


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=SHAPES, help="ROWSxCOLS,... (%(default)s)")
    parser.add_argument("--m", default=TOKENS, help="numbers of tokens (%(default)s)")
    parser.add_argument("--group", type=int, default=128, help="columns per scale (%(default)s)")
    parser.add_argument("--peers", default=",".join(PEERS), help="(%(default)s)")
    parser.add_argument(
        "--programs", default="build/cuda/bin",
        help="where linear_bench and read_floor are (%(default)s)")
    parser.add_argument("--out", help="Markdown file to write; printed as well")
    arguments = parser.parse_args()
    unknown = set(filter(None, arguments.peers.split(","))) - set(PEERS)
    if unknown:
        parser.error(f"--peers: found {', '.join(unknown)}, expected some of {', '.join(PEERS)}")
    return arguments


def main():
    arguments = parse_arguments()
    sys.path[:0] = [os.path.abspath(".peers/humming"), os.path.abspath(".peers")]
    tokens = [int(count) for count in arguments.m.split(",")]
    lines = [
        "# Linears", "",
        f"{datetime.date.today()}, {torch.cuda.get_device_name(0)}, PyTorch {torch.__version__}; "
        f"E2M1, M2, group {arguments.group}.", ""]
    print("\n".join(lines), flush=True)
    for text in arguments.shapes.split(","):
        shape = Shape(*map(int, text.split("x")))
        wide = [count for count in tokens if count > 128]
        ours = {}
        programs, group = arguments.programs, arguments.group
        ours[False], size = time_ours(programs, shape, tokens, group, False)
        ours[True] = time_ours(programs, shape, wide, group, True)[0] if wide else {}
        floor = time_read(programs, size)
        names = filter(None, arguments.peers.split(","))
        peers = {name: time_peer(name, shape, tokens) for name in names}
        rows = list(table(shape, tokens, floor, ours, peers))
        print("\n".join(rows), flush=True)
        lines += rows
    lines.append(gpu_clocks())
    print(lines[-1])
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
