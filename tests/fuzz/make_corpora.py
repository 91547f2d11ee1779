"""Makes tests/fuzz/corpora: small valid files from which the fuzzers start.

    python tests/fuzz/make_corpora.py
"""

import json
import pathlib
import struct

ROOT = pathlib.Path(__file__).parent / "corpora"
FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values())


def manifest(scale: str, weights: str = "e2m1", asymmetric: bool = False) -> bytes:
    spec = {"weights": {"format": weights, "asymmetric": asymmetric, "group_size": 32,
                        "scale": scale, "m2_rounding": "mse"},
            "activations": {"format": "e4m3", "asymmetric": False},
            "lorc_rank": 0, "excluded": []}
    return json.dumps({"format_version": 1, "spec": spec, "files": {}}).encode() + b"\0"


def tokenizer() -> bytes:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}+|\p{N}{1,3}|\s+|[^\s\p{L}\p{N}]+"},
             "behavior": "Isolated", "invert": False}
    vocabulary = {c: i for i, c in enumerate("abcdefghij\u0120\u010a0123")}
    vocabulary |= {"ab": 20, "abc": 21, "<s>": 22}
    return json.dumps({
        "added_tokens": [{"id": 22, "content": "<s>", "special": True, "lstrip": False,
                          "rstrip": False, "single_word": False, "normalized": False}],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            split, byte_level | {"use_regex": False}]},
        "post_processor": {"type": "TemplateProcessing",
                           "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                      {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [], "special_tokens": {
                               "<s>": {"id": "<s>", "ids": [22], "tokens": ["<s>"]}}},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["a b", "ab c"]}}).encode()


def chat_templates() -> dict[str, bytes]:
    """The templates of the tokenizers' chat cases, as tokenizer_config.json has them."""
    cases = json.loads((FIXTURES / "tokenizers" / "chat_cases.json").read_text())
    templates = list(dict.fromkeys(case["template"] for case in cases))
    configs = [{"chat_template": template, "bos_token": "<|begin|>"} for template in templates]
    configs.append({"bos_token": {"content": "<s>"},
                    "chat_template": [{"name": "tool_use", "template": "{{ tools }}"},
                                      {"name": "default", "template": templates[0]}]})
    return {f"chat_template/{number}": json.dumps(config).encode() + b"\0 Who\nare you? \xff"
            for number, config in enumerate(configs)}


def main() -> None:
    files = {
        "safetensors/empty": safetensors({}),
        "safetensors/types": safetensors({
            "a": ("F32", [2, 2], bytes(16)), "b": ("BF16", [3], bytes(6)),
            "c": ("F16", [1, 2, 2], bytes(8)), "d": ("U8", [0], b""), "e": ("I8", [5], bytes(5))}),
        "tokenizer/small": tokenizer() + b"\0abc ab 123\n\n\xff",
        "artifact/m2": manifest("m2") + safetensors({
            "w.weight_codes": ("U8", [8, 32], bytes(256)),
            "w.weight_row_scale": ("F32", [8], struct.pack("<8f", *[0.5] * 8)),
            "w.weight_k": ("U8", [8, 1], bytes(8))}),
        "artifact/m1": manifest("m1") + safetensors({
            "w.weight_codes": ("U8", [8, 32], bytes(256)),
            "w.weight_scale": ("I8", [8, 2], bytes(16))}),
        "artifact/asymmetric": manifest("none", "int4", True) + safetensors({
            "w.weight_codes": ("U8", [8, 32], bytes(256)),
            "w.weight_scale": ("F32", [8, 2], struct.pack("<16f", *[0.5] * 16)),
            "w.weight_zero": ("U8", [8, 2], bytes(16))}),
    }
    for model in ("llama_mqa_bias", "llama3_rope", "opt_post_norm_projected"):
        files[f"config/{model}"] = (FIXTURES / "models" / model / "config.json").read_bytes()
    for model in ("llama", "unused"):
        files[f"sentencepiece/{model}"] = (
            FIXTURES / "sentencepiece" / model / "tokenizer.model").read_bytes()
    files["tokenizer/absent_bos"] = files["tokenizer/small"].replace(b'"ids": [22]', b'"ids": [19]')
    for shard in ("one", "absent"):
        files[f"shards/{shard}"] = json.dumps({
            "metadata": {"total_size": 2},
            "weight_map": {"a": "one.safetensors", "b": f"{shard}.safetensors"}}).encode()
    files |= chat_templates()
    for name, content in files.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    main()
