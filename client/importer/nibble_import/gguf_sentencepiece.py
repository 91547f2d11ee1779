"""tokenizer.model out of a GGUF file's SentencePiece BPE, as LLaMA 1 and 2 have it.

The format is sentencepiece_model.proto of https://github.com/google/sentencepiece; GGUF has its
pieces, scores and types as they are, and of its rules those about spaces.
"""

import math
import struct

from nibble_import.folder import ImportRefused
from nibble_import.gguf_metadata import COUNTS, FLAG, NUMBERS, TEXTS

# SentencePiece's types, which GGUF took over.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BPE = 2


def varint(value):
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(digits) + bytes([value])


def number_field(field, value):
    return varint(field << 3) + varint(int(value))


def float_field(field, value):
    return varint(field << 3 | 5) + struct.pack("<f", value)


def bytes_field(field, value):
    return varint(field << 3 | 2) + varint(len(value)) + value


def piece_message(text, score, kind):
    return bytes_field(1, text.encode()) + float_field(2, score) + number_field(3, kind)


def trainer_message(metadata, kinds):
    fields = number_field(3, BPE) + number_field(35, BYTE in kinds)
    for field, name, default in ((40, "unknown", 0), (41, "bos", 1), (42, "eos", 2)):
        index = metadata.token_id(name)
        fields += number_field(field, default if index is None else index)
    return fields


def normalizer_message(metadata):
    return (bytes_field(1, b"identity")
            + number_field(3, metadata.get("tokenizer.ggml.add_space_prefix", FLAG, True))
            + number_field(4, metadata.get("tokenizer.ggml.remove_extra_whitespaces", FLAG, False))
            + number_field(5, True))


def read_pieces(metadata):
    """(text, score, type) of every token."""
    tokens = metadata.need("tokenizer.ggml.tokens", TEXTS)
    scores = metadata.need("tokenizer.ggml.scores", NUMBERS)
    kinds = metadata.need("tokenizer.ggml.token_type", COUNTS)
    for key, values in (("scores", scores), ("token_type", kinds)):
        if len(values) != len(tokens):
            raise ImportRefused(
                f"tokenizer.ggml.{key}: found {len(values)}, expected {len(tokens)}")
    for index, (score, kind) in enumerate(zip(scores, kinds)):
        if not math.isfinite(score) or not NORMAL <= kind <= BYTE:
            raise ImportRefused(f"token {index}: found the score {score} and the type {kind}, "
                                f"expected a finite score and a type from {NORMAL} to {BYTE}")
    return list(zip(tokens, scores, kinds))


def split_added(pieces):
    """The model's own pieces, and those that were added behind them: marks and names of turns."""
    end = len(pieces)
    while end > 0 and pieces[end - 1][2] in (CONTROL, USER_DEFINED):
        end -= 1
    return pieces[:end], pieces[end:]


def write_model(metadata, folder):
    """Writes tokenizer.model; returns what tokenizer_config.json says of it."""
    own, added = split_added(read_pieces(metadata))
    message = b"".join(bytes_field(1, piece_message(*piece)) for piece in own)
    message += bytes_field(2, trainer_message(metadata, {kind for _, _, kind in own}))
    message += bytes_field(3, normalizer_message(metadata))
    (folder / "tokenizer.model").write_bytes(message)
    return {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": metadata.get("tokenizer.ggml.add_bos_token", FLAG, True),
        "add_eos_token": metadata.get("tokenizer.ggml.add_eos_token", FLAG, False),
        "added_tokens_decoder": {
            str(index): {"content": text, "lstrip": False, "rstrip": False, "single_word": False,
                         "normalized": False, "special": kind == CONTROL}
            for index, (text, _, kind) in enumerate(added, len(own))},
    }
