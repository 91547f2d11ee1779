"""A Hugging Face folder or hub cache as a folder that nibble reads, checked first."""

from pathlib import Path

from nibble_import import hf_tokenizer, hf_weights
from nibble_import.folder import ImportRefused, copy_file, read_json, staged
from nibble_import.hub_cache import model_folder

OPTIONAL = ("generation_config.json", "chat_template.jinja", "LICENSE", "LICENSE.md",
            "LICENSE.txt", "README.md")
MODEL_TYPES = ("llama", "opt")


def import_hf(source, out_dir):
    """Raises ImportRefused when `source` is not one that nibble can read."""
    source = model_folder(Path(source))
    config = read_json(source / "config.json")
    if config.get("model_type") not in MODEL_TYPES:
        raise ImportRefused(f"{source}/config.json: model_type is {config.get('model_type')}, "
                            f"expected {' or '.join(MODEL_TYPES)}")
    hf_weights.find_weights(source)
    with staged(out_dir) as folder:
        copy_file(source / "config.json", folder / "config.json")
        for name in OPTIONAL:
            if (source / name).is_file():
                copy_file(source / name, folder / name)
        hf_tokenizer.write_tokenizer(source, folder)
        hf_weights.write_weights(source, config, folder)
