"""The tokenizer's files out of a GGUF file; tokenizer.json where it is byte-level BPE."""

from tokenizers import Tokenizer

from nibble_import import gguf_sentencepiece
from nibble_import.folder import ImportRefused, write_json
from nibble_import.gguf_metadata import COUNT, COUNTS, FLAG, TEXT, TEXTS

# GGUF's token types.
CONTROL = 3
USER_DEFINED = 4

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_level(use_regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
            "use_regex": use_regex}


def pre_tokenizer(name):
    """How the text is cut before the merges, by GGUF's tokenizer.ggml.pre."""
    if name in ("gpt-2", "default"):
        return byte_level(use_regex=True)
    if name == "smollm":
        return {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)]}
    if name in ("llama-bpe", "llama3", "llama-v3"):
        return {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated",
             "invert": False},
            byte_level(use_regex=False)]}
    raise ImportRefused(f"tokenizer.ggml.pre is {name}, expected gpt-2, smollm or llama-bpe")


def post_processor(tokens, bos_id):
    """Puts the BOS before the text; a plain byte-level one without a BOS (None)."""
    if bos_id is None:
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False,
                "use_regex": True}
    bos = {"SpecialToken": {"id": tokens[bos_id], "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, {"SpecialToken": {"id": tokens[bos_id], "type_id": 1}}, second],
        "special_tokens": {
            tokens[bos_id]: {"id": tokens[bos_id], "ids": [bos_id], "tokens": [tokens[bos_id]]}},
    }


def added_tokens(tokens, types):
    return [{"id": index, "content": token, "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": kind == CONTROL}
            for index, (token, kind) in enumerate(zip(tokens, types))
            if kind in (CONTROL, USER_DEFINED)]


def make_tokenizer(metadata):
    """The object of tokenizer.json."""
    pre = metadata.get("tokenizer.ggml.pre", TEXT, "gpt-2")
    tokens = metadata.need("tokenizer.ggml.tokens", TEXTS)
    types = metadata.need("tokenizer.ggml.token_type", COUNTS)
    if len(types) != len(tokens):
        raise ImportRefused(f"tokenizer.ggml.token_type: found {len(types)}, expected {len(tokens)}")
    is_llama3 = pre not in ("gpt-2", "default", "smollm")
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", FLAG, is_llama3)
    bos_id = metadata.token_id("bos") if add_bos else None
    if add_bos and bos_id is None:
        raise ImportRefused("tokenizer.ggml.add_bos_token without a bos_token_id, expected one")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(tokens, types),
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer(pre),
        "post_processor": post_processor(tokens, bos_id),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": is_llama3,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1)
                       for merge in metadata.need("tokenizer.ggml.merges", TEXTS)],
        },
    }


def make_tokenizer_config(metadata):
    tokens = metadata.need("tokenizer.ggml.tokens", TEXTS)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
              "model_max_length": metadata.need("llama.context_length", COUNT)}
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"),
                      ("pad_token", "padding")):
        index = metadata.token_id(key)
        if index is not None:
            config[name] = tokens[index]
    template = metadata.get("tokenizer.chat_template", TEXT)
    if template is not None:
        config["chat_template"] = template
    return config


def eos_ids(metadata):
    """Every token that ends an answer: the EOS and, where it differs, the end of a turn."""
    ids = {metadata.token_id(name) for name in ("eos", "eot")}
    return sorted(ids - {None})


def write_byte_level(metadata, folder):
    """Writes tokenizer.json and loads it as a check."""
    write_json(folder / "tokenizer.json", make_tokenizer(metadata))
    try:
        Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the tokenizers package raises plain Exception
        raise ImportRefused(f"tokenizer: {error}, expected a whole byte-level BPE") from error


def write_tokenizer(metadata, folder):
    """Writes the tokenizer's files and generation_config.json."""
    config = make_tokenizer_config(metadata)
    model = metadata.need("tokenizer.ggml.model", TEXT)
    if model == "gpt2":
        write_byte_level(metadata, folder)
    elif model == "llama":
        config |= gguf_sentencepiece.write_model(metadata, folder)
    else:
        raise ImportRefused(f"tokenizer.ggml.model is {model}, expected gpt2 (byte-level BPE) or "
                            "llama (SentencePiece BPE)")
    write_json(folder / "tokenizer_config.json", config)
    ids = eos_ids(metadata)
    generation = {"bos_token_id": metadata.token_id("bos")}
    if ids:
        generation["eos_token_id"] = ids
    write_json(folder / "generation_config.json", generation)
