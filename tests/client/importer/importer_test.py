"""The importer against GGUF files written here, by the same package that llama.cpp's tools use."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import types
import unittest
import zipfile
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from nibble_import.gguf_model import to_half

OPT = Path(__file__).parents[2] / "fixtures" / "checkpoints" / "opt-1.3b"
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

    def test_k_quants_by_hand(self):
        half_one = b"\x00\x3c"
        kinds = gguf.GGMLQuantizationType
        blocks = {
            # d, dmin, 12 bytes of 6-bit scales (all 1) and minima (0), 4-bit codes: 1s then 2s.
            kinds.Q4_K: (half_one + bytes(2) + bytes([1] * 4 + [0] * 4 + [1] * 4)
                         + bytes([0x21] * 128), ([1.0] * 32 + [2.0] * 32) * 4),
            # Codes of 6 bits less 32, 16 scales of 8 bits, d.
            kinds.Q6_K: (bytes(128) + bytes(64) + bytes([2] * 16) + half_one, [-64.0] * 256),
            # 4-bit scales 1 and minima 0, 2-bit codes 3, d, dmin.
            kinds.Q2_K: (bytes([1] * 16) + bytes([0xff] * 64) + half_one + bytes(2), [3.0] * 256),
            # As Q4_K with a fifth bit of every code.
            kinds.Q5_K: (half_one + bytes(2) + bytes([1] * 4 + [0] * 4 + [1] * 4)
                         + bytes([0xff] * 32) + bytes(128), [16.0] * 256),
            # High bits set (code - 0), low bits 1, scales of 6 bits less 32: 33 - 32 = 1.
            kinds.Q3_K: (bytes([0xff] * 32) + bytes([0x55] * 64)
                         + bytes([0x11] * 8 + [0xaa] * 4) + half_one, [1.0] * 256),
        }
        for kind, (block, expected) in blocks.items():
            tensor = types.SimpleNamespace(name="blk.0.ffn_up.weight", tensor_type=kind,
                                           data=np.frombuffer(block * 2, np.uint8).reshape(2, -1))
            found = to_half(tensor, {})
            self.assertEqual(found.tolist(), [expected, expected], kind.name)

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
        self.assert_refused(self.run_import("hf", source), "no weights")

    def import_opt(self, source=OPT):
        result = self.run_import("hf", source)
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(OPT.with_name("opt-1.3b.expected.json").read_text())

    def test_pytorch_weights_become_safetensors(self):
        expected = self.import_opt()["sums"]
        found = load_file(self.out / "model.safetensors")
        self.assertEqual(set(found), set(expected))  # the tied head is not among them
        for name, total in expected.items():
            self.assertEqual(found[name].dtype, np.float16)
            self.assertEqual(found[name].astype(np.float64).sum(), total, name)

    def test_slow_tokenizer_files_become_a_tokenizer_with_opts_bos(self):
        cases = self.import_opt()["tokens"]
        tokenizer = Tokenizer.from_file(str(self.out / "tokenizer.json"))
        for case in cases:
            self.assertEqual(tokenizer.encode(case["text"]).ids, case["ids"], case["text"])

    def test_a_hub_cache_is_read_by_its_main_snapshot(self):
        cache = self.root / "models--facebook--opt-1.3b"
        snapshot = cache / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (cache / "blobs").mkdir()
        for path in OPT.iterdir():  # as in a cache: links to blobs
            shutil.copyfile(path, cache / "blobs" / path.name)
            (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / path.name)
        (cache / "snapshots" / "older").mkdir()
        self.assert_refused(self.run_import("hf", cache), "abc, older")
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text("../abc")
        self.assert_refused(self.run_import("hf", cache), "refs/main")
        (cache / "refs" / "main").write_text("abc")
        self.import_opt(cache)
        self.assertFalse((self.out / "config.json").is_symlink())

    def copy_opt(self):
        source = self.root / "opt"
        shutil.copytree(OPT, source)
        return source

    def test_sharded_pytorch_weights(self):
        source = self.copy_opt()
        (source / "pytorch_model.bin").rename(source / "pytorch_model-00001-of-00001.bin")
        names = json.loads(OPT.with_name("opt-1.3b.expected.json").read_text())["sums"]
        index = {"weight_map": dict.fromkeys(names, "pytorch_model-00001-of-00001.bin")}
        (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        self.import_opt(source)
        shutil.rmtree(self.out)
        index["weight_map"]["another.weight"] = "pytorch_model-00001-of-00001.bin"
        (source / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        self.assert_refused(self.run_import("hf", source), "another.weight")

    def write_bin(self, source, pickled, storages=()):
        with zipfile.ZipFile(source / "pytorch_model.bin", "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            for key, content in storages:
                archive.writestr(f"archive/data/{key}", content)

    def test_a_pickle_that_runs_programs_is_refused_unrun(self):
        source = self.copy_opt()
        witness = self.root / "witness"

        class Attack:
            def __reduce__(self):
                return os.system, (f"touch {witness}",)

        self.write_bin(source, pickle.dumps({"a": Attack()}))
        self.assert_refused(self.run_import("hf", source), "posix.system")
        self.assertFalse(witness.exists())

    def test_broken_pytorch_files_are_refused(self):
        source = self.copy_opt()
        whole = (source / "pytorch_model.bin").read_bytes()
        (source / "pytorch_model.bin").write_bytes(whole[:len(whole) // 2])
        self.assert_refused(self.run_import("hf", source), "pytorch_model.bin")
        (source / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))  # before PyTorch 1.6
        self.assert_refused(self.run_import("hf", source), "zip format")
        self.write_bin(source, pickle.dumps({"a": 1}))
        self.assert_refused(self.run_import("hf", source), "expected a dictionary of tensors")
        # A tensor of 8 numbers in a storage of 4.
        pickled = (b"\x80\x02}U\x01actorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\n"
                   b"FloatStorage\nU\x010U\x03cpuK\x04tQK\x00(K\x08t(K\x01t\x89NtRs.")
        self.write_bin(source, pickled, [("0", bytes(16))])
        self.assert_refused(self.run_import("hf", source), "number 7 of 4")
        self.write_bin(source, pickled.replace(b"K\x08t", b"K\x04t"), [("0", bytes(8))])
        self.assert_refused(self.run_import("hf", source), "a storage of 8 bytes")

    def test_flipped_bytes_end_in_a_sentence_or_a_model(self):
        source = self.copy_opt()
        whole = (source / "pytorch_model.bin").read_bytes()
        random = np.random.default_rng(7)
        for _ in range(25):
            broken = bytearray(whole)
            broken[random.integers(len(broken))] ^= 1 << random.integers(8)
            (source / "pytorch_model.bin").write_bytes(broken)
            result = self.run_import("hf", source)
            self.assertIn(result.returncode, (0, 1))
            self.assertNotIn("Traceback", result.stderr)
            shutil.rmtree(self.out, ignore_errors=True)

    def test_a_sentencepiece_model_is_copied(self):
        source = self.make_hf()
        (source / "tokenizer.json").unlink()
        self.assert_refused(self.run_import("hf", source), "no tokenizer")
        (source / "tokenizer.model").write_bytes(b"pieces")
        result = self.run_import("hf", source)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual((self.out / "tokenizer.model").read_bytes(), b"pieces")


if __name__ == "__main__":
    unittest.main()
