"""Writes safetensors files a tensor at a time, in shards with an index."""

import json
import struct
import sys

from nibble_import.folder import write_json

SHARD_BYTES = 4 << 30
INDEX = "model.safetensors.index.json"


def write_shards(folder, tensors, read):
    """`tensors`: name -> (safetensors' type, shape, bytes); `read(name)`: its array."""
    shards = cut(tensors)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file_name = ("model.safetensors" if len(shards) == 1
                     else f"model-{number:05}-of-{len(shards):05}.safetensors")
        write_shard(folder / file_name, {name: tensors[name] for name in shard}, read)
        weight_map.update((name, file_name) for name in shard)
        print(f"import: {file_name}, {number} of {len(shards)}", file=sys.stderr)
    if len(shards) > 1:
        total = sum(size for _, _, size in tensors.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def cut(tensors):
    shards, size = [[]], 0
    for name, (_, _, length) in tensors.items():
        if shards[-1] and size + length > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += length
    return shards


def write_shard(path, tensors, read):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in tensors:
            file.write(read(name).tobytes())
