"""vocab.json and merges.txt as tokenizer.json. Expected ids are found by hand from tiny_opt's
merges ("h i", "Ġ hi") and transformers' rules for GPT2Tokenizer."""

import json
import unittest

import tiny_opt
from importer_case import ImporterCase
from tokenizers import Tokenizer


class SlowTokenizerTest(ImporterCase):
    def make(self, config=None, tokens=tiny_opt.TOKENS):
        source = tiny_opt.write_folder(self.root / "opt", tiny_opt.make_weights())
        if config is not None:
            (source / "special_tokens_map.json").unlink()
            tiny_opt.write_tokenizer(source, config, tokens)
        return source

    def tokenizer(self, source):
        result = self.run_import("hf", source)
        self.assertEqual(result.returncode, 0, result.stderr)
        return Tokenizer.from_file(str(self.out / "tokenizer.json"))

    def test_opt_puts_its_bos_in_front(self):
        tokenizer = self.tokenizer(self.make())
        self.assertEqual(tokenizer.encode("hi hi12!").ids, [2, 7, 8, 9, 10, 11])
        self.assertEqual(tokenizer.encode("").ids, [2])
        self.assertEqual(tokenizer.encode("hi", add_special_tokens=False).ids, [7])
        self.assertEqual(tokenizer.decode([2, 7, 8, 12]), "hi hi\n")

    def test_special_tokens_in_the_text_are_one_token(self):
        tokenizer = self.tokenizer(self.make())
        self.assertEqual(tokenizer.encode("hi</s><pad>i").ids, [2, 7, 2, 1, 5])
        # "<unk>" is a word of the vocabulary but no special token of OPT's: no merge makes it.
        self.assertNotIn(3, tokenizer.encode("<unk>").ids)

    def test_gpt2_has_no_bos_and_its_class_names_the_special_token(self):
        tokens = [*tiny_opt.TOKENS, "<|endoftext|>"]
        tokenizer = self.tokenizer(self.make({"model_max_length": 64}, tokens))
        self.assertEqual(tokenizer.encode("hi hi").ids, [7, 8])
        self.assertEqual(tokenizer.encode("hi<|endoftext|>").ids, [7, 13])

    def test_add_prefix_space(self):
        tokenizer = self.tokenizer(self.make({"add_prefix_space": True}))
        self.assertEqual(tokenizer.encode("hi").ids, [8])

    def test_added_tokens_decoder_has_ids_and_flags(self):
        token = {"content": "<|user|>", "single_word": False, "lstrip": True, "rstrip": False,
                 "normalized": False, "special": True}
        tokenizer = self.tokenizer(self.make({"added_tokens_decoder": {"13": token}}))
        self.assertEqual(tokenizer.encode("hi <|user|>hi").ids, [7, 13, 7])
        self.assertEqual(tokenizer.decode([7, 13]), "hi")

    def test_added_tokens_json_has_ids(self):
        source = self.make({})
        (source / "added_tokens.json").write_text('{"<|user|>": 13}')
        tokenizer = self.tokenizer(source)
        self.assertEqual(tokenizer.encode("hi <|user|>").ids, [7, 6, 13])
        self.assertEqual(tokenizer.decode([7, 13]), "hi<|user|>")

    def test_rules_of_other_classes_are_refused(self):
        for config, words in (({"tokenizer_class": "Qwen2Tokenizer"}, ("Qwen2Tokenizer",)),
                              ({"add_eos_token": True}, ("add_eos_token",)),
                              ({"bos_token": "<|none|>"}, ("<|none|>", "no id")),
                              ({"add_bos_token": True}, ("add_bos_token", "bos_token"))):
            with self.subTest(config):
                self.root = self.root / "next"
                self.out = self.root / "models" / "tiny"
                self.assert_refused(self.run_import("hf", self.make(config)), *words)

    def test_an_id_that_is_not_the_next_is_refused(self):
        source = self.make({})
        (source / "added_tokens.json").write_text('{"<|user|>": 21}')
        self.assert_refused(self.run_import("hf", source), "<|user|>", "21", "13")

    def test_broken_files_are_named(self):
        source = self.make()
        for name, text, word in (("vocab.json", '{"h": 0, "i": 0}', "twice"),
                                 ("vocab.json", '{"h": -1}', "no count"),
                                 ("vocab.json", '{"h": 0, "i": 1}', "vocab.json"),
                                 ("vocab.json", "[]", "JSON object"),
                                 ("merges.txt", "h i i\n", "line 1"),
                                 ("merges.txt", "h i\nh 1\n", "merges.txt"),
                                 ("vocab.json", '{"h":' * 50_000, "recursion"),
                                 ("tokenizer_config.json", '{"added_tokens_decoder": []}', "list"),
                                 ("tokenizer_config.json", '{"additional_special_tokens": 7}',
                                  "a list of tokens"),
                                 ("tokenizer_config.json", "{", "tokenizer_config.json")):
            with self.subTest(name=name, text=text):
                whole = (source / name).read_text()
                (source / name).write_text(text)
                self.assert_refused(self.run_import("hf", source), name, word)
                (source / name).write_text(whole)

    def test_a_tokenizer_json_is_taken_as_it_is(self):
        source = self.make()
        (source / "tokenizer.json").write_text(json.dumps({"model": {}}))
        result = self.run_import("hf", source)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(json.loads((self.out / "tokenizer.json").read_text()), {"model": {}})


if __name__ == "__main__":
    unittest.main()
