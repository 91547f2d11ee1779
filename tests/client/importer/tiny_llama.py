"""A LLaMA checkpoint made tiny: grouped heads, an untied head."""

import json

import numpy as np
from safetensors.numpy import save_file

HIDDEN, INNER, VOCAB, HEADS, KV_HEADS = 16, 24, 12, 4, 2
KV_WIDTH = HIDDEN // HEADS * KV_HEADS
CONFIG = {"model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
          "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
          "vocab_size": VOCAB}
LAYER = "model.layers.0."
SHAPES = {
    "model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,),
    "lm_head.weight": (VOCAB, HIDDEN), LAYER + "input_layernorm.weight": (HIDDEN,),
    LAYER + "post_attention_layernorm.weight": (HIDDEN,),
    LAYER + "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    LAYER + "self_attn.k_proj.weight": (KV_WIDTH, HIDDEN),
    LAYER + "self_attn.v_proj.weight": (KV_WIDTH, HIDDEN),
    LAYER + "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    LAYER + "mlp.gate_proj.weight": (INNER, HIDDEN), LAYER + "mlp.up_proj.weight": (INNER, HIDDEN),
    LAYER + "mlp.down_proj.weight": (HIDDEN, INNER)}


def make_weights():
    return {name: np.ones(shape, np.float16) for name, shape in SHAPES.items()}


def write_sharded(folder):
    """Two safetensors shards with their index, and a tokenizer.json."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    weights, weight_map = make_weights(), {}
    for number, names in enumerate((list(weights)[:5], list(weights)[5:]), 1):
        file = f"model-{number}.safetensors"
        save_file({name: weights[name] for name in names}, folder / file)
        weight_map.update((name, file) for name in names)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
