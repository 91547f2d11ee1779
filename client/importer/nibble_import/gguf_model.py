"""A LLaMA-architecture GGUF file as a Hugging Face folder with float16 weights."""

import math
from pathlib import Path

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from nibble_import import gguf_tokenizer
from nibble_import.folder import ImportRefused, staged, write_json
from nibble_import.gguf_metadata import COUNT, NUMBER, TEXT, TEXTS, Metadata
from nibble_import.safetensors_writer import Tensor, write_model

TOP_LEVEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROPE_FACTORS = "rope_freqs.weight"


def import_gguf(source, out_dir):
    """Raises ImportRefused when `source` is not a GGUF file of the LLaMA architecture."""
    source = Path(source)
    reader = open_gguf(source)
    metadata = Metadata(reader, source)
    architecture = metadata.need("general.architecture", TEXT)
    if architecture != "llama":
        raise ImportRefused(f"{source}: architecture is {architecture}, expected llama")
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    config = make_config(metadata, by_name)
    with staged(out_dir) as folder:
        write_json(folder / "config.json", config)
        gguf_tokenizer.write_tokenizer(metadata, folder)
        write_weights(by_name, config, folder)


def open_gguf(source):
    if not source.is_file():
        raise ImportRefused(f"{source}: not found, expected a .gguf file")
    try:
        return GGUFReader(source)
    except Exception as error:  # a malformed file meets many kinds of error in the reader
        raise ImportRefused(f"{source}: {error}, expected a whole GGUF file") from error


def make_config(metadata, tensors):
    heads = metadata.need("llama.attention.head_count", COUNT)
    kv_heads = metadata.get("llama.attention.head_count_kv", COUNT, heads)
    if heads == 0 or kv_heads == 0:
        raise ImportRefused(f"llama.attention.head_count is {heads}, head_count_kv {kv_heads}, "
                            "expected 1 or more")
    hidden = metadata.need("llama.embedding_length", COUNT)
    head_dim = metadata.get("llama.attention.key_length", COUNT, hidden // heads)
    rope_dim = metadata.get("llama.rope.dimension_count", COUNT, head_dim)
    if rope_dim != head_dim:
        raise ImportRefused(
            f"llama.rope.dimension_count is {rope_dim}, expected the head's {head_dim}")
    if head_dim % 2 != 0:
        raise ImportRefused(f"a head's width is {head_dim}, expected an even number")
    if metadata.get("llama.expert_count", COUNT, 0):
        raise ImportRefused("llama.expert_count is not 0, expected a dense model")
    theta = metadata.get("llama.rope.freq_base", NUMBER, 10000.0)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float16",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": metadata.need("llama.feed_forward_length", COUNT),
        "num_hidden_layers": metadata.need("llama.block_count", COUNT),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": metadata.need("llama.context_length", COUNT),
        "rms_norm_eps": metadata.need("llama.attention.layer_norm_rms_epsilon", NUMBER),
        "rope_theta": theta,
        "rope_scaling": rope_scaling(metadata, tensors, theta, head_dim),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in tensors,
        "vocab_size": len(metadata.need("tokenizer.ggml.tokens", TEXTS)),
        "bos_token_id": metadata.token_id("bos"),
        "eos_token_id": metadata.token_id("eos"),
        "pad_token_id": metadata.token_id("padding"),
    }
    return config


def rope_scaling(metadata, tensors, theta, head_dim):
    """Llama 3's scaling, which GGUF keeps as one divisor a frequency; None without one."""
    kind = metadata.get("llama.rope.scaling.type", TEXT, "none")
    if kind not in ("none", "llama3"):
        raise ImportRefused(f"llama.rope.scaling.type is {kind}, expected none")
    if ROPE_FACTORS not in tensors:
        return None
    found = dequantize(tensors[ROPE_FACTORS].data, tensors[ROPE_FACTORS].tensor_type)
    scaling = {
        "rope_type": "llama3",
        "factor": float(found.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = llama3_factors(scaling, theta, head_dim)
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-4):
        raise ImportRefused(f"{ROPE_FACTORS}: other frequencies than Llama 3's, expected those")
    return scaling


def llama3_factors(scaling, theta, head_dim):
    """Divisors of the rotary frequencies, [head_dim / 2], as llama.cpp writes them."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((context / wavelength - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / scaling["factor"] + smooth)


def hf_name(name, layers):
    if name in TOP_LEVEL:
        return TOP_LEVEL[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in IN_LAYER and parts[1].isdigit():
        if int(parts[1]) < layers:
            return f"model.layers.{parts[1]}.{IN_LAYER[parts[2]]}.{parts[3]}"
    raise ImportRefused(f"tensor {name}: not known, expected the LLaMA architecture's names")


def expected_shapes(config):
    """Shape of every tensor that the model needs."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    in_layer = {"attn_norm": (hidden,), "attn_q": (q, hidden), "attn_k": (kv, hidden),
                "attn_v": (kv, hidden), "attn_output": (hidden, q), "ffn_norm": (hidden,),
                "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
    shapes = {"token_embd.weight": (config["vocab_size"], hidden), "output_norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["output.weight"] = shapes["token_embd.weight"]
    for layer in range(config["num_hidden_layers"]):
        shapes.update((f"blk.{layer}.{part}.weight", in_layer[part]) for part in IN_LAYER)
    return shapes


def shape_of(tensor):
    return tuple(int(size) for size in reversed(tensor.shape))


def check_tensors(tensors, config):
    """Raises ImportRefused unless every tensor that the model needs is there in its shape."""
    layers = config["num_hidden_layers"]
    if layers * len(IN_LAYER) > len(tensors):
        raise ImportRefused(f"llama.block_count is {layers}, expected at most "
                            f"{len(tensors) // len(IN_LAYER)}, what {len(tensors)} tensors make")
    for name, shape in expected_shapes(config).items():
        if name not in tensors:
            raise ImportRefused(f"tensor {name}: not found, expected {layers} whole layers, "
                                "token_embd and output_norm")
        if shape_of(tensors[name]) != shape:
            refuse_shape(tensors[name], shape)
    for name, bias in tensors.items():
        weight = tensors.get(f"{name.removesuffix('.bias')}.weight")
        if weight is not None and shape_of(bias) != shape_of(weight)[:1]:
            refuse_shape(bias, shape_of(weight)[:1])


def refuse_shape(tensor, expected):
    raise ImportRefused(f"tensor {tensor.name}: found the shape {shape_of(tensor)}, "
                        f"expected {expected}")


def unpermute(weight, heads):
    """Undoes llama.cpp's order of a head's rows: pairs back to halves. [rows, ...] -> same."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def to_half(tensor, config):
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        raise ImportRefused(
            f"tensor {tensor.name}: type {tensor.tensor_type.name} has no dequantization, "
            "expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or a K-quant") from None
    if ".attn_q." in tensor.name:
        values = unpermute(values, config["num_attention_heads"])
    elif ".attn_k." in tensor.name:
        values = unpermute(values, config["num_key_value_heads"])
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise ImportRefused(
            f"tensor {tensor.name}: a value that is not finite in float16, expected at most 65504")
    return np.ascontiguousarray(half)


def write_weights(tensors, config, folder):
    check_tensors(tensors, config)
    names = {name: hf_name(name, config["num_hidden_layers"])
             for name in tensors if name != ROPE_FACTORS}
    write_model([Tensor(new, "F16", shape_of(tensors[name]),
                        lambda name=name: to_half(tensors[name], config))
                 for name, new in names.items()], folder)
