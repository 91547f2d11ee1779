"""Writes model.safetensors, or shards with an index, one tensor in memory at a time."""

import json
import math
import sys
from typing import Callable, NamedTuple

import numpy as np

from nibble_import.folder import ImportRefused, write_json

SHARD_BYTES = 4 << 30
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
METADATA = "__metadata__"  # the one key of a header that names no tensor


class Tensor(NamedTuple):
    """One tensor to write: `read` gives its values, row-major, of `dtype`'s width."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def bytes(self):
        return DTYPE_BYTES[self.dtype] * math.prod(self.shape)


def write_model(tensors, folder, shard_bytes=SHARD_BYTES):
    """Writes the tensors in the order given; a shard has at most `shard_bytes`, or one tensor."""
    shards = cut_into_shards(tensors, shard_bytes)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = ("model.safetensors" if len(shards) == 1
                else f"model-{number:05}-of-{len(shards):05}.safetensors")
        write_file(shard, folder / name)
        weight_map.update((tensor.name, name) for tensor in shard)
        megabytes = sum(tensor.bytes for tensor in shard) / 1e6
        print(f"import: {name}: {len(shard)} tensors, {megabytes:.1f} MB", file=sys.stderr)
    if len(shards) > 1:
        write_json(folder / "model.safetensors.index.json",
                   {"metadata": {"total_size": sum(tensor.bytes for tensor in tensors)},
                    "weight_map": weight_map})


def cut_into_shards(tensors, shard_bytes):
    shards, size = [[]], 0
    for tensor in tensors:
        if shards[-1] and size + tensor.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.bytes
    return shards


def write_file(tensors, path):
    """The format of https://github.com/huggingface/safetensors: header length, header, values."""
    header, end = {METADATA: {"format": "pt"}}, 0
    for tensor in tensors:
        if tensor.name in header:
            raise ImportRefused(f"tensor {tensor.name}: found the name taken, "
                                "expected one of its own")
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape),
                               "data_offsets": [end, end + tensor.bytes]}
        end += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            values = np.ascontiguousarray(tensor.read())
            if values.nbytes != tensor.bytes:
                raise ImportRefused(f"tensor {tensor.name}: found {values.nbytes} bytes, "
                                    f"expected {tensor.bytes}")
            file.write(values.reshape(-1).view(np.uint8))
