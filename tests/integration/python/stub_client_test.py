"""nibble from Python as anybody would call it: stubs made of proto/, and the reflection service."""

import importlib
import sys
import tempfile
import unittest
from pathlib import Path

import grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase)
from grpc_tools import protoc
from tiny_daemon import TinyDaemon

PROTO = Path(__file__).resolve().parents[3] / "proto"
SERVICES = ("EvaluationService", "InferenceService", "ModelService", "QuantizationService")


def make_stubs(folder):
    """Generates the stubs of every proto into `folder`, as grpc_tools' manual says."""
    files = [str(path.relative_to(PROTO)) for path in sorted((PROTO / "nibble/v1").glob("*.proto"))]
    includes = [f"-I{PROTO}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
    if protoc.main(["protoc", *includes, f"--python_out={folder}", f"--grpc_python_out={folder}",
                    *files]) != 0:
        raise RuntimeError("protoc failed")
    sys.path.insert(0, folder)


def stubs(name):
    return (importlib.import_module(f"nibble.v1.{name}_pb2"),
            importlib.import_module(f"nibble.v1.{name}_pb2_grpc"))


class StubClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        make_stubs(folder.name)
        daemon = TinyDaemon()
        cls.addClassCleanup(daemon.stop)
        cls.channel = grpc.insecure_channel(daemon.address)
        cls.addClassCleanup(cls.channel.close)

    def test_reflection_lists_and_describes_the_services(self):
        database = ProtoReflectionDescriptorDatabase(self.channel)
        listed = set(database.get_services())
        self.assertLessEqual({f"nibble.v1.{name}" for name in SERVICES}, listed)
        self.assertIn("grpc.health.v1.Health", listed)
        file = database.FindFileContainingSymbol("nibble.v1.QuantizationService")
        self.assertIn("SubmitJob", [method.name for method in file.service[0].method])

    def test_a_job_runs_and_its_model_streams_tokens(self):
        quantization, quantization_grpc = stubs("quantization")
        inference, inference_grpc = stubs("inference")
        model, model_grpc = stubs("model")
        common, _ = stubs("common")

        jobs = quantization_grpc.QuantizationServiceStub(self.channel)
        job = jobs.SubmitJob(quantization.SubmitJobRequest(spec=quantization.JobSpec(
            model="tiny", output="tiny-w4a8", weights=common.FORMAT_E2M1,
            activations=common.ACTIVATION_FORMAT_E4M3, group_size=32,
            method=common.METHOD_RTN)), timeout=60)
        events = list(jobs.WatchJob(quantization.WatchJobRequest(job_id=job.id), timeout=120))
        self.assertEqual([event.sequence for event in events], list(range(1, len(events) + 1)))
        self.assertEqual(events[-1].state, quantization.JOB_STATE_SUCCEEDED, events[-1])

        loaded = model_grpc.ModelServiceStub(self.channel).LoadModel(
            model.LoadModelRequest(name="tiny-w4a8"), timeout=60)
        self.assertEqual(loaded.versions[-1].state, model.MODEL_STATE_LOADED)
        chunks = list(inference_grpc.InferenceServiceStub(self.channel).Generate(
            inference.GenerateRequest(model="tiny-w4a8", text="nibble", max_tokens=8,
                                      ignore_eos=True,
                                      sampling=inference.Sampling(temperature=0)), timeout=60))
        self.assertEqual(sum(len(chunk.token_ids) for chunk in chunks), 8)
        self.assertEqual(chunks[-1].usage.completion_tokens, 8)
        self.assertEqual(chunks[-1].finish_reason, inference.FINISH_REASON_LENGTH)

    def test_a_refusal_names_the_field(self):
        quantization, quantization_grpc = stubs("quantization")
        jobs = quantization_grpc.QuantizationServiceStub(self.channel)
        with self.assertRaises(grpc.RpcError) as refused:
            jobs.SubmitJob(quantization.SubmitJobRequest(
                spec=quantization.JobSpec(model="../tiny", output="x")), timeout=60)
        self.assertEqual(refused.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("model", refused.exception.details())


if __name__ == "__main__":
    unittest.main()
