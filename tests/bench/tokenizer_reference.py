#!/usr/bin/env python3
"""Encodes files with the Python packages and prints what tokenizer_bench prints of them.

    python tests/bench/tokenizer_reference.py FOLDER FILE... [--lines]

A folder with tokenizer.json goes to `tokenizers`, one with tokenizer.model to `sentencepiece`
([BOS] + encode). Needs the packages of tests/fixtures/requirements.txt.
"""

import argparse
import hashlib
import pathlib
import struct


def load(folder):
    """A function from a text to its ids, special tokens added."""
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return lambda text: tokenizer.encode(text, add_special_tokens=True).ids
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return lambda text: [model.bos_id()] + model.encode(text)


def lines_of(text):
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("files", type=pathlib.Path, nargs="+")
    parser.add_argument("--lines", action="store_true", help="each line as a text of its own")
    arguments = parser.parse_args()
    encode = load(arguments.folder)
    for file in arguments.files:
        data = file.read_bytes()
        text = data.decode("utf-8", errors="replace")
        texts = lines_of(text) if arguments.lines else [text]
        ids = [one for part in texts for one in encode(part)]
        digest = hashlib.sha256(struct.pack(f"<{len(ids)}i", *ids)).hexdigest()
        print(f"{file.name:24} {len(data):10} bytes {len(ids):9} tokens  {digest[:16]}")


if __name__ == "__main__":
    main()
