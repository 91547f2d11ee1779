"""Presets and lists of schemes."""

import unittest

from tool_case import ToolCase

import nibble_tools.server  # noqa: F401, makes the stubs

from nibble.v1 import quantization_pb2
from nibble_client.fields import fill
from nibble_tools.failure import Failure
from nibble_tools.schemes import PRESETS, Scheme, read_schemes


def bits_of(fields):
    """Bits per weight of E2M1 with M2 in a square linear of 1024."""
    return 4 + 4 / fields["group_size"] + 16 * 2 * fields.get("lorc_rank", 0) / 1024


class PresetTest(unittest.TestCase):
    def schemes(self, name, group_size=256):
        return PRESETS[name](group_size, bits_of)

    def test_every_scheme_is_a_job_with_a_name_of_its_own(self):
        for name in PRESETS:
            schemes = self.schemes(name)
            self.assertEqual(len({scheme.name for scheme in schemes}), len(schemes))
            self.assertEqual([each.name for each in schemes if each.fields is None], ["W16A16"])
            specs = [fill(quantization_pb2.JobSpec, each.fields).SerializeToString(
                deterministic=True) for each in schemes if each.fields]
            self.assertEqual(len(set(specs)), len(specs), name)

    def test_the_papers_table(self):
        names = [scheme.name for scheme in self.schemes("paper-table-1")]
        self.assertEqual(names, [
            "W16A16", "W8A8 INT-INT", "W8A8 INT-FP", "W8A8 FP-FP", "W4A8 INT-INT", "W4A8 INT-FP",
            "W4A8 FP-FP", "W4A8 INT-INT LoRC", "W4A8 INT-FP LoRC", "W4A8 FP-FP LoRC"])
        by_name = {scheme.name: scheme.fields for scheme in self.schemes("paper-table-1", 64)}
        self.assertEqual(by_name["W4A8 INT-FP LoRC"], {
            "weights": "int4", "weights_asymmetric": True, "activations": "e4m3", "scale": "none",
            "group_size": 64, "act_order": False, "lorc_rank": 8})
        self.assertNotIn("weights_asymmetric", by_name["W8A8 FP-FP"])

    def test_constraints_differ_in_the_scale_alone(self):
        schemes = [each for each in self.schemes("constraints") if each.fields]
        self.assertEqual(len(schemes), 10)
        rest = {tuple(sorted((name, value) for name, value in each.fields.items()
                             if name not in ("scale", "m2_rounding", "lorc_rank")))
                for each in schemes}
        self.assertEqual(len(rest), 1)

    def test_lorc_is_compared_at_equal_bits(self):
        by_name = {scheme.name: scheme.fields for scheme in self.schemes("lorc") if scheme.fields}
        step = 16 * 2 / 1024  # of one rank
        pairs = 0
        for name, fields in by_name.items():
            if "bits as" in name:
                same = by_name[name.partition("bits as ")[2]]
                self.assertLessEqual(abs(bits_of(fields) - bits_of(same)), step / 2)
                self.assertEqual((fields["group_size"], same.get("lorc_rank", 0)), (256, 0))
                pairs += 1
        # Groups of 128 take half a rank's bits more, of 64 one and a half.
        self.assertEqual(pairs, 3)
        self.assertIn("LoRC 8, input metric", by_name)


class FileTest(ToolCase):
    def read(self, text):
        path = self.folder / "s.toml"
        path.write_text(text)
        return read_schemes(path)

    def test_defaults_are_in_every_scheme_that_has_fields(self):
        self.assertEqual(self.read("""
            [defaults]
            activations = "e4m3"
            group_size = 64
            [[scheme]]
            name = "W16A16"
            [[scheme]]
            name = "b"
            weights = "e2m1"
            group_size = 32
            """), [Scheme("W16A16", None), Scheme("b", {"activations": "e4m3", "group_size": 32,
                                                        "weights": "e2m1"})])

    def test_mistakes_are_named(self):
        good = '[[scheme]]\nname = "a"\nweights = "e2m1"\nactivations = "none"\n'
        self.assertEqual(len(self.read(good)), 1)
        for text, words in (
                ("name =", "expected TOML"), ("", "no scheme"), ("x = 1\n" + good, "found x"),
                ("scheme = 1", "expected"), ("scheme = [1]", "expected"),
                (good + "lorc = 8", "found lorc, expected one of"),
                (good.replace("e2m1", "fp4"), "weights: found 'fp4', expected one of none, e2m1"),
                (good + 'lorc_rank = "8"', "scheme 'a'"), (good + "lorc_rank = 1_000_000_000_000",
                                                           "scheme 'a'"),
                (good + 'exclude = "*.fc1"', "exclude: found '*.fc1', expected a list"),
                (good + 'model = "m"', "found model"), (good + good, "two schemes 'a'"),
                ('[[scheme]]\nweights = "e2m1"', "without a name"),
                ('[[scheme]]\nname = "a"\nweights = "e2m1"', "found no activations")):
            with self.subTest(text), self.assertRaises(Failure) as refusal:
                self.read(text)
            self.assertIn(words, str(refusal.exception))


if __name__ == "__main__":
    unittest.main()
