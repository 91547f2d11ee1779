"""GGUF files written here, imported."""

import json
import unittest

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from importer_case import ImporterCase
from safetensors.numpy import load_file
from tiny_gguf import (HEADS, HIDDEN, INNER, KV_HEADS, LAYERS, TOKENS, make_weights, write_gguf)
from tokenizers import Tokenizer


class GgufImportTest(ImporterCase):
    def import_gguf(self, **options):
        weights = make_weights(seed=7)
        write_gguf(self.root / "tiny.gguf", weights, **options)
        return weights, self.run_import("gguf", self.root / "tiny.gguf")

    def test_half_precision_weights_come_back_in_hugging_face_order(self):
        weights, result = self.import_gguf()
        self.assertEqual(result.returncode, 0, result.stderr)
        tensors = load_file(self.out / "model.safetensors")
        self.assertEqual(len(tensors), 2 + 9 * LAYERS)
        for name, hf in (("token_embd", "model.embed_tokens"),
                         ("blk.1.attn_q", "model.layers.1.self_attn.q_proj"),
                         ("blk.0.attn_k", "model.layers.0.self_attn.k_proj"),
                         ("blk.1.attn_norm", "model.layers.1.input_layernorm"),
                         ("blk.0.ffn_down", "model.layers.0.mlp.down_proj")):
            np.testing.assert_array_equal(tensors[f"{hf}.weight"],
                                          weights[name].astype(np.float16))

    def test_quantized_types_are_dequantized(self):
        types = gguf.GGMLQuantizationType
        for kind in (types.F32, types.BF16, types.Q8_0, types.Q4_0, types.Q4_1):
            with self.subTest(kind.name):
                self.out = self.root / "models" / kind.name
                weights, result = self.import_gguf(kind=kind)
                self.assertEqual(result.returncode, 0, result.stderr)
                up = weights["blk.0.ffn_up"]
                np.testing.assert_array_equal(
                    load_file(self.out / "model.safetensors")["model.layers.0.mlp.up_proj.weight"],
                    dequantize(quantize(up, kind), kind).astype(np.float16))

    def test_config_has_the_metadata(self):
        _, result = self.import_gguf()
        self.assertEqual(result.returncode, 0, result.stderr)
        config = json.loads((self.out / "config.json").read_text())
        expected = {"model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
                    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
                    "num_key_value_heads": KV_HEADS, "max_position_embeddings": 128,
                    "rope_theta": 50000.0, "tie_word_embeddings": True, "eos_token_id": 0,
                    "vocab_size": len(TOKENS), "rope_scaling": None}
        self.assertEqual({key: config[key] for key in expected}, expected)

    def test_tokenizer_splits_digits_and_keeps_control_tokens(self):
        _, result = self.import_gguf()
        self.assertEqual(result.returncode, 0, result.stderr)
        tokenizer = Tokenizer.from_file(str(self.out / "tokenizer.json"))
        self.assertEqual(tokenizer.encode("<|user|>hi hi12!").ids, [1, 5, 6, 7, 8, 9])
        config = json.loads((self.out / "tokenizer_config.json").read_text())
        self.assertEqual(config["eos_token"], "<|end|>")
        self.assertEqual(config["chat_template"], "{{ messages[0]['content'] }}")

    def test_another_architecture_is_refused(self):
        self.assert_refused(self.import_gguf(architecture="mamba")[1], "mamba", "expected llama")

    def test_an_unknown_pre_tokenizer_is_refused(self):
        self.assert_refused(self.import_gguf(pre="tekken")[1], "tekken", "smollm")

    def test_an_unknown_tokenizer_is_refused(self):
        self.assert_refused(self.import_gguf(model="t5")[1], "t5", "gpt2", "llama")

    def test_a_missing_tensor_is_named(self):
        self.assert_refused(self.import_gguf(skip=("blk.1.ffn_up",))[1], "blk.1.ffn_up.weight")

    def test_a_tensor_of_another_shape_is_named(self):
        for key, value, word in (("llama.feed_forward_length", INNER - 1, "blk.0.ffn_gate"),
                                 ("llama.attention.head_count_kv", 1, "blk.0.attn_k"),
                                 ("llama.embedding_length", 0, "token_embd"),
                                 ("llama.attention.head_count", 1000, "blk.0.attn_q")):
            with self.subTest(key):
                self.assert_refused(self.import_gguf(forge={key: value})[1], word, "shape")

    def test_metadata_of_another_kind_is_named(self):
        for key, value, *words in (
                ("llama.attention.head_count", 0, "head_count is 0", "1 or more"),
                ("llama.attention.head_count", "4", "head_count is '4'", "a count"),
                ("llama.attention.head_count", [4, 4], "head_count is a list of 2", "a count"),
                ("llama.attention.head_count", -4, "head_count is -4", "a count"),
                ("llama.attention.key_length", 63, "width is 63", "even"),
                ("llama.block_count", (1 << 31) - 1, "at most 2"),  # and takes no memory
                ("llama.attention.layer_norm_rms_epsilon", float("nan"), "nan", "a finite number"),
                ("llama.rope.freq_base", "x", "freq_base is 'x'", "a finite number"),
                ("tokenizer.ggml.tokens", "abc", "tokens is 'abc'", "a list of texts"),
                ("tokenizer.ggml.merges", [1, 2], "merges is a list of 2", "a list of texts"),
                ("tokenizer.ggml.eot_token_id", len(TOKENS), "eot", f"less than {len(TOKENS)}"),
                ("tokenizer.ggml.bos_token_id", "x", "bos_token_id is 'x'", "a count")):
            with self.subTest(key=key, value=value):
                self.assert_refused(self.import_gguf(forge={key: value})[1], *words)

    def test_a_truncated_file_is_refused(self):
        write_gguf(self.root / "whole.gguf", make_weights(seed=7))
        whole = (self.root / "whole.gguf").read_bytes()
        (self.root / "cut.gguf").write_bytes(whole[:len(whole) // 2])
        self.assert_refused(self.run_import("gguf", self.root / "cut.gguf"), "cut.gguf")

    def test_an_existing_name_is_refused_and_left_alone(self):
        self.out.mkdir(parents=True)
        _, result = self.import_gguf()
        self.assertEqual(result.returncode, 1)
        self.assertIn("exists already", result.stderr)
        self.assertEqual(list(self.out.iterdir()), [])


if __name__ == "__main__":
    unittest.main()
