"""The weights of a Hugging Face folder: safetensors are copied, PyTorch .bin files rewritten."""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from nibble_import.folder import ImportRefused, copy_file, read_json
from nibble_import.hf_shapes import check_shapes
from nibble_import.safetensors_writer import Tensor, write_model
from nibble_import.torch_file import TorchFile

SAFETENSORS = "model.safetensors"
TORCH = "pytorch_model.bin"
HEAD = "lm_head.weight"
ROTARY = ".rotary_emb.inv_freq"  # LLaMA's frequencies, which config.json gives


def find_weights(source):
    """SAFETENSORS or TORCH: what the folder has, safetensors where it has both."""
    for name in (SAFETENSORS, TORCH):
        if (source / name).is_file() or index_of(source, name).is_file():
            return name
    raise ImportRefused(f"{source}: no {SAFETENSORS} and no {TORCH} nor an index of one, "
                        "expected weights")


def index_of(source, name):
    return source / f"{name}.index.json"


def write_weights(source, config, folder):
    """Writes `source`'s weights to `folder` as safetensors; `config` is its config.json."""
    if find_weights(source) == SAFETENSORS:
        for name in safetensors_files(source, config):
            copy_file(source / name, folder / name)
        return
    tensors = torch_tensors(source, config)
    check_shapes(config, {tensor.name: tensor.shape for tensor in tensors})
    write_model(tensors, folder)


def shards(source, name):
    """File name -> names of the tensors the index places there; the single file has None."""
    index = index_of(source, name)
    if not index.is_file():
        return {name: None}
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ImportRefused(f"{index}: no weight_map, expected one")
    placed = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise ImportRefused(f"{index}: shard {file}, expected a plain file name")
        placed.setdefault(file, set()).add(tensor)
    return dict(sorted(placed.items()))


def check_shard(path, expected, found):
    absent = sorted((expected or set()) - found)
    if absent:
        raise ImportRefused(f"{path}: no tensor {absent[0]}, expected by the index")


def safetensors_files(source, config):
    """Names of the files, index first; every one opens and holds what the index says, and
    together they hold what config.json says."""
    files = shards(source, SAFETENSORS)
    shapes = {}
    for file, expected in files.items():
        found = safetensors_shapes(source / file)
        check_shard(source / file, expected, found.keys())
        shapes.update(found)
    check_shapes(config, shapes)
    return list(files) if SAFETENSORS in files else [index_of(source, SAFETENSORS).name, *files]


def safetensors_shapes(path):
    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ImportRefused(f"{path}: {error}, expected a whole safetensors file") from None


def torch_tensors(source, config):
    """Every tensor of the .bin files under its name in safetensors, a tied head and
    the rotary frequencies left out."""
    places = {}
    for file_name, expected in shards(source, TORCH).items():
        file = TorchFile(source / file_name)
        check_shard(file.path, expected, file.views.keys())
        for name in file.views:
            if name.endswith(ROTARY):
                continue
            new = hf_name(name, config["model_type"])
            if new in places:
                raise ImportRefused(f"{file.path}: tensor {name}: found it twice as {new}, "
                                    "expected it once")
            places[new] = (file, name)
    drop_tied_head(places, config)
    return [Tensor(name, file.views[old].storage.dtype, file.views[old].shape,
                   lambda file=file, old=old: file.read(old))
            for name, (file, old) in places.items()]


def hf_name(name, model_type):
    """OPT's first .bin files were saved from the inner model: decoder. for model.decoder."""
    return f"model.{name}" if model_type == "opt" and name.startswith("decoder.") else name


def drop_tied_head(places, config):
    """Takes the head out of `places` where config.json ties it to the embedding."""
    tied = config.get("tie_word_embeddings", config["model_type"] == "opt")
    if not tied or HEAD not in places:
        return
    embedding = "model.decoder.embed_tokens.weight"
    if config["model_type"] != "opt":
        embedding = "model.embed_tokens.weight"
    if embedding not in places:
        raise ImportRefused(f"tensor {embedding}: not found, expected the embedding")
    if not same_tensor(places[HEAD], places[embedding]):
        raise ImportRefused(f"tensor {HEAD}: found other values than {embedding}, expected the "
                            "same, as config.json has tie_word_embeddings")
    del places[HEAD]


def same_tensor(one, other):
    (one_file, one_name), (other_file, other_name) = one, other
    one_view, other_view = one_file.views[one_name], other_file.views[other_name]
    if one_file is other_file and one_view == other_view:
        return True
    if (one_view.storage.dtype, one_view.shape) != (other_view.storage.dtype, other_view.shape):
        return False
    return np.array_equal(one_file.read(one_name), other_file.read(other_name))
