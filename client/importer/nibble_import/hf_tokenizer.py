"""The tokenizer of a Hugging Face folder: copied, or tokenizer.json made out of the slow files."""

from tokenizers import Tokenizer

from nibble_import.folder import ImportRefused, copy_file, read_json, write_json

FAST = "tokenizer.json"
SENTENCEPIECE = "tokenizer.model"
VOCAB = "vocab.json"
MERGES = "merges.txt"
CONFIG = "tokenizer_config.json"
BESIDE = (CONFIG, "special_tokens_map.json", "added_tokens.json")
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
                 "mask_token")
# Of the class GPT2Tokenizer, where no file names another.
DEFAULT_SPECIAL = "<|endoftext|>"
DEFAULTED_NAMES = ("bos_token", "eos_token", "unk_token")


def write_tokenizer(source, folder):
    """Copies tokenizer.json and tokenizer.model; makes the first where neither is there."""
    copied = [name for name in (FAST, SENTENCEPIECE) if (source / name).is_file()]
    if FAST in copied:
        read_json(source / FAST)
    for name in (*copied, *BESIDE):
        if (source / name).is_file():
            copy_file(source / name, folder / name)
    if copied:
        return
    if not (source / VOCAB).is_file() or not (source / MERGES).is_file():
        raise ImportRefused(f"{source}: no {FAST}, no {SENTENCEPIECE} and no {VOCAB} with "
                            f"{MERGES}, expected a tokenizer")
    made = make_tokenizer(source)
    write_json(folder / FAST, made)
    check_made(folder / FAST, made["added_tokens"], source)


