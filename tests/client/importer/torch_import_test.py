"""PyTorch .bin files: folders as facebook/opt-1.3b's, and files that must be refused."""

import json
import os
import resource
import shutil
import unittest
import zipfile
from pathlib import Path

import numpy as np
import tiny_llama
import tiny_opt
import torch_bin
from importer_case import ImporterCase
from nibble_import.folder import ImportRefused
from nibble_import.torch_file import TorchFile
from safetensors import safe_open
from safetensors.numpy import load_file
from tokenizers import Tokenizer

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "torch"
OPT = FIXTURES.with_name("checkpoints") / "opt-1.3b"


class OptFolderTest(ImporterCase):
    def import_opt(self, source):
        result = self.run_import("hf", source)
        self.assertEqual(result.returncode, 0, result.stderr)
        return load_file(self.out / "model.safetensors")

    def assert_weights(self, found, weights):
        self.assertEqual(set(found), {f"model.{name}" for name in weights})
        for name, values in weights.items():
            np.testing.assert_array_equal(found[f"model.{name}"], values)
            self.assertEqual(found[f"model.{name}"].dtype, values.dtype)

    def test_the_repositorys_files_become_safetensors_and_a_tokenizer(self):
        weights = tiny_opt.make_weights()
        tied = {**weights, "lm_head.weight": weights[tiny_opt.EMBEDDING]}
        found = self.import_opt(tiny_opt.write_folder(self.root / "opt", tied))
        self.assert_weights(found, weights)
        self.assertEqual({path.name for path in self.out.iterdir()},
                         {"config.json", "generation_config.json", "model.safetensors",
                          "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"})

    def test_transformers_own_folder_has_its_values_and_token_ids(self):
        expected = json.loads(OPT.with_name("opt-1.3b.expected.json").read_text())
        found = self.import_opt(OPT)
        self.assertEqual({name: values.astype(np.float64).sum() for name, values in found.items()},
                         expected["sums"])
        tokenizer = Tokenizer.from_file(str(self.out / "tokenizer.json"))
        for case in expected["tokens"]:
            self.assertEqual(tokenizer.encode(case["text"]).ids, case["ids"], case["text"])

    def test_a_flipped_bit_ends_in_a_sentence_or_in_the_same_weights(self):
        source = shutil.copytree(OPT, self.root / "opt")
        whole = (OPT / "pytorch_model.bin").read_bytes()
        expected = self.import_opt(source)
        random = np.random.default_rng(7)
        for number in range(25):
            broken = bytearray(whole)
            broken[random.integers(len(broken))] ^= 1 << random.integers(8)
            (source / "pytorch_model.bin").write_bytes(broken)
            self.out = self.root / "models" / str(number)
            result = self.run_import("hf", source)
            self.assertNotIn("Traceback", result.stderr)
            if result.returncode != 0:
                self.assertEqual(result.returncode, 1)
                self.assertFalse(self.out.exists())
                continue
            found = load_file(self.out / "model.safetensors")
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name], values)

    def test_shards_are_joined_and_a_copied_head_left_out(self):
        weights = tiny_opt.make_weights()
        names = sorted(weights)
        shards = [{name: weights[name] for name in names[:9]},
                  {name: weights[name] for name in names[9:]}]
        shards[1]["lm_head.weight"] = weights[tiny_opt.EMBEDDING].copy()
        found = self.import_opt(tiny_opt.write_sharded(self.root / "opt", shards))
        self.assert_weights(found, weights)

    def test_an_untied_head_is_written(self):
        weights = tiny_opt.make_weights()
        head = weights[tiny_opt.EMBEDDING]
        source = tiny_opt.write_folder(self.root / "opt", {**weights, "lm_head.weight": head})
        (source / "config.json").write_text(
            json.dumps({**tiny_opt.CONFIG, "tie_word_embeddings": False}))
        np.testing.assert_array_equal(self.import_opt(source)["lm_head.weight"], head)

    def test_a_tied_head_with_other_values_is_refused(self):
        weights = tiny_opt.make_weights()
        head = weights[tiny_opt.EMBEDDING] + 1
        source = tiny_opt.write_folder(self.root / "opt", {**weights, "lm_head.weight": head})
        self.assert_refused(self.run_import("hf", source), "lm_head.weight", "tie_word_embeddings")

    def test_llamas_rotary_frequencies_are_left_out(self):
        weights = tiny_llama.make_weights()
        source = tiny_opt.write_folder(self.root / "llama", {
            **weights, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)})
        (source / "config.json").write_text(json.dumps(tiny_llama.CONFIG))
        self.assertEqual(set(self.import_opt(source)), set(weights))

    def test_names_of_both_spellings_are_refused(self):
        weights = tiny_opt.make_weights()
        weights[f"model.{tiny_opt.EMBEDDING}"] = weights[tiny_opt.EMBEDDING]
        source = tiny_opt.write_folder(self.root / "opt", weights)
        self.assert_refused(self.run_import("hf", source), f"model.{tiny_opt.EMBEDDING}", "twice")

    def test_a_tensor_that_only_the_index_has_is_named(self):
        source = tiny_opt.write_sharded(self.root / "opt", [tiny_opt.make_weights()])
        index = source / "pytorch_model.bin.index.json"
        weight_map = json.loads(index.read_text())["weight_map"]
        weight_map["decoder.absent"] = "pytorch_model-00001-of-00001.bin"
        index.write_text(json.dumps({"weight_map": weight_map}))
        self.assert_refused(self.run_import("hf", source), "decoder.absent", "index")

    def test_a_missing_shard_is_named(self):
        source = tiny_opt.write_sharded(self.root / "opt", [tiny_opt.make_weights()])
        (source / "pytorch_model-00001-of-00001.bin").unlink()
        self.assert_refused(self.run_import("hf", source), "pytorch_model-00001-of-00001.bin")

    def test_safetensors_come_first(self):
        source = tiny_opt.write_folder(self.root / "opt", tiny_opt.make_weights())
        self.import_opt(source)
        (self.out / "model.safetensors").rename(source / "model.safetensors")
        (source / "pytorch_model.bin").write_bytes(b"not read")
        self.out = self.root / "models" / "again"
        self.assert_weights(self.import_opt(source), tiny_opt.make_weights())


