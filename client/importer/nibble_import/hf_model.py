"""Brings a Hugging Face folder or a snapshot of a hub cache: what nibble reads of it, checked first.

Safetensors are copied; PyTorch's .bin becomes safetensors, slow tokenizers a tokenizer.json.
"""

import contextlib
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open

from nibble_import.folder import ImportRefused, read_json, staged
from nibble_import.hub_cache import checkpoint_folder
from nibble_import.safetensors_writer import INDEX, write_shards
from nibble_import.slow_tokenizer import write_tokenizer
from nibble_import.torch_file import TorchFile

SINGLE = "model.safetensors"
TORCH_INDEX = "pytorch_model.bin.index.json"
TORCH_SINGLE = "pytorch_model.bin"
OPTIONAL = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json",
            "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "LICENSE",
            "LICENSE.txt", "LICENSE.md", "README.md")
MODEL_TYPES = ("llama", "opt")


def import_hf(source, out_dir):
    """Raises ImportRefused when the folder is not one that nibble can read."""
    source = checkpoint_folder(source)
    config = read_json(source / "config.json")
    if config.get("model_type") not in MODEL_TYPES:
        raise ImportRefused(f"{source}/config.json: model_type is {config.get('model_type')}, "
                            f"expected {' or '.join(MODEL_TYPES)}")
    check_tokenizer(source)
    weights = weight_files(source)
    files = ["config.json", *weights]
    files += [name for name in OPTIONAL if (source / name).is_file()]
    with staged(out_dir) as folder:
        for name in files:
            shutil.copyfile(source / name, folder / name)
        if not weights:
            convert_torch(source, config, folder)
        if not (folder / "tokenizer.json").exists() and not (folder / "tokenizer.model").exists():
            write_tokenizer(source, config, folder)


def check_tokenizer(source):
    if (source / "tokenizer.json").is_file():
        read_json(source / "tokenizer.json")
        return
    slow = all((source / name).is_file() for name in ("vocab.json", "merges.txt"))
    if not slow and not (source / "tokenizer.model").is_file():
        raise ImportRefused(f"{source}: no tokenizer, expected tokenizer.json, tokenizer.model, or "
                            "vocab.json and merges.txt")


def convert_torch(source, config, folder):
    """PyTorch's files as safetensors, types and shapes unchanged."""
    with contextlib.ExitStack() as opened:
        places = {}  # name -> its file
        for path in torch_files(source):
            file = opened.enter_context(contextlib.closing(TorchFile(path)))
            places.update((name, file) for name in file.tensors if is_read(name, config))
        if (source / TORCH_INDEX).is_file():
            absent = sorted(name for name in read_weight_map(source / TORCH_INDEX)
                            if is_read(name, config) and name not in places)
            if absent:
                raise ImportRefused(f"{source}: no tensor {absent[0]}, expected by the index")
        tensors = {}
        for name, file in places.items():
            tensor = file.tensors[name]
            size = tensor.storage.width
            for length in tensor.shape:
                size *= length
            tensors[name] = (tensor.storage.dtype, tensor.shape, size)
        write_shards(folder, tensors, lambda name: places[name].read(name))


def is_read(name, config):
    """A tied head is the embedding, and rotary frequencies are made anew."""
    tied = config.get("tie_word_embeddings", config["model_type"] == "opt")
    return not (name == "lm_head.weight" and tied) and not name.endswith("rotary_emb.inv_freq")


def torch_files(source):
    if (source / TORCH_INDEX).is_file():
        return [source / name for name in sorted(set(read_weight_map(source / TORCH_INDEX).values()))]
    if (source / TORCH_SINGLE).is_file():
        return [source / TORCH_SINGLE]
    raise ImportRefused(f"{source}: no weights, expected {SINGLE}, {INDEX}, {TORCH_SINGLE} or "
                        f"{TORCH_INDEX}")


def read_weight_map(index):
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ImportRefused(f"{index}: no weight_map, expected one")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ImportRefused(f"{index}: shard {shard}, expected a plain file name")
    return weight_map


def weight_files(source):
    """Names of the safetensors files, index first; each opens and holds what the index says."""
    if (source / INDEX).is_file():
        weight_map = read_weight_map(source / INDEX)
        shards = sorted(set(weight_map.values()))
        for shard in shards:
            wanted = {name for name, file in weight_map.items() if file == shard}
            absent = sorted(wanted - tensor_names(source / shard))
            if absent:
                raise ImportRefused(f"{source / shard}: no tensor {absent[0]}, expected by the index")
        return [INDEX, *shards]
    if (source / SINGLE).is_file():
        tensor_names(source / SINGLE)
        return [SINGLE]
    return []


def tensor_names(path):
    try:
        with safe_open(path, framework="np") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise ImportRefused(f"{path}: {error}, expected a whole safetensors file") from None
