"""nibble report against a scripted server: what the page says and shows."""

import base64
import io
import re
import unittest

import grpc
import numpy as np
from google.protobuf import json_format
from PIL import Image
from tool_case import ToolCase

import nibble_tools.server  # noqa: F401, makes the stubs

from fake_server import Abort, FakeServer
from nibble.v1 import common_pb2, evaluation_pb2, model_pb2, quantization_pb2
from nibble_tools import profile_section

Code = grpc.StatusCode
PROBABILITIES = (0, 0.01, 0.25, 0.5, 0.75, 0.99, 1)


def layer_reports(layers):
    reports = []
    for layer in range(layers):
        report = quantization_pb2.LayerReport(layer=layer, seconds=2, peak_host_bytes=3 << 30)
        for name in ("self_attn.q_proj", "mlp.down_proj"):
            report.linears.add(name=f"model.layers.{layer}.{name}",
                               output_error=0.001 * (layer + 1), weight_error=0.125, clamped_groups=7 * (layer == 1), damping=0.01)
        reports.append(report)
    return reports


def make_job(layers, **fields):
    return quantization_pb2.Job(
        id="job-1", state=quantization_pb2.JOB_STATE_SUCCEEDED, attempt=1,
        spec=quantization_pb2.JobSpec(
            model="source", output="made", weights=common_pb2.FORMAT_E2M1, group_size=64,
            act_order=False, exclude=["*.0.*", "*<down>"],
            corpus=common_pb2.CorpusRef(name="c4.jsonl", last_text=700)),
        summary=quantization_pb2.JobSummary(
            linear_bits_per_weight=4.125, artifact_bytes=3 << 20, source_bytes=8 << 20,
            seconds=61.5, relative_error=0.0021),
        layers=layer_reports(layers), **fields)


def make_profile(layer, site):
    """Of random values (seed: layer and site) with an outlier channel 7 at the norms' places."""
    values = np.random.default_rng([layer, site]).normal(size=(50, 32))
    if site in (1, 3):
        values[:, 7] *= 40
    profile = evaluation_pb2.ActivationProfile(
        layer=layer, site=site, tokens=50, channels=32, min=values.min(), max=values.max(),
        mean=values.mean(), standard_deviation=values.std(),
        kurtosis=((values - values.mean()) ** 4).mean() / values.var() ** 2)
    for quantiles, of in ((profile.quantiles, values),
                          (profile.token_range_quantiles, np.ptp(values, axis=1))):
        for probability in PROBABILITIES:
            quantiles.add(probability=probability, value=np.quantile(of, probability))
    profile.histogram.min, profile.histogram.max = profile.min, profile.max
    profile.histogram.counts.extend(np.histogram(values, 64)[0].tolist())
    if site in (1, 3):
        profile.outlier_channels.add(channel=7, max_magnitude=40, ratio=31.5)
    for number in (4, 2, 3):
        profile.placements.add(format={"format": number}, values=values[3],
                               rounded=np.round(values[3], 1), relative_error=0.01 * number)
    return profile