class TorchFileTest(unittest.TestCase):
    def test_pytorchs_own_file_has_its_values(self):
        file = TorchFile(FIXTURES / "views.bin")
        base = np.arange(24, dtype=np.float32).reshape(4, 6)
        for name, expected in (("whole", base), ("transposed", base.T), ("inner", base[1:3, 2:5]),
                               ("scalar", np.float32(7)), ("empty", np.zeros((0, 3), np.float32))):
            np.testing.assert_array_equal(file.read(name).view(np.float32), expected)
        self.assertEqual(file.read("half").view(np.float16).tolist(), [1.0, -2.5, 65504.0])
        # 1 and -3 as bfloat16: the upper halves of 0x3f800000 and 0xc0400000.
        self.assertEqual(file.read("brain").tolist(), [[0x3f80, 0xc040]])
        self.assertEqual({name: view.storage.dtype for name, view in file.views.items()},
                         {"whole": "F32", "transposed": "F32", "inner": "F32", "half": "F16",
                          "brain": "BF16", "scalar": "F32", "empty": "F32"})


class RefusedTorchFileTest(ImporterCase):
    def write(self, state=None, **options):
        path = self.root / "pytorch_model.bin"
        torch_bin.save(path, {} if state is None else state, **options)
        return path

    def assert_file_refused(self, path, *words):
        with self.assertRaises(ImportRefused) as refused:
            TorchFile(path)
        for word in (path.name, *words):
            self.assertIn(word, str(refused.exception))

    def test_bfloat16_is_kept(self):
        codes = {name: values.view(np.uint16)  # which torch_bin takes as BF16's
                 for name, values in tiny_opt.make_weights().items()}
        result = self.run_import("hf", tiny_opt.write_folder(self.root / "opt", codes))
        self.assertEqual(result.returncode, 0, result.stderr)
        with safe_open(self.out / "model.safetensors", framework="np") as file:
            for name in codes:
                self.assertEqual(file.get_slice(f"model.{name}").get_dtype(), "BF16")
        last = list(codes.values())[-1]
        self.assertTrue((self.out / "model.safetensors").read_bytes().endswith(last.tobytes()))

    def test_a_pickle_that_runs_a_command_is_refused_and_not_run(self):
        mark = self.root / "ran"
        source = tiny_opt.write_folder(self.root / "opt", tiny_opt.make_weights())
        calls = ((os.system, (f"touch {mark}",)), (eval, (f"open({str(mark)!r}, 'w')",)),
                 (open, (str(mark), "w")))
        for function, arguments in calls:
            for protocol in (0, 2, 4):
                with self.subTest(function=function.__name__, protocol=protocol):
                    state = {"weight": torch_bin.Calls(function, *arguments)}
                    torch_bin.save(source / "pytorch_model.bin", {},
                                   pickled=torch_bin.dump(state, protocol))
                    self.assert_refused(self.run_import("hf", source), function.__name__,
                                        "nothing was run")
                    self.assertFalse(mark.exists())

    def test_an_attribute_of_an_allowed_name_is_refused(self):
        pickled = b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93."
        self.assert_file_refused(self.write(pickled=pickled), "collections.OrderedDict.fromkeys")

    def test_a_huge_memo_index_takes_no_memory(self):
        limit = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, limit[1]))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_AS, limit)
        self.assert_file_refused(self.write(pickled=b"\x80\x02}r\xff\xff\xff\x7f."),
                                 "expected a state dict")

    def test_other_storages_and_rebuilders_are_named(self):
        longs = {"position_ids": torch_bin.whole("0", np.zeros(2, np.int64))}
        self.assert_file_refused(self.write(longs), "torch.LongStorage")
        storage = torch_bin.Storage("0", np.zeros(2, np.float32), 2)
        parameter = torch_bin.Tensor(storage, (2,), (1,), rebuild="_rebuild_parameter")
        self.assert_file_refused(self.write({"weight": parameter}), "_rebuild_parameter")

    def test_a_value_that_is_no_tensor_is_named(self):
        for state in ({"step": 3}, {"model": {}}, {7: 3}, {}):
            self.assert_file_refused(self.write(state), "expected")

    def test_views_outside_their_storage_are_refused(self):
        values = np.zeros(12, np.float32)
        storage = torch_bin.Storage("0", values, 12)
        for shape, strides, offset in (((3, 4), (4, 1), 1), ((13,), (1,), 0), ((2,), (1 << 62,), 0),
                                       ((2,), (-1,), 1), ((1,), (1,), -1), ((2, 2), (1,), 0),
                                       ((1 << 40,), (0,), 0), ((2,), ("1",), 0),
                                       ((0, 1 << 62), (1, 1), 0), ((1,) * 9, (1,) * 9, 0)):
            with self.subTest(shape=shape, strides=strides, offset=offset):
                tensor = torch_bin.Tensor(storage, shape, strides, offset)
                self.assert_file_refused(self.write({"weight": tensor}), "tensor weight")

    def test_a_storage_of_another_size_is_refused(self):
        storage = torch_bin.Storage("0", np.zeros(12, np.float32), 1 << 40)
        tensor = torch_bin.Tensor(storage, (1 << 40,), (1,))
        self.assert_file_refused(self.write({"weight": tensor}), "48 bytes")

    def test_archives_that_torch_does_not_write_are_refused(self):
        state = {"weight": torch_bin.whole("0", np.zeros(2, np.float32))}
        self.assert_file_refused(self.write(state, compression=zipfile.ZIP_DEFLATED), "compressed")
        self.assert_file_refused(self.write(state, order=b"big"), "byteorder", "little")
        self.assert_file_refused(self.write(pickled=b"\x80\x02garbage"), "state dict")
        path = self.write(state)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("other/data.pkl", b"")
        self.assert_file_refused(path, "2 entries")
        path.write_bytes(path.read_bytes()[:200])
        self.assert_file_refused(path, "no zip archive")

    def test_the_format_before_pytorch_1_6_is_refused(self):
        self.assert_file_refused(FIXTURES / "legacy.bin", "no zip archive", "torch.save")


if __name__ == "__main__":
    unittest.main()
