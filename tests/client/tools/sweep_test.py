"""nibble sweep against a server that is simulated, and that breaks at every moment."""

import csv
import json
import unittest

import grpc
from tool_case import ToolCase

import nibble_tools.server  # noqa: F401, makes the stubs

from fake_server import Abort, FakeServer
from nibble.v1 import evaluation_pb2, model_pb2, quantization_pb2

Code = grpc.StatusCode

SCHEMES = """
[defaults]
activations = "e4m3"
[[scheme]]
name = "W16A16"
[[scheme]]
name = "FP4 | M2"
weights = "e2m1"
[[scheme]]
name = "A8 only"
weights = "none"
[[scheme]]
name = "INT8"
weights = "int8"
method = "rtn"
"""
CORPORA = {"wiki.txt": 1000, "c4.jsonl": 2000}


class World:
    """Models, jobs and corpora of a simulated daemon. `break_at`: the RPC that fails, and when."""

    def __init__(self):
        self.server = FakeServer()
        self.models = {"tiny": model_pb2.ModelVersion(version=1, bytes=1 << 20)}
        self.jobs = {}     # by request id
        self.made = 0      # jobs that have run
        self.evaluated = []
        self.calls = 0
        self.break_at, self.after = None, False
        self.released = set()  # models no longer in use: from the second look on
        self.failing = set()  # outputs' weights formats whose jobs fail
        for name in ("SubmitJob", "GetJob", "DeleteJob", "GetModel", "DeleteModel", "ListCorpora",
                     "EstimateJob"):
            self.server.handlers[name] = self.breaking(getattr(self, name))
        for name in ("WatchJob", "EvaluatePerplexity"):
            self.server.handlers[name] = self.breaking_stream(getattr(self, name))

    def broken(self, after):
        return self.calls == self.break_at and self.after == after

    def breaking(self, handler):
        def answer(request, context):
            self.calls += 1
            if self.broken(after=False):
                raise Abort(Code.UNAVAILABLE, "down")
            try:
                return handler(request)
            finally:
                if self.broken(after=True):
                    raise Abort(Code.UNAVAILABLE, "down")
        return answer

    def breaking_stream(self, handler):
        def answer(request, context):
            self.calls += 1
            if self.broken(after=False):
                raise Abort(Code.UNAVAILABLE, "down")
            yield from handler(request, breaks=self.broken(after=True))
        return answer

    def SubmitJob(self, request):
        if request.request_id not in self.jobs:
            spec = request.spec
            if spec.output in self.models:
                raise Abort(Code.ALREADY_EXISTS, f"output: found {spec.output}")
            job = quantization_pb2.Job(id=f"job-{self.made}", spec=spec)
            self.made += 1
            if spec.weights in self.failing:
                job.state = quantization_pb2.JOB_STATE_FAILED
                job.failure.code, job.failure.message = 8, "no memory"
            else:
                job.state = quantization_pb2.JOB_STATE_SUCCEEDED
                job.summary.linear_bits_per_weight = 4.0 + spec.weights
                job.summary.artifact_bytes = 1000 * spec.weights
                self.models[spec.output] = model_pb2.ModelVersion(version=1)
            self.jobs[request.request_id] = job
        return self.jobs[request.request_id]

    def find_job(self, job_id):
        for request_id, job in self.jobs.items():
            if job.id == job_id:
                return request_id, job
        raise Abort(Code.NOT_FOUND, f"job_id: found {job_id}")

    def GetJob(self, request):
        return self.find_job(request.job_id)[1]

    def DeleteJob(self, request):
        del self.jobs[self.find_job(request.job_id)[0]]
        return quantization_pb2.DeleteJobResponse()

    def WatchJob(self, request, breaks):
        job = self.find_job(request.job_id)[1]
        if breaks:
            raise Abort(Code.UNAVAILABLE, "down")
        yield quantization_pb2.JobEvent(sequence=1, progress={"layer": 1, "layers": 2})
        yield quantization_pb2.JobEvent(sequence=2, state=job.state)

    def find_model(self, name):
        if name not in self.models:
            raise Abort(Code.NOT_FOUND, f"model: found {name}")
        return self.models[name]

    def GetModel(self, request):
        return model_pb2.Model(name=request.name, versions=[self.find_model(request.name)])

    def DeleteModel(self, request):
        self.find_model(request.name)
        if request.name not in self.released:
            self.released.add(request.name)
            raise Abort(Code.FAILED_PRECONDITION, "in use")
        del self.models[request.name]
        return model_pb2.DeleteModelResponse()

    def ListCorpora(self, request):
        return model_pb2.ListCorporaResponse(corpora=[
            model_pb2.Corpus(name=name, bytes=size) for name, size in CORPORA.items()])

    def EvaluatePerplexity(self, request, breaks):
        self.find_model(request.model)
        yield evaluation_pb2.EvaluatePerplexityResponse(windows_total=4)
        if breaks:
            raise Abort(Code.UNAVAILABLE, "down")
        weights = next((job.spec.weights for job in self.jobs.values()
                        if job.spec.output == request.model), 0)
        self.evaluated.append((request.model, request.corpus.name))
        yield evaluation_pb2.EvaluatePerplexityResponse(
            windows_done=4, windows_total=4, tokens=400, done=True,
            perplexity=10 + weights + len(request.corpus.name) / 100)

    def EstimateJob(self, request):
        return quantization_pb2.JobEstimate(
            linear_bits_per_weight=4 + 4 / request.spec.group_size + request.spec.lorc_rank / 32)