class ReportTest(ToolCase):
    def setUp(self):
        super().setUp()
        self.server = FakeServer()
        self.addCleanup(self.server.stop)
        self.server.handlers.update(GetJob=self.absent, GetModel=self.absent)

    def absent(self, request, context):
        raise Abort(Code.NOT_FOUND, "there is none")

    def report(self, *words):
        self.run_tool("report", *words, "--html", "r.html", "--server", self.server.address)
        return (self.folder / "r.html").read_text()

    def pictures(self, page):
        """Every picture decoded, so that it is one."""
        found = [Image.open(io.BytesIO(base64.b64decode(data)))
                 for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
        for picture in found:
            picture.load()
            self.assertEqual(picture.width, 1210)
            pixels = np.asarray(picture.convert("L"))
            self.assertGreater((pixels < 200).mean(), 0.002)  # something is drawn
            # Nothing is cut off: the margin is white.
            edges = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[0], pixels[-1]])
            self.assertTrue((edges == 255).all())
        return found

    def answer_job(self, layers, **fields):
        self.server.handlers["GetJob"] = lambda request, context: make_job(layers, **fields)

    def answer_profile(self, layers):
        def profile(request, context):
            for layer in range(layers):
                for site in range(1, 5):
                    yield evaluation_pb2.ProfileActivationsResponse(
                        layers_done=layer + 1, layers_total=layers,
                        profile=make_profile(layer, site))
            yield evaluation_pb2.ProfileActivationsResponse(done=True)
        self.server.handlers["ProfileActivations"] = profile

    def test_a_jobs_page_holds_its_figures(self):
        self.answer_job(3)
        page = self.report("job-1")
        self.assertEqual(len(self.pictures(page)), 2)
        for text in ("source to made", "job-1", "succeeded", "3.0 MiB of 8.0 MiB", "4.125", "61.5",
                     "0.002100", "e2m1", "c4.jsonl, texts 1 to 700", "*.0.*, *&lt;down&gt;",
                     "<td>act_order</td><td>no</td>", "model.layers.2.mlp.down_proj", "0.003000",
                     "14 groups met the clamp", "3.0 GiB"):
            self.assertIn(text, page)
        self.assertTrue(self.server.requests[0].include_layers)
        # One file: nothing is fetched.
        self.assertNotIn("http", re.sub(r"base64,[^\"]+", "", page))

    def test_a_failed_job_says_why(self):
        self.answer_job(0, failure=common_pb2.Failure(code=8, message="layer 0: no <memory>"))
        page = self.report("job-1")
        self.assertIn("layer 0: no &lt;memory&gt;", page)
        self.assertEqual(self.pictures(page), [])

    def test_a_model_is_found_where_no_job_is(self):
        self.server.handlers["GetModel"] = lambda request, context: model_pb2.Model(
            name=request.name, versions=[model_pb2.ModelVersion(
                version=1, kind=model_pb2.MODEL_KIND_ARTIFACT, architecture="OPTForCausalLM",
                parameters=1234567, report=layer_reports(1))])
        page = self.report("made")
        for text in ("artifact", "OPTForCausalLM", "1,234,567"):
            self.assertIn(text, page)
        self.assertEqual(len(self.pictures(page)), 2)
        self.assertTrue(self.server.requests[1].include_report)

    def test_a_profile_is_run_on_the_jobs_source(self):
        self.answer_job(2)
        self.answer_profile(2)
        page = self.report("job-1", "--profile", "wiki.txt", "--windows", 2, "--token", 9)
        self.assertEqual(len(self.pictures(page)), 7)
        for text in ("50 tokens", "into q, k, v", "31.5", "<td>7</td><td>2 of 2</td>",
                     "INT8 error"):
            self.assertIn(text, page)
        request = self.server.requests[1]
        self.assertEqual((request.model, request.corpus.name, request.windows,
                          request.placement_token), ("source", "wiki.txt", 2, 9))

    def test_pages_of_few_and_of_many_layers(self):
        for layers in (1, 80):
            with self.subTest(layers=layers):
                self.answer_job(layers)
                self.answer_profile(layers)
                page = self.report("job-1", "--profile", "wiki.txt")
                # Of one layer nothing is drawn over layers.
                self.assertEqual(len(self.pictures(page)), 4 if layers == 1 else 7)
                self.assertIn(f"layer {layers - 1}, into the MLP&#x27;s output", page)

    def test_a_saved_profile_gives_the_same_page(self):
        self.answer_job(2)
        self.answer_profile(2)
        page = self.report("job-1", "--profile", "wiki.txt")
        lines = [json_format.MessageToJson(each, indent=None, preserving_proto_field_name=True)
                 for each in self.server.handlers["ProfileActivations"](None, None)]
        saved = self.folder / "p.jsonl"
        saved.write_text("\n".join(lines) + "\n")
        self.assertEqual(self.report("job-1", "--profile-json", saved), page)
        saved.write_text("\n".join(lines[:-1]) + "\n")
        self.assertIn("without its end", self.refuse("job-1", "--profile-json", saved))
        saved.write_text('{"nothing": 1}\n')
        self.assertIn("p.jsonl line 1", self.refuse("job-1", "--profile-json", saved))
        saved.write_bytes(b"\xff\xfe")
        self.assertIn("expected UTF-8 text", self.refuse("job-1", "--profile-json", saved))

    def refuse(self, *words):
        return self.refused("report", *words, "--html", "r.html", "--server", self.server.address)

    def test_refusals_leave_no_file(self):
        self.assertEqual(self.refuse("nobody"),
                         "JOB|MODEL: found 'nobody', expected a job or a model of the server")
        self.answer_job(1)

        def refused_profile(request, context):
            yield from ()
            raise Abort(Code.INVALID_ARGUMENT, "windows: found 0")
        self.server.handlers["ProfileActivations"] = refused_profile
        self.assertEqual(self.refuse("job-1", "--profile", "wiki.txt"),
                         "windows: found 0 (INVALID_ARGUMENT)")
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_help_has_examples(self):
        self.assertIn("examples:\n  nibble report", self.help_of("report"))


class ProfileSectionTest(unittest.TestCase):
    def test_bands_are_pairs_around_the_median(self):
        profile = evaluation_pb2.ActivationProfile()
        for probability in (0.001, 0.25, 0.5, 0.75, 0.9, 0.999):
            profile.quantiles.add(probability=probability, value=probability * 10)
        self.assertEqual(profile_section.quantile_bands(profile),
                         {(0.001, 0.999): (0.01, 9.99), (0.25, 0.75): (2.5, 7.5)})

    def test_a_profile_of_one_quantile_and_no_outliers_is_drawn(self):
        profiles = [make_profile(layer, 2) for layer in range(2)]
        for profile in profiles:
            del profile.quantiles[:-1], profile.token_range_quantiles[:-1], profile.placements[:]
        section = profile_section.section(profiles)
        self.assertEqual(section.count("data:image/png"), 3)
        self.assertIn("No channel is an outlier", section)

    def test_layers_are_spread_from_first_to_last(self):
        self.assertEqual(profile_section.spread(list(range(80)), 4), [0, 26, 53, 79])
        self.assertEqual(profile_section.spread([3, 5], 4), [3, 5])

    def test_numbers_are_short(self):
        self.assertEqual([profile_section.short_number(each) for each in (0.02, 15, 1234, -20000)],
                         ["0.02", "15", "1.23k", "-20k"])


if __name__ == "__main__":
    unittest.main()
