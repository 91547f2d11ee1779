"""ProfileActivations of nibbled, against NumPy in double precision. NIBBLED is the daemon's path."""

import unittest

import numpy as np
from nibble.v1 import evaluation_pb2
from nibble_client import Client
from safetensors.numpy import load_file, save_file
from tiny_daemon import HEADS, HIDDEN, LAYERS, TinyDaemon, write_model

WINDOW, WINDOWS = 32, 3
OUTLIERS = {5: 60, 41: 45}  # channels of the norms' gains
SITES = ("QKV", "ATTENTION_OUTPUT", "MLP_INPUT", "MLP_OUTPUT")
# Values pass through two layers in f32: products sum up to 128 terms, so a few times 128 * 2^-24
# of the largest ones.
TOLERANCE = 3e-5


def write_outlier_model(folder):
    """The tiny model, but for gains that make outlier channels."""
    write_model(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if "layernorm" in name:
            for channel, gain in OUTLIERS.items():
                tensor[channel] = gain
    save_file(tensors, folder / "model.safetensors")


def rms_norm(x, gain):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain


def rotate(x):
    """Rotary embedding of [heads, tokens, width], halves against each other."""
    tokens, width = x.shape[1:]
    frequencies = 10000.0 ** (-np.arange(0, width, 2) / width)
    angles = np.outer(np.arange(tokens), frequencies)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles),
                           b * np.cos(angles) + a * np.sin(angles)], axis=-1)


def attend(q, k, v):
    heads = [np.stack(np.split(x, HEADS, axis=-1)) for x in (q, k, v)]
    q, k, v = rotate(heads[0]), rotate(heads[1]), heads[2]
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
    scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.concatenate(list(weights @ v), axis=-1)


def inputs_of(tensors, tokens):
    """What goes into each layer's four groups of linears, [tokens, channels] each."""
    x = tensors["model.embed_tokens.weight"][tokens]
    for layer in range(LAYERS):
        weight = {name.removeprefix(f"model.layers.{layer}.").removesuffix(".weight"): tensor
                  for name, tensor in tensors.items() if name.startswith(f"model.layers.{layer}.")}
        normed = rms_norm(x, weight["input_layernorm"])
        mixed = attend(*(normed @ weight[f"self_attn.{each}_proj"].T for each in "qkv"))
        x = x + mixed @ weight["self_attn.o_proj"].T
        middle = rms_norm(x, weight["post_attention_layernorm"])
        gate = middle @ weight["mlp.gate_proj"].T
        inner = gate / (1 + np.exp(-gate)) * (middle @ weight["mlp.up_proj"].T)
        x = x + inner @ weight["mlp.down_proj"].T
        yield normed, mixed, middle, inner


class ProfileTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        daemon = TinyDaemon()
        cls.addClassCleanup(daemon.stop)
        folder = daemon.data_root / "models/outliers"
        write_outlier_model(folder)
        text = bytes(97 + i * i % 26 for i in range(WINDOW * WINDOWS))
        (daemon.data_root / "corpora/text.txt").write_bytes(text)
        client = cls.enterClassContext(Client(daemon.address))
        cls.profiles = client.profile_activations(
            "outliers", "text.txt", window=WINDOW, windows=WINDOWS, compute="f32",
            outlier_ratio=8, placement_token=WINDOW + 3).profiles
        tensors = {name: tensor.astype(np.float64)
                   for name, tensor in load_file(folder / "model.safetensors").items()}
        windows = [list(inputs_of(tensors, list(text[start:start + WINDOW])))
                   for start in range(0, len(text), WINDOW)]
        cls.expected = [[np.concatenate([window[layer][site] for window in windows])
                         for site in range(len(SITES))] for layer in range(LAYERS)]

    def each(self):
        """Every profile, its values in double, and how far a value may be off."""
        self.assertEqual(len(self.profiles), LAYERS * len(SITES))
        for index, profile in enumerate(self.profiles):
            layer, site = divmod(index, len(SITES))
            self.assertEqual((profile.layer, profile.site), (layer, site + 1))
            x = self.expected[layer][site]
            with self.subTest(layer=layer, site=SITES[site]):
                yield profile, x, TOLERANCE * np.abs(x).max()

    def test_moments(self):
        for profile, x, bound in self.each():
            self.assertEqual((profile.tokens, profile.channels), x.shape)
            self.assertAlmostEqual(profile.mean, x.mean(), delta=bound)
            self.assertAlmostEqual(profile.standard_deviation, x.std(), delta=bound)
            kurtosis = ((x - x.mean()) ** 4).mean() / x.var() ** 2
            self.assertAlmostEqual(profile.kurtosis / kurtosis, 1, delta=8 * TOLERANCE)

    def test_quantiles_and_token_ranges(self):
        for profile, x, bound in self.each():
            self.assertAlmostEqual(profile.min, x.min(), delta=bound)
            self.assertAlmostEqual(profile.max, x.max(), delta=bound)
            ranges = x.max(1) - x.min(1)
            for found, values in ((profile.quantiles, x), (profile.token_range_quantiles, ranges)):
                probabilities = [quantile.probability for quantile in found]
                np.testing.assert_allclose([quantile.value for quantile in found],
                                           np.quantile(values, probabilities), rtol=0,
                                           atol=2 * bound)

    def test_histogram(self):
        """Counted from below, a value that is off by `bound` may lie on an edge's other side."""
        for profile, x, bound in self.each():
            edges = np.linspace(profile.histogram.min, profile.histogram.max, 257)[1:-1]
            found = np.cumsum(profile.histogram.counts)
            self.assertEqual(found[-1], x.size)
            values = np.sort(x, axis=None)
            least = np.searchsorted(values, edges - bound)
            most = np.searchsorted(values, edges + bound)
            self.assertTrue(((least <= found[:-1]) & (found[:-1] <= most)).all())
            # The bound is far below a bin's width, so few values are in doubt.
            self.assertLess((most - least).sum(), x.size * 0.2)

    def test_outlier_channels(self):
        for profile, x, _ in self.each():
            magnitudes = np.abs(x).max(0)
            ratios = magnitudes / np.median(magnitudes)
            channels = [each for each in np.argsort(-ratios) if ratios[each] > 8]
            if profile.channels == HIDDEN and profile.site != 2:
                self.assertEqual(set(channels), set(OUTLIERS))
            self.assertEqual([each.channel for each in profile.outlier_channels], channels)
            for outlier in profile.outlier_channels:
                self.assertAlmostEqual(outlier.ratio / ratios[outlier.channel], 1,
                                       delta=8 * TOLERANCE)

    def test_placements(self):
        for profile, x, bound in self.each():
            values = x[WINDOW + 3]
            integer, e4m3, e5m2 = profile.placements
            for placement in (integer, e4m3, e5m2):
                np.testing.assert_allclose(placement.values, values, rtol=0, atol=bound)
                error = np.subtract(placement.rounded, placement.values)
                self.assertAlmostEqual(placement.mean_squared_error / (error ** 2).mean(), 1,
                                       delta=1e-6)
                relative = np.linalg.norm(error) / np.linalg.norm(placement.values)
                self.assertAlmostEqual(placement.relative_error / relative, 1, delta=1e-6)
            span = values.max() - values.min()
            self.assertAlmostEqual(integer.scale / (span / 255), 1, delta=8 * TOLERANCE)
            self.assertIn(integer.zero_point, (round(-values.min() / span * 255) + each
                                               for each in (-1, 0, 1)))
            self.assertAlmostEqual(e4m3.scale / (np.abs(values).max() / 448), 1,
                                   delta=8 * TOLERANCE)
            self.assertAlmostEqual(e5m2.scale / (np.abs(values).max() / 57344), 1,
                                   delta=8 * TOLERANCE)
            # Steps of an integer are equal; an E4M3 value errs by at most 1/16 of itself, or half a
            # step of 2^-9 below the normal numbers; E5M2 by 1/8 or half of 2^-16.
            kept = np.asarray(placement.values, np.float64)
            off = np.abs(np.subtract(integer.rounded, kept))
            self.assertLessEqual(off.max(), integer.scale * 0.51)
            for placement, part, step in ((e4m3, 1 / 16, 2.0 ** -9), (e5m2, 1 / 8, 2.0 ** -16)):
                off = np.abs(np.subtract(placement.rounded, kept))
                allowed = np.maximum(np.abs(kept) * part, placement.scale * step / 2)
                self.assertTrue((off <= allowed * (1 + 1e-5)).all())

    def test_floating_point_places_a_vector_with_outliers_better(self):
        """The paper's figure 2."""
        for profile in self.profiles:
            if profile.site in (evaluation_pb2.ACTIVATION_SITE_QKV,
                                evaluation_pb2.ACTIVATION_SITE_MLP_INPUT):
                integer, e4m3, _ = profile.placements
                common = [i for i in range(HIDDEN) if i not in OUTLIERS]

                def error(placement):
                    return np.linalg.norm([placement.rounded[i] - placement.values[i]
                                           for i in common])
                self.assertLess(error(e4m3), error(integer))


if __name__ == "__main__":
    unittest.main()
