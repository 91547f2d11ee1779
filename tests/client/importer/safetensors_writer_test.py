"""The writer against the safetensors package, which reads what it wrote."""

import json
import tempfile
import unittest
from pathlib import Path

import numpy as np
from nibble_import.folder import ImportRefused
from nibble_import.safetensors_writer import Tensor, write_model
from safetensors.numpy import load_file


def tensor(name, values):
    dtype = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16"}[values.dtype]
    return Tensor(name, dtype, values.shape, lambda: values)


class SafetensorsWriterTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def test_one_file_has_every_shape(self):
        arrays = {"matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
                  "transposed": np.arange(6, dtype=np.float16).reshape(2, 3).T,
                  "scalar": np.array(7, np.float32), "empty": np.zeros((0, 3), np.float16)}
        write_model([tensor(name, values) for name, values in arrays.items()], self.folder)
        found = load_file(self.folder / "model.safetensors")
        self.assertEqual(set(found), set(arrays))
        for name, values in arrays.items():
            np.testing.assert_array_equal(found[name], values)
            self.assertEqual(found[name].dtype, values.dtype)

    def test_shards_hold_at_most_their_bytes_or_one_tensor(self):
        # 8, 8 and 4 bytes fit in 20; 40 are alone; 16 follow.
        sizes = [2, 2, 1, 10, 4]
        tensors = [tensor(f"t{i}", np.full(size, i, np.float32)) for i, size in enumerate(sizes)]
        write_model(tensors, self.folder, shard_bytes=20)
        index = json.loads((self.folder / "model.safetensors.index.json").read_text())
        files = [f"model-0000{number}-of-00003.safetensors" for number in (1, 1, 1, 2, 3)]
        self.assertEqual(index["weight_map"], {f"t{i}": file for i, file in enumerate(files)})
        self.assertEqual(index["metadata"]["total_size"], 4 * sum(sizes))
        for i, file in enumerate(files):
            found = load_file(self.folder / file)[f"t{i}"]
            np.testing.assert_array_equal(found, np.full(sizes[i], i, np.float32))

    def test_a_name_that_is_taken_is_refused(self):
        twice = tensor("twice", np.zeros(2, np.float32))
        for tensors in ([twice, twice], [tensor("__metadata__", np.zeros(2, np.float32))]):
            with self.assertRaisesRegex(ImportRefused, "name taken"):
                write_model(tensors, self.folder)

    def test_values_of_another_size_are_refused(self):
        wrong = Tensor("wrong", "F32", (3,), lambda: np.zeros(2, np.float32))
        with self.assertRaisesRegex(ImportRefused, "wrong: found 8 bytes, expected 12"):
            write_model([wrong], self.folder)


if __name__ == "__main__":
    unittest.main()
