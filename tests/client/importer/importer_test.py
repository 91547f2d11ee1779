"""The importer against GGUF files written here, by the same package that llama.cpp's tools use."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 64, 96, 2, 4, 2
TOKENS = ["<|end|>", "<|user|>", "h", "i", "Ġ", "hi", "Ġhi", "1", "2", "!"]
MERGES = ["h i", "Ġ hi"]


def llama_cpp_permute(weight, heads):
    """convert_hf_to_gguf.py's reordering of a head's rows: halves to pairs."""
    rows = weight.shape[0]
    return (weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
            .swapaxes(1, 2).reshape(weight.shape))


def layer_shapes():
    kv = HIDDEN * KV_HEADS // HEADS
    return {"attn_q": (HIDDEN, HIDDEN), "attn_k": (kv, HIDDEN), "attn_v": (kv, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (INNER, HIDDEN),
            "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}


def make_weights(seed):
    random = np.random.default_rng(seed)
    weights = {"token_embd": random.normal(size=(len(TOKENS), HIDDEN)),
               "output_norm": random.normal(size=HIDDEN)}
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            weights[f"blk.{layer}.{norm}"] = random.normal(size=HIDDEN)
        for name, shape in layer_shapes().items():
            weights[f"blk.{layer}.{name}"] = random.normal(size=shape)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def write_gguf(path, weights, kind=gguf.GGMLQuantizationType.F16, architecture="llama",
               pre="smollm", skip=()):
    """Writes q and k as llama.cpp does; the linears' type is `kind`."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, value in weights.items():
        if name in skip:
            continue
        if name.endswith("attn_q"):
            value = llama_cpp_permute(value, HEADS)
        elif name.endswith("attn_k"):
            value = llama_cpp_permute(value, KV_HEADS)
        if "norm" in name:
            writer.add_tensor(f"{name}.weight", value)
        else:
            writer.add_tensor(f"{name}.weight", quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class ImporterTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        self.out = self.root / "models" / "tiny"

    def run_import(self, kind, source):
        return subprocess.run([sys.executable, "-m", "nibble_import", kind, source, self.out],
                              capture_output=True, text=True)

    def assert_refused(self, result, *words):
        self.assertEqual(result.returncode, 1, result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)
        self.assertNotIn("Traceback", result.stderr)
        models = self.root / "models"
        self.assertEqual(list(models.iterdir()) if models.exists() else [], [])

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

    def test_a_missing_tensor_is_named(self):
        self.assert_refused(self.import_gguf(skip=("blk.1.ffn_up",))[1], "blk.1.ffn_up.weight")

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

    def make_hf(self):
        source = self.root / "hf"
        source.mkdir()
        (source / "config.json").write_text('{"model_type": "llama"}')
        (source / "tokenizer.json").write_text("{}")
        save_file({"a": np.zeros(3, np.float32)}, source / "model-1.safetensors")
        save_file({"b": np.ones(3, np.float32)}, source / "model-2.safetensors")
        (source / "model.safetensors.index.json").write_text(json.dumps(
            {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
        return source

    def test_a_sharded_folder_is_copied(self):
        source = self.make_hf()
        (source / "training_args.bin").write_bytes(b"not wanted")
        result = self.run_import("hf", source)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual({path.name for path in self.out.iterdir()},
                         {path.name for path in source.iterdir()} - {"training_args.bin"})

    def test_a_missing_shard_is_refused(self):
        source = self.make_hf()
        (source / "model-2.safetensors").unlink()
        self.assert_refused(self.run_import("hf", source), "model-2.safetensors")

    def test_a_shard_outside_the_folder_is_refused(self):
        source = self.make_hf()
        (source / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
        self.assert_refused(self.run_import("hf", source), "../secret.safetensors")

    def test_a_folder_without_weights_is_refused(self):
        source = self.make_hf()
        (source / "model.safetensors.index.json").unlink()
        self.assert_refused(self.run_import("hf", source), "no model.safetensors",
                            "no pytorch_model.bin")


if __name__ == "__main__":
    unittest.main()
