"""K-quants against ggml's own loops (ggml-quants.c), written out here a number at a time.

The blocks are random bytes with scales that are powers of two, so that every product is exact in
float32 and the comparison needs no tolerance.
"""

import unittest

import gguf
import numpy as np
from importer_case import ImporterCase
from safetensors.numpy import load_file
from tiny_gguf import HEADS, HIDDEN, INNER, llama_cpp_permute, make_weights, write_gguf

TYPES = gguf.GGMLQuantizationType
BLOCK = 256


def half_at(block, at):
    return float(np.frombuffer(bytes(block[at:at + 2]), np.float16)[0])


def q2_k(block):
    scales, quants, d, least = block[:16], block[16:80], half_at(block, 80), half_at(block, 82)
    out = []
    for half in range(2):
        for shift in range(0, 8, 2):
            for part in range(2):
                scale = scales[8 * half + shift + part]
                for i in range(16):
                    quant = quants[32 * half + 16 * part + i] >> shift & 3
                    out.append(d * (scale & 15) * quant - least * (scale >> 4))
    return out


def q3_k(block):
    high, quants, packed, d = block[:32], block[32:96], block[96:108], half_at(block, 108)
    scales = [(packed[i % 8] >> 4 * (i // 8) & 15 | (packed[8 + i % 4] >> 2 * (i // 4) & 3) << 4) - 32
              for i in range(16)]
    out = []
    for half in range(2):
        for j in range(4):
            for part in range(2):
                for i in range(16):
                    low = quants[32 * half + 16 * part + i] >> 2 * j & 3
                    bit = high[16 * part + i] >> (4 * half + j) & 1
                    out.append(d * scales[8 * half + 2 * j + part] * (low - (0 if bit else 4)))
    return out


def scale_and_min(packed, j):
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    return (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4,
            packed[j + 4] >> 4 | packed[j] >> 6 << 4)


def q4_k(block):
    d, least, packed, quants = half_at(block, 0), half_at(block, 2), block[4:16], block[16:144]
    out = []
    for j in range(8):
        scale, lowest = scale_and_min(packed, j)
        for i in range(32):
            quant = quants[32 * (j // 2) + i] >> 4 * (j % 2) & 15
            out.append(d * scale * quant - least * lowest)
    return out


def q5_k(block):
    d, least, packed = half_at(block, 0), half_at(block, 2), block[4:16]
    high, quants = block[16:48], block[48:176]
    out = []
    for j in range(8):
        scale, lowest = scale_and_min(packed, j)
        for i in range(32):
            quant = quants[32 * (j // 2) + i] >> 4 * (j % 2) & 15
            out.append(d * scale * (quant + 16 * (high[i] >> j & 1)) - least * lowest)
    return out


def q6_k(block):
    low, high, d = block[:128], block[128:192], half_at(block, 208)
    scales = np.frombuffer(bytes(block[192:208]), np.int8).tolist()
    out = []
    for half in range(2):
        for quarter in range(4):
            for i in range(32):
                bits = low[64 * half + 32 * (quarter % 2) + i] >> 4 * (quarter // 2) & 15
                quant = (bits | (high[32 * half + i] >> 2 * quarter & 3) << 4) - 32
                out.append(d * scales[8 * half + 2 * quarter + i // 16] * quant)
    return out


# Type -> bytes of a block, where its float16 scales lie, ggml's loop.
KINDS = {TYPES.Q2_K: (84, (80, 82), q2_k), TYPES.Q3_K: (110, (108,), q3_k),
         TYPES.Q4_K: (144, (0, 2), q4_k), TYPES.Q5_K: (176, (0, 2), q5_k),
         TYPES.Q6_K: (210, (208,), q6_k)}


def random_blocks(kind, rows, seed):
    """One block a row: uint8 [rows, bytes], and the loop's values as float16 [rows, 256]."""
    size, scales, loop = KINDS[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows, size), dtype=np.uint8)
    for at in scales:
        values = 2.0 ** random.integers(-9, -4, rows)
        blocks[:, at:at + 2] = values.astype(np.float16)[:, None].view(np.uint8)
    expected = [loop(block) for block in blocks.tolist()]
    return blocks, np.array(expected, np.float32).astype(np.float16)


class KQuantsTest(ImporterCase):
    def test_every_k_quant_has_ggmls_values(self):
        self.assertEqual(HIDDEN, BLOCK)
        for kind in KINDS:
            with self.subTest(kind.name):
                self.out = self.root / "models" / kind.name
                up, up_values = random_blocks(kind, INNER, seed=11)
                query, query_values = random_blocks(kind, HIDDEN, seed=12)
                write_gguf(self.root / "k.gguf", make_weights(seed=7),
                           raw={"blk.0.ffn_up": (up, kind), "blk.1.attn_q": (query, kind)})
                result = self.run_import("gguf", self.root / "k.gguf")
                self.assertEqual(result.returncode, 0, result.stderr)
                tensors = load_file(self.out / "model.safetensors")
                np.testing.assert_array_equal(tensors["model.layers.0.mlp.up_proj.weight"],
                                              up_values)
                np.testing.assert_array_equal(
                    llama_cpp_permute(tensors["model.layers.1.self_attn.q_proj.weight"], HEADS),
                    query_values)

    def test_a_type_without_dequantization_is_named(self):
        values = np.zeros((INNER, HIDDEN), np.int32)
        write_gguf(self.root / "int.gguf", make_weights(seed=7),
                   raw={"blk.0.ffn_up": (values, TYPES.I32)})
        self.assert_refused(self.run_import("gguf", self.root / "int.gguf"),
                            "blk.0.ffn_up.weight", "I32", "K-quant")


if __name__ == "__main__":
    unittest.main()
