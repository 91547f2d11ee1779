"""A daemon with a small model, for tests that call it from Python.

NIBBLED is the daemon's path.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

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


class TinyDaemon:
    """nibbled on free loopback ports, with the model "tiny" in a temporary data root."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        self.data_root = Path(self._folder.name)
        write_model(self.data_root / "models/tiny")
        self._process = subprocess.Popen(
            [os.environ["NIBBLED"], "--data-root", self.data_root, "--listen", "127.0.0.1:0",
             "--metrics-listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
        line = self._process.stdout.readline()
        if not line.startswith("listening grpc="):
            self.stop()
            raise RuntimeError(f"nibbled printed {line!r}, expected its addresses")
        self.address = line.split()[1].removeprefix("grpc=")

    def stop(self):
        self._process.terminate()
        self._process.wait(timeout=60)
        self._process.stdout.close()
        self._folder.cleanup()