def check_made(path, added, source):
    """Raises ImportRefused unless the tokenizers package reads it with the same ids."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers package raises plain Exception
        raise ImportRefused(f"{source / VOCAB} and {MERGES}: {error}, "
                            "expected a whole byte-level BPE") from error
    for token in added:
        found = tokenizer.token_to_id(token["content"])
        if found != token["id"]:
            raise ImportRefused(f"{source}: token {token['content']}: found the id {token['id']}, "
                                f"expected {found}, the next after the vocabulary")


def make_tokenizer(source):
    """The object of tokenizer.json for the slow files of GPT2Tokenizer, which OPT uses too."""
    config = read_config(source)
    vocab = read_vocab(source / VOCAB)
    special = special_tokens(config, vocab)
    added = added_tokens(source, config, vocab, special)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level(bool(config.get("add_prefix_space", False)), True),
        "post_processor": post_processor(config, special, added),
        "decoder": byte_level(True, True),
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": vocab, "merges": read_merges(source / MERGES),
        },
    }


def read_config(source):
    """tokenizer_config.json, as transformers has it: without added_tokens_decoder, an older file's
    sign, special_tokens_map.json goes over it."""
    config = read_json(source / CONFIG)
    name = config.get("tokenizer_class", "GPT2Tokenizer")
    if name not in ("GPT2Tokenizer", "GPT2TokenizerFast"):
        raise ImportRefused(f"{source / CONFIG}: tokenizer_class is {name}, expected GPT2Tokenizer "
                            f"with {VOCAB} and {MERGES}, or a {FAST}")
    if config.get("add_eos_token"):
        raise ImportRefused(f"{source / CONFIG}: add_eos_token is true, expected none")
    for special in DEFAULTED_NAMES:
        config.setdefault(special, DEFAULT_SPECIAL)
    if "added_tokens_decoder" not in config and (source / "special_tokens_map.json").is_file():
        config.update(read_json(source / "special_tokens_map.json"))
    return config


def read_vocab(path):
    vocab = read_json(path)
    if not all(type(index) is int and index >= 0 for index in vocab.values()):
        raise ImportRefused(f"{path}: found an id that is no count, expected one for each token")
    if len(set(vocab.values())) != len(vocab):
        raise ImportRefused(f"{path}: found an id twice, expected one for each token")
    return vocab


def read_merges(path):
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ImportRefused(f"{path}: {error}, expected UTF-8") from None
    merges = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        halves = line.split(" ")
        if len(halves) != 2 or not all(halves):
            raise ImportRefused(f"{path}: line {number}: found {line[:80]!r}, "
                                "expected two tokens with a space between")
        merges.append(halves)
    return merges


def token_fields(value, where):
    """A token as text or as an object with its content; text alone strips nothing."""
    if isinstance(value, str):
        value = {"content": value}
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise ImportRefused(f"{where}: found {type(value).__name__}, expected a token")
    flags = {name: bool(value.get(name, False))
             for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return {"content": value["content"], **flags}


def special_tokens(config, vocab):
    """Role or number -> the fields of each special token."""
    found = {name: token_fields(config[name], name)
             for name in SPECIAL_NAMES if config.get(name) is not None}
    for name in DEFAULTED_NAMES:
        # The class's own default says nothing of a vocabulary without it.
        if name in found and config[name] == DEFAULT_SPECIAL and DEFAULT_SPECIAL not in vocab:
            del found[name]
    additional = config.get("additional_special_tokens") or []
    if not isinstance(additional, list):
        raise ImportRefused(f"{CONFIG}: additional_special_tokens: found "
                            f"{type(additional).__name__}, expected a list of tokens")
    for index, value in enumerate(additional):
        found[index] = token_fields(value, "additional_special_tokens")
    return found


def added_tokens(source, config, vocab, special):
    """Every added token by its id: those the files add to the vocabulary, and the special ones."""
    ids, tokens = dict(vocab), {}
    special_contents = {fields["content"] for fields in special.values()}
    if "added_tokens_decoder" in config:
        decoder = config["added_tokens_decoder"]
        if not isinstance(decoder, dict):
            raise ImportRefused(f"{CONFIG}: added_tokens_decoder: found "
                                f"{type(decoder).__name__}, expected tokens by their ids")
        for index, value in decoder.items():
            fields = token_fields(value, f"added_tokens_decoder {index}")
            ids[fields["content"]] = int(index) if index.isdecimal() else index
            tokens[fields["content"]] = fields | {"special": bool(value.get("special", False))}
    elif (source / "added_tokens.json").is_file():
        for content, index in read_json(source / "added_tokens.json").items():
            ids[content] = index
            tokens[content] = token_fields(content, "added_tokens.json") | {
                "normalized": content not in special_contents}
    for fields in special.values():
        tokens.setdefault(fields["content"], fields)
    for content, fields in tokens.items():
        fields["special"] = fields.get("special", False) or content in special_contents
    return check_ids(tokens, ids, vocab)


def check_ids(tokens, ids, vocab):
    by_id = {}
    for content, fields in tokens.items():
        index = ids.get(content)
        if type(index) is not int or index < 0:
            raise ImportRefused(f"token {content}: found no id in {VOCAB}, added_tokens.json or "
                                "added_tokens_decoder, expected one")
        if vocab.get(content, index) != index or index in by_id:
            raise ImportRefused(f"token {content}: found another id or token for id {index}, "
                                "expected one of each")
        by_id[index] = {"id": index, **fields}
    return [by_id[index] for index in sorted(by_id)]


def post_processor(config, special, added):
    """Puts the BOS in front where add_bos_token says so, as OPT does."""
    if not config.get("add_bos_token", False):
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False,
                "use_regex": True}
    if "bos_token" not in special:
        raise ImportRefused(f"{CONFIG}: add_bos_token without a bos_token, expected one")
    content = special["bos_token"]["content"]
    index = next(token["id"] for token in added if token["content"] == content)
    bos = {"SpecialToken": {"id": content, "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, {"SpecialToken": {"id": content, "type_id": 1}},
                 {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {content: {"id": content, "ids": [index], "tokens": [content]}},
    }


def byte_level(add_prefix_space, use_regex):
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True,
            "use_regex": use_regex}
