"""Hugging Face folders and hub caches, imported."""

import json
import shutil
import unittest
from pathlib import Path

import numpy as np
import tiny_opt
from importer_case import ImporterCase
from safetensors.numpy import save_file


class HfImportTest(ImporterCase):
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
