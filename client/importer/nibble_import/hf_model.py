"""Copies a Hugging Face folder: what nibble reads of it, checked first."""

import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open

from nibble_import.folder import ImportRefused, read_json, staged

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
OPTIONAL = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json",
            "chat_template.jinja", "LICENSE", "LICENSE.txt", "README.md")
MODEL_TYPES = ("llama",)


def import_hf(source, out_dir):
    """Raises ImportRefused when the folder is not one that nibble can read."""
    source = Path(source)
    if not source.is_dir():
        raise ImportRefused(f"{source}: not found, expected a folder")
    model_type = read_json(source / "config.json").get("model_type")
    if model_type not in MODEL_TYPES:
        raise ImportRefused(f"{source}/config.json: model_type is {model_type}, "
                            f"expected {' or '.join(MODEL_TYPES)}")
    read_json(source / "tokenizer.json")
    files = ["config.json", "tokenizer.json", *weight_files(source)]
    files += [name for name in OPTIONAL if (source / name).is_file()]
    with staged(out_dir) as folder:
        for name in files:
            shutil.copyfile(source / name, folder / name)


def weight_files(source):
    """Names of the weights' files, index first; every one opens and holds what the index says."""
    if (source / INDEX).is_file():
        weight_map = read_json(source / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ImportRefused(f"{source / INDEX}: no weight_map, expected one")
        shards = sorted(set(weight_map.values()))
        for shard in shards:
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise ImportRefused(f"{source / INDEX}: shard {shard}, expected a plain file name")
            wanted = {name for name, file in weight_map.items() if file == shard}
            absent = sorted(wanted - tensor_names(source / shard))
            if absent:
                raise ImportRefused(f"{source / shard}: no tensor {absent[0]}, expected by the index")
        return [INDEX, *shards]
    if (source / SINGLE).is_file():
        tensor_names(source / SINGLE)
        return [SINGLE]
    raise ImportRefused(f"{source}: no {SINGLE} and no {INDEX}, expected safetensors "
                        "(pickled weights are not read)")


def tensor_names(path):
    try:
        with safe_open(path, framework="np") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise ImportRefused(f"{path}: {error}, expected a whole safetensors file") from None
