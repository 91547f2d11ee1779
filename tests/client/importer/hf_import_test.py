"""Hugging Face folders and hub caches, imported."""

import json
import unittest

import numpy as np
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


if __name__ == "__main__":
    unittest.main()
