"""nibble from Python as anybody would call it: stubs made of proto/, and the reflection service.

NIBBLED is the daemon's path.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import grpc
import numpy as np
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase)
from grpc_tools import protoc
from safetensors.numpy import save_file

PROTO = Path(__file__).resolve().parents[3] / "proto"
SERVICES = ("EvaluationService", "InferenceService", "ModelService", "QuantizationService")
HIDDEN, INNER, LAYERS, HEADS, VOCAB = 64, 128, 2, 4, 256


def byte_vocabulary():
    """GPT-2's byte-level alphabet, one token a byte."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return {chr(byte if byte in printable else next(others)): byte for byte in range(256)}


def write_model(folder):
    """A LLaMA of two layers with random weights (seed 1) and a tokenizer of bytes."""
    random = np.random.default_rng(1)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
              "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
              "num_key_value_heads": HEADS, "intermediate_size": INNER, "vocab_size": VOCAB,
              "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "hidden_act": "silu", "tie_word_embeddings": True, "bos_token_id": 0,
              "eos_token_id": 0, "torch_dtype": "float32"}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
                 "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None,
                 "decoder": byte_level,
                 "model": {"type": "BPE", "dropout": None, "unk_token": None,
                           "continuing_subword_prefix": None, "end_of_word_suffix": None,
                           "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                           "vocab": byte_vocabulary(), "merges": []}}
    shapes = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, HIDDEN),
              "self_attn.v_proj": (HIDDEN, HIDDEN), "self_attn.o_proj": (HIDDEN, HIDDEN),
              "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
              "mlp.down_proj": (HIDDEN, INNER)}
    tensors = {"model.embed_tokens.weight": random.normal(size=(VOCAB, HIDDEN)),
               "model.norm.weight": np.ones(HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = np.ones(HIDDEN)
        for name, shape in shapes.items():
            tensors[f"{prefix}{name}.weight"] = random.normal(size=shape) / np.sqrt(shape[1])
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    save_file({name: value.astype(np.float32) for name, value in tensors.items()},
              folder / "model.safetensors")


def make_stubs(folder):
    """Generates the stubs of every proto into `folder`, as grpc_tools' manual says."""
    files = [str(path.relative_to(PROTO)) for path in sorted((PROTO / "nibble/v1").glob("*.proto"))]
    includes = [f"-I{PROTO}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
    if protoc.main(["protoc", *includes, f"--python_out={folder}", f"--grpc_python_out={folder}",
                    *files]) != 0:
        raise RuntimeError("protoc failed")
    sys.path.insert(0, str(folder))


def stubs(name):
    return (importlib.import_module(f"nibble.v1.{name}_pb2"),
            importlib.import_module(f"nibble.v1.{name}_pb2_grpc"))


class StubClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        root = Path(folder.name)
        (root / "stubs").mkdir()
        make_stubs(root / "stubs")
        write_model(root / "data/models/tiny")
        cls.daemon = subprocess.Popen(
            [os.environ["NIBBLED"], "--data-root", root / "data", "--listen", "127.0.0.1:0",
             "--metrics-listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
        cls.addClassCleanup(cls.stop)
        line = cls.daemon.stdout.readline()
        if not line.startswith("listening grpc="):
            raise RuntimeError(f"nibbled printed {line!r}, expected its addresses")
        cls.channel = grpc.insecure_channel(line.split()[1].removeprefix("grpc="))
        cls.addClassCleanup(cls.channel.close)

    @classmethod
    def stop(cls):
        cls.daemon.terminate()
        cls.daemon.wait(timeout=60)
        cls.daemon.stdout.close()

    def test_reflection_lists_and_describes_the_services(self):
        database = ProtoReflectionDescriptorDatabase(self.channel)
        listed = set(database.get_services())
        self.assertLessEqual({f"nibble.v1.{name}" for name in SERVICES}, listed)
        self.assertIn("grpc.health.v1.Health", listed)
        file = database.FindFileContainingSymbol("nibble.v1.QuantizationService")
        self.assertIn("SubmitJob", [method.name for method in file.service[0].method])

    def test_a_job_runs_and_its_model_streams_tokens(self):
        quantization, quantization_grpc = stubs("quantization")
        inference, inference_grpc = stubs("inference")
        model, model_grpc = stubs("model")
        common, _ = stubs("common")

        jobs = quantization_grpc.QuantizationServiceStub(self.channel)
        job = jobs.SubmitJob(quantization.SubmitJobRequest(spec=quantization.JobSpec(
            model="tiny", output="tiny-w4a8", weights=common.FORMAT_E2M1,
            activations=common.ACTIVATION_FORMAT_E4M3, group_size=32,
            method=common.METHOD_RTN)), timeout=60)
        events = list(jobs.WatchJob(quantization.WatchJobRequest(job_id=job.id), timeout=120))
        self.assertEqual([event.sequence for event in events], list(range(1, len(events) + 1)))
        self.assertEqual(events[-1].state, quantization.JOB_STATE_SUCCEEDED, events[-1])

        loaded = model_grpc.ModelServiceStub(self.channel).LoadModel(
            model.LoadModelRequest(name="tiny-w4a8"), timeout=60)
        self.assertEqual(loaded.versions[-1].state, model.MODEL_STATE_LOADED)
        chunks = list(inference_grpc.InferenceServiceStub(self.channel).Generate(
            inference.GenerateRequest(model="tiny-w4a8", text="nibble", max_tokens=8,
                                      ignore_eos=True,
                                      sampling=inference.Sampling(temperature=0)), timeout=60))
        self.assertEqual(sum(len(chunk.token_ids) for chunk in chunks), 8)
        self.assertEqual(chunks[-1].usage.completion_tokens, 8)
        self.assertEqual(chunks[-1].finish_reason, inference.FINISH_REASON_LENGTH)

    def test_a_refusal_names_the_field(self):
        quantization, quantization_grpc = stubs("quantization")
        jobs = quantization_grpc.QuantizationServiceStub(self.channel)
        with self.assertRaises(grpc.RpcError) as refused:
            jobs.SubmitJob(quantization.SubmitJobRequest(
                spec=quantization.JobSpec(model="../tiny", output="x")), timeout=60)
        self.assertEqual(refused.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("model", refused.exception.details())


if __name__ == "__main__":
    unittest.main()
