"""Hugging Face folders and hub caches, imported."""

import json
import shutil
import unittest
from pathlib import Path

import tiny_llama
import tiny_opt
from importer_case import ImporterCase
from safetensors.numpy import load_file, save_file


class HfImportTest(ImporterCase):
    def make_hf(self):
        return tiny_llama.write_sharded(self.root / "hf")

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

    def test_a_sentencepiece_model_is_copied_with_what_lies_beside_it(self):
        source = self.make_hf()
        (source / "tokenizer.json").unlink()
        self.assert_refused(self.run_import("hf", source), "no tokenizer.json", "vocab.json")
        (source / "tokenizer.model").write_bytes(b"pieces")
        (source / "special_tokens_map.json").write_text("{}")
        result = self.run_import("hf", source)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual((self.out / "tokenizer.model").read_bytes(), b"pieces")
        self.assertTrue((self.out / "special_tokens_map.json").is_file())

    def test_another_model_type_is_refused(self):
        source = self.make_hf()
        (source / "config.json").write_text('{"model_type": "bloom"}')
        self.assert_refused(self.run_import("hf", source), "bloom", "llama or opt")


class ShapesTest(ImporterCase):
    def write_config(self, source, **changes):
        (source / "config.json").write_text(json.dumps({**tiny_llama.CONFIG, **changes}))

    def test_another_shape_than_the_configs_is_refused_with_both(self):
        source = tiny_llama.write_sharded(self.root / "hf")
        for changes, tensor, found, expected in (
                ({"vocab_size": 13}, "model.embed_tokens.weight", "[12, 16]", "[13, 16]"),
                ({"num_key_value_heads": 4}, "layers.0.self_attn.k_proj.weight", "[8, 16]",
                 "[16, 16]"),
                ({"intermediate_size": 32}, "layers.0.mlp.gate_proj.weight", "[24, 16]",
                 "[32, 16]")):
            with self.subTest(changes=changes):
                self.write_config(source, **changes)
                self.assert_refused(self.run_import("hf", source),
                                    tensor, f"found the shape {found}", f"expected {expected}")

    def test_a_tensor_that_the_config_asks_for_is_named(self):
        source = tiny_llama.write_sharded(self.root / "hf")
        for changes, tensor in (({"num_hidden_layers": 2}, "model.layers.1.input_layernorm.weight"),
                                ({"attention_bias": True}, "self_attn.q_proj.bias"),
                                ({"num_hidden_layers": 10**12}, "model.layers.1.")):
            with self.subTest(changes=changes):
                self.write_config(source, **changes)
                self.assert_refused(self.run_import("hf", source), tensor, "not found")

    def test_a_head_is_needed_unless_it_is_tied(self):
        source = tiny_llama.write_sharded(self.root / "hf")
        first = load_file(source / "model-1.safetensors")
        del first["lm_head.weight"]
        save_file(first, source / "model-1.safetensors")
        index = source / "model.safetensors.index.json"
        weight_map = json.loads(index.read_text())["weight_map"]
        del weight_map["lm_head.weight"]
        index.write_text(json.dumps({"weight_map": weight_map}))
        self.assert_refused(self.run_import("hf", source), "lm_head.weight", "not found")
        self.write_config(source, tie_word_embeddings=True)
        self.assertEqual(self.run_import("hf", source).returncode, 0)

    def test_sizes_that_are_no_counts_are_refused(self):
        source = tiny_llama.write_sharded(self.root / "hf")
        for value in (0, -1, 1.5, "16", True, [], None):
            with self.subTest(value=value):
                self.write_config(source, hidden_size=value)
                self.assert_refused(self.run_import("hf", source), "hidden_size",
                                    "a whole number from 1")

    def test_opts_bin_files_are_checked_too(self):
        weights = tiny_opt.make_weights()
        weights["decoder.layers.1.fc1.bias"] = weights["decoder.layers.1.fc1.bias"][:-1]
        source = tiny_opt.write_folder(self.root / "opt", weights)
        self.assert_refused(self.run_import("hf", source), "model.decoder.layers.1.fc1.bias",
                            "found the shape [31]", "expected [32]")


class HubCacheTest(ImporterCase):
    def make_cache(self):
        """As the hub client lays one out: the snapshot's files are links to blobs."""
        cache = self.root / "models--facebook--opt-1.3b"
        tiny_opt.write_folder(self.root / "plain", tiny_opt.make_weights())
        snapshot = cache / "snapshots" / "0123abcd"
        snapshot.mkdir(parents=True)
        (cache / "blobs").mkdir()
        (cache / "refs").mkdir()
        for number, path in enumerate(sorted((self.root / "plain").iterdir())):
            shutil.move(path, cache / "blobs" / str(number))
            (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
        (cache / "refs" / "main").write_text("0123abcd")
        return cache

    def assert_imported(self, source):
        result = self.run_import("hf", source)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue((self.out / "model.safetensors").is_file())
        self.assertFalse(any(path.is_symlink() for path in self.out.iterdir()))

    def test_refs_main_names_the_snapshot(self):
        cache = self.make_cache()
        (cache / "snapshots" / "older").mkdir()
        self.assert_imported(cache)

    def test_a_snapshot_is_a_folder_like_others(self):
        self.assert_imported(self.make_cache() / "snapshots" / "0123abcd")

    def test_without_refs_main_the_only_snapshot_is_it(self):
        cache = self.make_cache()
        (cache / "refs" / "main").unlink()
        self.assert_imported(cache)

    def test_several_snapshots_without_refs_main_are_listed(self):
        cache = self.make_cache()
        (cache / "refs" / "main").unlink()
        (cache / "snapshots" / "older").mkdir()
        self.assert_refused(self.run_import("hf", cache), "0123abcd, older")

    def test_a_reference_to_no_snapshot_is_refused(self):
        cache = self.make_cache()
        for name in ("gone", "../snapshots/0123abcd", ""):
            (cache / "refs" / "main").write_text(name)
            self.assert_refused(self.run_import("hf", cache), "refs/main", "0123abcd")

    def test_the_root_of_a_cache_is_refused_with_its_models(self):
        self.make_cache()
        self.assert_refused(self.run_import("hf", self.root), "models--facebook--opt-1.3b")

    def test_a_half_downloaded_file_is_named(self):
        cache = self.make_cache()
        (cache / "snapshots" / "0123abcd" / "vocab.json").resolve().unlink()
        self.assert_refused(self.run_import("hf", cache), "vocab.json")


if __name__ == "__main__":
    unittest.main()
