"""nibble_client as its wheel installs it, against nibbled. NIBBLED is the daemon's path."""

import unittest

import grpc
from nibble.v1 import model_pb2, quantization_pb2
from nibble_client import Client, NibbleError
from tiny_daemon import TinyDaemon


class PythonClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        daemon = TinyDaemon()
        cls.addClassCleanup(daemon.stop)
        (daemon.data_root / "corpora").mkdir(exist_ok=True)
        (daemon.data_root / "corpora/short.txt").write_text("To be, or not to be. " * 20)
        cls.client = cls.enterClassContext(Client(daemon.address))
        cls.job = cls.client.submit(
            model="tiny", output="tiny-w4a8", weights="e2m1", activations="e4m3", group_size=32,
            corpus="short.txt", windows=4, window=64, request_id="first", timeout=60)
        cls.events = list(cls.client.watch(cls.job.id, timeout=120))
        cls.finished = cls.client.wait(cls.job.id, timeout=120)

    def test_the_job_ran(self):
        self.assertEqual([event.sequence for event in self.events],
                         list(range(1, len(self.events) + 1)))
        self.assertEqual(self.finished.state, quantization_pb2.JOB_STATE_SUCCEEDED)
        self.assertEqual(len(self.client.job(self.job.id, include_layers=True).layers), 2)
        self.assertIn(self.job.id, [job.id for job in self.client.jobs(states=["succeeded"])])
        self.assertEqual([job.id for job in self.client.jobs(model="other")], [])

    def test_submitting_again_with_its_request_id_returns_the_job(self):
        again = self.client.submit(
            model="tiny", output="tiny-w4a8", weights="e2m1", activations="e4m3", group_size=32,
            corpus="short.txt", windows=4, window=64, request_id="first", timeout=60)
        self.assertEqual(again.id, self.job.id)

    def test_an_estimate_tells_what_the_job_took(self):
        estimate = self.client.estimate(
            model="tiny", output="tiny-again", weights="e2m1", activations="e4m3", group_size=32,
            corpus="short.txt", windows=4, window=64, timeout=60)
        summary = self.finished.summary
        self.assertTrue(estimate.fits, estimate.reason)
        self.assertGreaterEqual(estimate.host_memory_bytes, summary.peak_host_bytes)
        self.assertGreaterEqual(estimate.disk_bytes, summary.artifact_bytes)
        self.assertEqual(estimate.linear_bits_per_weight, summary.linear_bits_per_weight)
        with self.assertRaises(NibbleError) as refused:
            self.client.estimate(model="none", output="x", weights="e2m1", activations="none")
        self.assertIs(refused.exception.code, grpc.StatusCode.NOT_FOUND)

    def test_watching_goes_on_from_a_sequence(self):
        rest = list(self.client.watch(self.job.id, after_sequence=self.events[-2].sequence))
        self.assertEqual([event.sequence for event in rest], [self.events[-1].sequence])

    def test_its_model_is_loaded_streams_text_and_is_unloaded(self):
        loaded = self.client.load("tiny-w4a8", timeout=60)
        self.assertEqual(loaded.versions[0].state, model_pb2.MODEL_STATE_LOADED)
        self.assertIn("tiny-w4a8", [model.name for model in self.client.models(kind="artifact")])
        with self.client.generate("tiny-w4a8", "nibble", max_tokens=8, ignore_eos=True,
                                  temperature=0, timeout=60) as generation:
            pieces = list(generation)
        self.assertEqual("".join(pieces), generation.text)
        self.assertEqual(len(generation.token_ids), 8)
        self.assertEqual(generation.usage.prompt_tokens, 6)
        self.assertEqual(generation.usage.completion_tokens, 8)
        self.assertEqual(generation.finish_reason, "length")
        unloaded = self.client.unload("tiny-w4a8", timeout=60)
        self.assertEqual(unloaded.versions[0].state, model_pb2.MODEL_STATE_STORED)

    def test_a_generation_that_is_left_lets_its_model_go(self):
        with self.client.generate("tiny", "nibble", ignore_eos=True, timeout=60) as generation:
            next(generation)
        # It waits for requests in flight.
        self.client.unload("tiny", timeout=60)
        self.assertIsNone(generation.finish_reason)

    def test_perplexity(self):
        evaluation = self.client.evaluate_perplexity("tiny-w4a8", "short.txt", window=64,
                                                     windows=2, compute="f32", timeout=60)
        progress = list(evaluation)
        self.assertTrue(progress[-1].done)
        self.assertEqual((evaluation.result.windows_done, evaluation.result.tokens), (2, 126))
        self.assertGreater(evaluation.result.perplexity, 1)

    def test_a_refusal_names_the_field(self):
        with self.assertRaises(NibbleError) as refused:
            self.client.submit(model="../tiny", output="x", weights="none", activations="none")
        self.assertEqual(refused.exception.code, grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("model", refused.exception.message)

    def test_a_finished_job_is_deleted(self):
        job = self.client.submit(model="tiny", output="tiny-rtn", weights="int8",
                                 activations="none", method="rtn", group_size=-1, timeout=60)
        self.client.wait(job.id, timeout=120)
        self.client.delete(job.id)
        self.client.delete_model("tiny-rtn")
        for gone in (lambda: self.client.job(job.id), lambda: self.client.model("tiny-rtn")):
            with self.assertRaises(NibbleError) as refused:
                gone()
            self.assertEqual(refused.exception.code, grpc.StatusCode.NOT_FOUND)


if __name__ == "__main__":
    unittest.main()
