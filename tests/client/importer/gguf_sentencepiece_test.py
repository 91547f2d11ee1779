"""A fixture's tokenizer.model, put into a GGUF file as llama.cpp's converter does and imported."""

import json
import struct
import unittest
from pathlib import Path

from importer_case import ImporterCase
from tiny_gguf import make_weights, write_gguf

FIXTURE = Path(__file__).parents[2] / "fixtures" / "sentencepiece" / "llama" / "tokenizer.model"
TRAINER = {3: "model_type", 35: "byte_fallback", 40: "unk_id", 41: "bos_id", 42: "eos_id"}
TRAINER_DEFAULTS = {"model_type": 1, "byte_fallback": 0, "unk_id": 0, "bos_id": 1, "eos_id": 2}
NORMALIZER = {2: "charsmap", 3: "add_dummy_prefix", 4: "remove_extra_whitespaces",
              5: "escape_whitespaces"}
NORMALIZER_DEFAULTS = {"add_dummy_prefix": 1, "remove_extra_whitespaces": 1,
                       "escape_whitespaces": 1, "charsmap": b""}


def read_fields(message):
    """(field number, value) of a protocol buffer's message; a float's value is its 4 bytes."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        tag = varint()
        if tag & 7 == 0:
            yield tag >> 3, varint()
            continue
        size = {2: varint, 5: lambda: 4}[tag & 7]()
        yield tag >> 3, message[at:at + size]
        at += size


def read_model(data):
    """The pieces, and what of the specs decides about ids."""
    pieces, trainer, normalizer = [], dict(TRAINER_DEFAULTS), dict(NORMALIZER_DEFAULTS)
    for field, value in read_fields(data):
        if field == 1:
            fields = dict(read_fields(value))
            pieces.append((fields[1].decode(), struct.unpack("<f", fields[2])[0],
                           fields.get(3, 1)))
        for number, names, spec in ((2, TRAINER, trainer), (3, NORMALIZER, normalizer)):
            if field == number:
                spec.update((names[key], item) for key, item in read_fields(value) if key in names)
    return pieces, trainer, normalizer


class GgufSentencePieceTest(ImporterCase):
    def setUp(self):
        super().setUp()
        self.model = read_model(FIXTURE.read_bytes())

    def import_pieces(self, pieces, scores=None):
        def add_tokenizer(writer):
            writer.add_tokenizer_model("llama")
            writer.add_token_list([text for text, _, _ in pieces])
            writer.add_token_scores(scores or [score for _, score, _ in pieces])
            writer.add_token_types([kind for _, _, kind in pieces])
            for add, index in ((writer.add_unk_token_id, 0), (writer.add_bos_token_id, 1),
                               (writer.add_eos_token_id, 2)):
                add(index)

        write_gguf(self.root / "tiny.gguf", make_weights(seed=7, vocab=len(pieces)),
                   add_tokenizer=add_tokenizer)
        return self.run_import("gguf", self.root / "tiny.gguf")

    def config(self):
        return json.loads((self.out / "tokenizer_config.json").read_text())

    def test_pieces_and_rules_come_back(self):
        self.assertGreater(len(self.model[0]), 700)
        result = self.import_pieces(self.model[0])
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(read_model((self.out / "tokenizer.model").read_bytes()), self.model)
        self.assertFalse((self.out / "tokenizer.json").exists())
        config = self.config()
        self.assertEqual((config["add_bos_token"], config["add_eos_token"]), (True, False))
        self.assertEqual(config["added_tokens_decoder"], {})
        self.assertEqual(config["eos_token"], "</s>")

    def test_tokens_behind_the_model_are_added_ones(self):
        pieces = self.model[0]
        result = self.import_pieces(pieces + [("<|im_start|>", 0.0, 3), ("<tool>", 0.0, 4)])
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(read_model((self.out / "tokenizer.model").read_bytes())[0], pieces)
        added = {int(key): (value["content"], value["special"])
                 for key, value in self.config()["added_tokens_decoder"].items()}
        self.assertEqual(added, {len(pieces): ("<|im_start|>", True),
                                 len(pieces) + 1: ("<tool>", False)})

    def test_scores_of_no_use_are_refused(self):
        pieces = self.model[0]
        self.assert_refused(self.import_pieces(pieces, scores=[0.0]),
                            "tokenizer.ggml.scores", f"expected {len(pieces)}")
        self.assert_refused(self.import_pieces(pieces, scores=[float("nan")] * len(pieces)),
                            "token 0", "finite")


if __name__ == "__main__":
    unittest.main()
