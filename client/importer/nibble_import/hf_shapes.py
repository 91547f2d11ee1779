"""The tensors that config.json asks for, held against those of the checkpoint."""

from nibble_import.folder import ImportRefused

EMBEDDING = "embed_tokens.weight"
PREFIXES = {"llama": ("model.", ""), "opt": ("model.decoder.", "decoder.")}
OPT_POSITION_OFFSET = 2  # its positions begin at row 2


def check_shapes(config, shapes):
    """`shapes` has every tensor's by name. Raises ImportRefused for the first that the family needs
    and that is not there, or is of another shape than config.json gives it."""
    opt = config["model_type"] == "opt"
    prefixes = PREFIXES[config["model_type"]]
    prefix = next((prefix for prefix in prefixes if prefix + EMBEDDING in shapes), prefixes[0])
    for name, expected in (opt_tensors if opt else llama_tensors)(config, prefix):
        if name not in shapes:
            raise ImportRefused(f"tensor {name}: not found, expected the shape {list(expected)}, "
                                "by config.json")
        if tuple(shapes[name]) != expected:
            raise ImportRefused(f"tensor {name}: found the shape {list(shapes[name])}, "
                                f"expected {list(expected)}, by config.json")


def llama_tensors(config, prefix):
    hidden, inner = count(config, "hidden_size"), count(config, "intermediate_size")
    heads, vocab = count(config, "num_attention_heads"), count(config, "vocab_size")
    head_dim = count(config, "head_dim", hidden // heads)
    q_width, kv_width = heads * head_dim, count(config, "num_key_value_heads", heads) * head_dim
    linears = {"self_attn.q_proj": (q_width, hidden), "self_attn.k_proj": (kv_width, hidden),
               "self_attn.v_proj": (kv_width, hidden), "self_attn.o_proj": (hidden, q_width),
               "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
               "mlp.down_proj": (hidden, inner)}
    yield prefix + EMBEDDING, (vocab, hidden)
    for layer in range(count(config, "num_hidden_layers")):
        base = f"{prefix}layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{base}{norm}.weight", (hidden,)
        for name, shape in linears.items():
            bias = "mlp_bias" if name.startswith("mlp.") else "attention_bias"
            yield from linear(base + name, shape, config.get(bias))
    yield f"{prefix}norm.weight", (hidden,)
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", (vocab, hidden)


def opt_tensors(config, prefix):
    hidden, inner = count(config, "hidden_size"), count(config, "ffn_dim")
    vocab, width = count(config, "vocab_size"), count(config, "word_embed_proj_dim", hidden)
    positions = count(config, "max_position_embeddings", 2048) + OPT_POSITION_OFFSET
    linears = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (hidden, hidden),
               "self_attn.v_proj": (hidden, hidden), "self_attn.out_proj": (hidden, hidden),
               "fc1": (inner, hidden), "fc2": (hidden, inner)}
    yield prefix + EMBEDDING, (vocab, width)
    yield f"{prefix}embed_positions.weight", (positions, hidden)
    if width != hidden:
        yield f"{prefix}project_in.weight", (hidden, width)
        yield f"{prefix}project_out.weight", (width, hidden)
    for layer in range(count(config, "num_hidden_layers")):
        base = f"{prefix}layers.{layer}."
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            yield from linear(base + norm, (hidden,), bias=True)
        for name, shape in linears.items():
            yield from linear(base + name, shape, config.get("enable_bias", True))
    if config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm"):
        yield from linear(f"{prefix}final_layer_norm", (hidden,), bias=True)
    if not config.get("tie_word_embeddings", True):
        yield "lm_head.weight", (vocab, width)


def linear(name, shape, bias):
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def count(config, field, default=None):
    value = config.get(field)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        found = "nothing" if value is None else repr(value)[:80]
        raise ImportRefused(f"config.json: {field}: found {found}, expected a whole number from 1")
    return value
