"""facebook/opt-1.3b's folder, made tiny: its files, names and fields."""

import json

import numpy as np
import torch_bin

HIDDEN, INNER, LAYERS, CONTEXT = 16, 32, 2, 24
TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "h", "i", "Ġ", "hi", "Ġhi", "1", "2", "!", "Ċ"]
VOCAB = 16  # some rows are nobody's, as in OPT
PREFIX = "decoder."
EMBEDDING = "decoder.embed_tokens.weight"
CONFIG = {
    "_remove_final_layer_norm": False, "activation_function": "relu",
    "architectures": ["OPTForCausalLM"], "bos_token_id": 2, "do_layer_norm_before": True,
    "eos_token_id": 2, "ffn_dim": INNER, "hidden_size": HIDDEN,
    "max_position_embeddings": CONTEXT, "model_type": "opt", "num_attention_heads": 2,
    "num_hidden_layers": LAYERS, "pad_token_id": 1, "torch_dtype": "float16",
    "vocab_size": VOCAB, "word_embed_proj_dim": HIDDEN}
SPECIAL = {name: {"content": content, "single_word": False, "lstrip": False, "rstrip": False,
                  "normalized": True}
           for name, content in (("bos_token", "</s>"), ("eos_token", "</s>"),
                                 ("unk_token", "</s>"), ("pad_token", "<pad>"))}
TOKENIZER_CONFIG = {
    **{name: {**token, "__type": "AddedToken"} for name, token in SPECIAL.items()},
    "errors": "replace", "add_prefix_space": False, "add_bos_token": True,
    "tokenizer_class": "GPT2Tokenizer"}


def shapes():
    ends = {"embed_tokens.weight": (VOCAB, HIDDEN), "embed_positions.weight": (CONTEXT + 2, HIDDEN),
            "final_layer_norm.weight": (HIDDEN,), "final_layer_norm.bias": (HIDDEN,)}
    linears = {"self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, HIDDEN),
               "self_attn.v_proj": (HIDDEN, HIDDEN), "self_attn.out_proj": (HIDDEN, HIDDEN),
               "fc1": (INNER, HIDDEN), "fc2": (HIDDEN, INNER)}
    for layer in range(LAYERS):
        for name, shape in linears.items():
            ends[f"layers.{layer}.{name}.weight"] = shape
            ends[f"layers.{layer}.{name}.bias"] = shape[:1]
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            ends[f"layers.{layer}.{norm}.weight"] = (HIDDEN,)
            ends[f"layers.{layer}.{norm}.bias"] = (HIDDEN,)
    return ends


def make_weights(seed=3):
    random = np.random.default_rng(seed)
    return {PREFIX + name: random.normal(size=shape).astype(np.float16)
            for name, shape in shapes().items()}


def write_tokenizer(folder, config, tokens=TOKENS):
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nh i\nĠ hi\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_folder(folder, weights):
    """Every file of the repository but the weights of other frameworks; one pytorch_model.bin."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text('{"bos_token_id": 2, "eos_token_id": 2}')
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL))
    write_tokenizer(folder, TOKENIZER_CONFIG)
    torch_bin.save_arrays(folder / "pytorch_model.bin", weights)
    return folder


def write_sharded(folder, shards):
    """`shards` has each shard's weights."""
    write_folder(folder, {"unused": np.zeros(1, np.float16)})
    (folder / "pytorch_model.bin").unlink()
    weight_map = {}
    for number, weights in enumerate(shards, 1):
        name = f"pytorch_model-{number:05}-of-{len(shards):05}.bin"
        torch_bin.save_arrays(folder / name, weights)
        weight_map.update((tensor, name) for tensor in weights)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
