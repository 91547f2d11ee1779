"""A tiny LLaMA as a GGUF file, by the same package that llama.cpp's tools use."""

import gguf
import numpy as np
from gguf.quants import quantize

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 256, 96, 2, 4, 2
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


def make_weights(seed, vocab=len(TOKENS)):
    random = np.random.default_rng(seed)
    weights = {"token_embd": random.normal(size=(vocab, HIDDEN)),
               "output_norm": random.normal(size=HIDDEN)}
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            weights[f"blk.{layer}.{norm}"] = random.normal(size=HIDDEN)
        for name, shape in layer_shapes().items():
            weights[f"blk.{layer}.{name}"] = random.normal(size=shape)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def add_byte_level(writer, model="gpt2", pre="smollm"):
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)


def write_gguf(path, weights, kind=gguf.GGMLQuantizationType.F16, architecture="llama",
               skip=(), raw=None, add_tokenizer=None, forge=None, **tokenizer):
    """Writes q and k as llama.cpp does; the linears' type is `kind`. `raw` has whole tensors' bytes
    and type by name, `forge` values that go over the metadata's."""
    raw = raw or {}
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    (add_tokenizer or add_byte_level)(writer, **tokenizer)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for key, value in (forge or {}).items():
        writer.kv_data[0].pop(key, None)
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for name, value in weights.items():
        if name in skip:
            continue
        if name.endswith("attn_q"):
            value = llama_cpp_permute(value, HEADS)
        elif name.endswith("attn_k"):
            value = llama_cpp_permute(value, KV_HEADS)
        if name in raw:
            data, raw_kind = raw[name]
            writer.add_tensor(f"{name}.weight", data, raw_dtype=raw_kind)
        elif "norm" in name:
            writer.add_tensor(f"{name}.weight", value)
        else:
            writer.add_tensor(f"{name}.weight", quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
