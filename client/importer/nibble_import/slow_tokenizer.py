"""tokenizer.json from the files of a slow GPT-2 or OPT tokenizer: vocab.json and merges.txt."""

from nibble_import.folder import ImportRefused, read_json, write_json

# The classes whose files these are, and whether they put the BOS token in front.
ADDS_BOS = {"GPT2Tokenizer": False, "GPT2TokenizerFast": False, "OPTTokenizer": True}


def write_tokenizer(source, config, folder):
    """Writes folder/tokenizer.json; `config` is the model's config.json."""
    vocabulary = read_json(source / "vocab.json")
    settings = read_optional(source / "tokenizer_config.json")
    added = added_tokens(source, settings, vocabulary)
    bos = token_text(settings.get("bos_token"))
    write_json(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level(settings.get("add_prefix_space") is True),
        "post_processor": begins_with(bos, added) if adds_bos(settings, config) else None,
        "decoder": byte_level(True),
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocabulary, "merges": read_merges(source / "merges.txt")}})


def read_optional(path):
    return read_json(path) if path.is_file() else {}


def byte_level(prefix_space):
    return {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": True,
            "use_regex": True}


def read_merges(path):
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ImportRefused(f"{path}: {error}, expected the merges of the tokenizer") from None
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    for pair in merges:
        if len(pair) != 2:
            raise ImportRefused(f"{path}: the line {' '.join(pair)!r}, expected two pieces")
    return merges


def token_text(value):
    """Of a special token, which is a text or an object with one."""
    return value.get("content") if isinstance(value, dict) else value


def adds_bos(settings, config):
    if isinstance(settings.get("add_bos_token"), bool):
        return settings["add_bos_token"]
    return ADDS_BOS.get(settings.get("tokenizer_class"), config.get("model_type") == "opt")


def added_tokens(source, settings, vocabulary):
    """The special and added tokens with their ids, by id."""
    special = {**read_optional(source / "special_tokens_map.json"), **settings}
    texts = [token_text(special.get(f"{kind}_token")) for kind in ("bos", "eos", "unk", "pad")]
    texts += [token_text(token) for token in special.get("additional_special_tokens", [])]
    found = {text: True for text in texts if isinstance(text, str) and text in vocabulary}
    ids = {text: vocabulary[text] for text in found}
    for text, number in read_optional(source / "added_tokens.json").items():
        found.setdefault(text, False)
        ids[text] = number
    return [{"id": number, "content": text, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": not found[text], "special": found[text]}
            for text, number in sorted(ids.items(), key=lambda item: item[1])]


def begins_with(bos, added):
    numbers = [token["id"] for token in added if token["content"] == bos]
    if not numbers:
        raise ImportRefused(f"bos_token {bos!r} is not in the vocabulary, expected it: "
                            "the tokenizer puts it in front")
    return {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": bos, "type_id": 0}},
                     {"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": numbers, "tokens": [bos]}}}