class SweepTest(ToolCase):
    def setUp(self):
        super().setUp()
        (self.folder / "s.toml").write_text(SCHEMES)
        self.world = self.new_world()

    def new_world(self):
        world = World()
        self.addCleanup(world.server.stop)
        return world

    def words(self, *more, schemes=("--schemes", "s.toml")):
        return ("tiny", "--server", self.world.server.address, *schemes, "--corpus", "wiki.txt",
                "--corpus", "c4.jsonl:1:9", "--calibration", "c4.jsonl", "--calibration-windows", 3,
                "--window", 64, *more)

    def tables(self, prefix="tiny-s"):
        return [(self.folder / f"{prefix}.{kind}").read_text() for kind in ("md", "csv")]

    def test_the_table_in_three_kinds(self):
        printed = self.run_tool("sweep", *self.words())
        markdown, rows = self.tables()
        self.assertEqual(markdown, printed)
        lines = markdown.splitlines()
        self.assertEqual(lines[0], "# tiny: s")
        self.assertEqual(lines[2], "| scheme | bits per weight | size | wiki.txt | c4.jsonl:1:9 | "
                                   "mean |")
        # E2M1 is 2, INT8 is 7.
        self.assertEqual(lines[5], "| FP4 \\| M2 | 6.000 | 2.0 KiB | 12.080 | 12.080 | 12.080 |")
        self.assertEqual(len(lines), 8)
        rows = list(csv.DictReader(rows.splitlines()))
        self.assertEqual(rows[0]["spec"], "")
        self.assertEqual(json.loads(rows[3]["spec"]),
                         {"activations": "e4m3", "method": "rtn", "weights": "int8"})
        self.assertEqual(float(rows[3]["perplexity wiki.txt"]), 17.08)
        page = (self.folder / "tiny-s.html").read_text()
        self.assertIn("data:image/png;base64,", page)
        self.assertIn("FP4 | M2", page)

    def test_requests_are_those_of_the_schemes(self):
        self.run_tool("sweep", *self.words("--compute", "f32", "--ahead", 0))
        specs = [each.spec for each in self.world.server.requests
                 if isinstance(each, quantization_pb2.SubmitJobRequest)]
        self.assertEqual([each.weights for each in specs], [2, 1, 7])
        self.assertEqual([each.corpus.name for each in specs], ["c4.jsonl", "", "c4.jsonl"])
        self.assertEqual(specs[0].windows, 3)
        self.assertEqual({each.compute for each in specs}, {2})
        self.assertEqual(len({each.output for each in specs}), 3)
        evaluations = [each for each in self.world.server.requests
                       if isinstance(each, evaluation_pb2.EvaluatePerplexityRequest)]
        self.assertEqual([(each.corpus.name, each.corpus.last_text, each.window, each.compute)
                          for each in evaluations], [("wiki.txt", 0, 64, 2),
                                                     ("c4.jsonl", 9, 64, 2)] * 4)

    def test_it_goes_on_wherever_the_server_broke(self):
        """Each RPC fails once, before or after its work; then the command is repeated."""
        (self.folder / "s.toml").write_text(SCHEMES[:SCHEMES.rindex("[[scheme]]")])
        self.run_tool("sweep", *self.words())
        expected, calls = self.tables(), self.world.calls
        self.assertGreater(calls, 20)
        for after in (False, True):
            for moment in range(1, calls + 1):
                with self.subTest(after=after, moment=moment):
                    self.world = self.new_world()
                    self.world.break_at, self.world.after = moment, after
                    words = self.words("--output", f"{after}-{moment}")
                    self.assertIn("down (server", self.refused("sweep", *words))
                    self.run_tool("sweep", *words)
                    self.assertEqual(self.tables(f"{after}-{moment}"), expected)
                    # Every job ran once, every cell was evaluated once, and nothing is left.
                    self.assertEqual(self.world.made, 2)
                    self.assertEqual(len(set(self.world.evaluated)), 6)
                    self.assertEqual(len(self.world.evaluated), 6)
                    self.assertEqual(set(self.world.models), {"tiny"})
                    self.assertEqual(self.world.jobs, {})
                    self.world.server.stop()

    def test_what_is_known_is_not_run_again(self):
        self.run_tool("sweep", *self.words())
        evaluated = len(self.world.evaluated)
        self.run_tool("sweep", *self.words())
        self.assertEqual((len(self.world.evaluated), self.world.made), (evaluated, 3))
        # One more scheme, and another window.
        with (self.folder / "s.toml").open("a") as file:
            file.write('[[scheme]]\nname = "E3M0"\nweights = "e3m0"\n')
        self.run_tool("sweep", *self.words())
        self.assertEqual((len(self.world.evaluated), self.world.made), (evaluated + 2, 4))
        self.run_tool("sweep", *self.words("--windows", 2))
        self.assertEqual(len(self.world.evaluated), 2 * (evaluated + 2))

    def test_another_model_of_the_same_name_is_evaluated_anew(self):
        self.run_tool("sweep", *self.words())
        self.world.models["tiny"].created_at.FromSeconds(5)
        self.run_tool("sweep", *self.words())
        self.assertEqual(len(self.world.evaluated), 16)

    def test_models_are_kept_if_asked_for(self):
        self.run_tool("sweep", *self.words("--keep"))
        self.assertEqual(len(self.world.models), 4)
        self.assertEqual(len(self.world.jobs), 3)

    def test_a_failed_scheme_is_told_and_tried_again(self):
        self.world.failing = {7}
        sentence = self.refused("sweep", *self.words())
        self.assertIn("1 of 4 schemes failed (INT8)", sentence)
        markdown, rows = self.tables()
        self.assertIn("| INT8 | - | - | failed | failed | - |", markdown)
        for text in (markdown, rows, (self.folder / "tiny-s.html").read_text()):
            self.assertIn("RESOURCE_EXHAUSTED: no memory", text)
        self.assertEqual(len(self.world.evaluated), 6)
        self.world.failing = set()
        self.run_tool("sweep", *self.words())
        self.assertNotIn("failed", self.tables()[0])
        self.assertEqual(len(self.world.evaluated), 8)

    def test_presets_run(self):
        for preset, rows in (("paper-table-1", 10), ("constraints", 11), ("lorc", 14)):
            with self.subTest(preset):
                self.run_tool("sweep", *self.words(schemes=("--preset", preset)))
                found = list(csv.DictReader(self.tables(f"tiny-{preset}")[1].splitlines()))
                self.assertEqual(len(found), rows)
                self.assertTrue(all(row["perplexity wiki.txt"] for row in found))

    def test_mistakes_are_told_before_anything_runs(self):
        for words, sentence in (
                (("--corpus", "none.txt"), "corpus: found 'none.txt', expected one of"),
                (("--corpus", "wiki.txt"), "--corpus: found wiki.txt, c4.jsonl:1:9, wiki.txt"),
                (("--corpus", "a:b"), "found 'a:b', expected NAME or NAME:A:B"),
                (("--windows", "0"), "found '0', expected a whole number from 1")):
            self.assertIn(sentence, self.refused("sweep", *self.words(*words)))
        words = self.words()
        without = words[:words.index("--calibration")] + words[words.index("--window"):]
        self.assertIn("--calibration: found none, expected a corpus for 'FP4 | M2'",
                      self.refused("sweep", *without))
        (self.folder / "tiny-s.state.json").write_text("{}")
        self.assertIn("expected a sweep's state", self.refused("sweep", *words))
        self.assertEqual(self.world.made, 0)

    def test_help_has_examples(self):
        self.assertIn("examples:\n  nibble sweep", self.help_of("sweep"))


if __name__ == "__main__":
    unittest.main()
