"""nibble_client as its wheel installs it, against a scripted server on a loopback port."""

import pickle
import socket
import threading
import unittest
from importlib import metadata

import grpc
from fake_server import Abort, FakeServer, until_left
from nibble.v1 import common_pb2, evaluation_pb2, inference_pb2, model_pb2, quantization_pb2
from nibble_client import Client, GenerateFields, JobFields, NibbleError, ProfileFields

Code = grpc.StatusCode


class ClientTest(unittest.TestCase):
    def setUp(self):
        self.server = FakeServer()
        self.addCleanup(self.server.stop)
        self.client = self.connect()

    def connect(self, **options):
        return self.enterContext(Client(self.server.address, **options))

    def answer(self, name, handler):
        self.server.handlers[name] = handler

    def refused(self, code):
        return RefusedWith(self, code)


class RefusedWith:
    """Expects a NibbleError of this code; `error` is it."""

    def __init__(self, test, code):
        self._test, self._code = test, code

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, NibbleError):
            self.error = error
            self._test.assertEqual(error.code, self._code)
            return True
        self._test.assertIsNotNone(error, f"nothing was raised, expected {self._code}")
        return False


class WheelTest(unittest.TestCase):
    def test_the_wheel_brings_types_stubs_and_licence(self):
        files = {str(path) for path in metadata.files("nibble-client")}
        self.assertLessEqual({"nibble_client/py.typed", "nibble/v1/py.typed",
                              "nibble/v1/inference_pb2.pyi", "nibble/v1/inference_pb2_grpc.py",
                              "nibble_client-0.1.0.dist-info/licenses/LICENSE"}, files)
        self.assertEqual(metadata.metadata("nibble-client")["License-Expression"], "Apache-2.0")

    def test_keyword_arguments_are_the_messages_fields(self):
        self.assertEqual(set(JobFields.__annotations__),
                         set(quantization_pb2.JobSpec.DESCRIPTOR.fields_by_name))
        request = set(inference_pb2.GenerateRequest.DESCRIPTOR.fields_by_name)
        expected = (request - {"model", "text", "token_ids", "chat", "n", "sampling", "grammar"} |
                    set(inference_pb2.Sampling.DESCRIPTOR.fields_by_name) |
                    set(inference_pb2.Grammar.DESCRIPTOR.fields_by_name))
        self.assertEqual(set(GenerateFields.__annotations__), expected)
        profile = set(evaluation_pb2.ProfileActivationsRequest.DESCRIPTOR.fields_by_name)
        self.assertEqual(set(ProfileFields.__annotations__), profile - {"model", "corpus"})


class ErrorTest(ClientTest):
    def test_an_error_has_the_servers_code_and_message(self):
        def refuse(request, context):
            raise Abort(Code.NOT_FOUND, f"job_id: found {request.job_id}, expected a job")
        self.answer("GetJob", refuse)
        with self.refused(Code.NOT_FOUND) as refusal:
            self.client.job("x")
        self.assertEqual(refusal.error.message, "job_id: found x, expected a job")
        self.assertEqual(str(refusal.error), "NOT_FOUND: job_id: found x, expected a job")
        self.assertIsInstance(refusal.error.__cause__, grpc.RpcError)
        copy = pickle.loads(pickle.dumps(refusal.error))
        self.assertEqual((copy.code, copy.message), (refusal.error.code, refusal.error.message))

    def test_a_call_ends_at_its_timeout(self):
        self.answer("LoadModel", lambda request, context: until_left(context))
        with self.refused(Code.DEADLINE_EXCEEDED):
            self.client.load("tiny", timeout=1)

    def test_a_server_that_is_not_there_is_unavailable(self):
        with socket.socket() as unheard:  # bound, never listening
            unheard.bind(("127.0.0.1", 0))
            client = self.enterContext(Client(f"127.0.0.1:{unheard.getsockname()[1]}"))
            with self.refused(Code.UNAVAILABLE):
                client.job("x")


class JobTest(ClientTest):
    def setUp(self):
        super().setUp()
        self.answer("SubmitJob", lambda request, context: quantization_pb2.Job(
            id="job-1", spec=request.spec, request_id=request.request_id))

    def test_submit_takes_the_specs_fields(self):
        job = self.client.submit(
            model="tiny", output="tiny-q", weights="e2m1", activations="ACTIVATION_FORMAT_E4M3",
            scale=common_pb2.SCALE_CONSTRAINT_M2, group_size=64, act_order=False, corpus="a.txt",
            windows=None, exclude=["*.down_proj"], labels={"team": "a"}, request_id="r1")
        self.assertEqual(job.request_id, "r1")
        self.assertEqual(job.spec, quantization_pb2.JobSpec(
            model="tiny", output="tiny-q", weights=common_pb2.FORMAT_E2M1,
            activations=common_pb2.ACTIVATION_FORMAT_E4M3, scale=common_pb2.SCALE_CONSTRAINT_M2,
            group_size=64, act_order=False, corpus=common_pb2.CorpusRef(name="a.txt"),
            exclude=["*.down_proj"], labels={"team": "a"}))
        self.assertFalse(job.spec.HasField("windows"))

    def test_estimate_takes_the_same(self):
        self.answer("EstimateJob", lambda request, context: quantization_pb2.JobEstimate(
            fits=True, linear_bits_per_weight=4.25))
        self.assertEqual(self.client.estimate(model="tiny", output="o", weights="e2m1",
                                              corpus="c.txt").linear_bits_per_weight, 4.25)
        spec = quantization_pb2.JobSpec(model="tiny")
        self.client.estimate(spec)
        self.assertEqual(self.server.requests, [
            quantization_pb2.EstimateJobRequest(spec=quantization_pb2.JobSpec(
                model="tiny", output="o", weights=common_pb2.FORMAT_E2M1,
                corpus=common_pb2.CorpusRef(name="c.txt"))),
            quantization_pb2.EstimateJobRequest(spec=spec)])
        with self.assertRaises(TypeError):
            self.client.estimate()

    def test_submit_takes_a_spec(self):
        spec = quantization_pb2.JobSpec(model="tiny", output="tiny-q", group_size=-1)
        self.assertEqual(self.client.submit(spec).spec, spec)
        with self.assertRaises(TypeError):
            self.client.submit(spec, model="other")
        with self.assertRaises(TypeError):
            self.client.submit()

    def test_an_unknown_word_or_field_is_refused_by_its_name(self):
        with self.assertRaisesRegex(ValueError, "weights: found 'e9m9', expected one of none, e2m1"):
            self.client.submit(model="tiny", weights="e9m9")
        with self.assertRaisesRegex(TypeError, "'wieghts'"):
            self.client.submit(model="tiny", wieghts="e2m1")
        with self.assertRaisesRegex(TypeError, "exclude: found '\\*.fc1', expected a list"):
            self.client.submit(model="tiny", exclude="*.fc1")
        self.assertEqual(self.server.requests, [])

    def test_jobs_goes_through_all_pages(self):
        pages = {"": (["5", "4"], "p2"), "p2": ([], "p3"), "p3": (["3"], "")}

        def page(request, context):
            ids, following = pages[request.page.token]
            return quantization_pb2.ListJobsResponse(
                jobs=[quantization_pb2.Job(id=each) for each in ids], next_page_token=following)
        self.answer("ListJobs", page)
        jobs = list(self.client.jobs(states=["queued", quantization_pb2.JOB_STATE_RUNNING],
                                     labels={"team": "a"}, model="tiny"))
        self.assertEqual([job.id for job in jobs], ["5", "4", "3"])
        for request in self.server.requests:
            self.assertEqual(list(request.states), [quantization_pb2.JOB_STATE_QUEUED,
                                                    quantization_pb2.JOB_STATE_RUNNING])
            self.assertEqual((dict(request.labels), request.model), ({"team": "a"}, "tiny"))

    def test_pages_are_asked_for_when_needed(self):
        self.answer("ListJobs", lambda request, context: quantization_pb2.ListJobsResponse(
            jobs=[quantization_pb2.Job(id="1")], next_page_token="more"))
        self.assertEqual(next(self.client.jobs()).id, "1")
        self.assertEqual(len(self.server.requests), 1)

    def test_cancel_and_delete_name_the_job(self):
        self.answer("CancelJob", lambda request, context: quantization_pb2.Job(
            id=request.job_id, state=quantization_pb2.JOB_STATE_CANCELLING))
        self.answer("DeleteJob", lambda request, context: quantization_pb2.DeleteJobResponse())
        self.assertEqual(self.client.cancel("j").state, quantization_pb2.JOB_STATE_CANCELLING)
        self.client.delete("j")
        self.assertEqual([request.job_id for request in self.server.requests], ["j", "j"])


class WatchTest(ClientTest):
    """Of a job with five events, the last of which is final."""

    def events(self, request, upto=5):
        for sequence in range(request.after_sequence + 1, upto + 1):
            yield quantization_pb2.JobEvent(job_id=request.job_id, sequence=sequence)

    def final(self, **fields):
        self.answer("WatchJob", lambda request, context: self.events(request))
        self.answer("GetJob", lambda request, context: quantization_pb2.Job(
            id=request.job_id, **fields))

    def after_sequences(self):
        return [request.after_sequence for request in self.server.requests]

    def test_a_lost_stream_goes_on_after_the_last_event(self):
        def lost_twice(request, context):
            yield from self.events(request, upto=min(5, request.after_sequence + 2))
            if request.after_sequence < 4:
                raise Abort(Code.UNAVAILABLE, "shutting down")
        self.answer("WatchJob", lost_twice)
        events = list(self.client.watch("j"))
        self.assertEqual([event.sequence for event in events], [1, 2, 3, 4, 5])
        self.assertEqual(self.after_sequences(), [0, 2, 4])

    def test_a_stream_that_breaks_goes_on_after_its_last_event(self):
        def breaks_once(request, context):
            self.answer("WatchJob", lambda request, context: self.events(request))
            yield from self.events(request, upto=2)
            raise Abort(Code.UNAVAILABLE, "shutting down")
        self.answer("WatchJob", breaks_once)
        self.assertEqual([event.sequence for event in self.client.watch("j")], [1, 2, 3, 4, 5])
        self.assertEqual(self.after_sequences(), [0, 2])

    def test_it_gives_up_after_reconnect_for(self):
        def lost(request, context):
            yield from self.events(request, upto=1)
            raise Abort(Code.UNAVAILABLE, "shutting down")
        self.answer("WatchJob", lost)
        events = self.connect(reconnect_for=0).watch("j")
        self.assertEqual(next(events).sequence, 1)
        with self.refused(Code.UNAVAILABLE):
            next(events)
        self.assertEqual(self.after_sequences(), [0])
        events = self.connect(reconnect_for=0.7).watch("j")
        self.assertEqual(next(events).sequence, 1)
        with self.refused(Code.UNAVAILABLE):
            next(events)
        # Tried again once at least, after its pause of half a second.
        self.assertEqual(self.after_sequences()[:3], [0, 0, 1])

    def test_other_errors_and_a_first_failure_are_final(self):
        def deleted(request, context):
            yield from self.events(request, upto=1)
            raise Abort(Code.NOT_FOUND, "deleted")
        self.answer("WatchJob", deleted)
        events = self.client.watch("j", after_sequence=0)
        next(events)
        with self.refused(Code.NOT_FOUND):
            next(events)

        def draining(request, context):
            yield from ()
            raise Abort(Code.UNAVAILABLE, "shutting down")
        self.answer("WatchJob", draining)
        with self.refused(Code.UNAVAILABLE):
            next(self.client.watch("j"))
        self.assertEqual(self.after_sequences(), [0, 0])

    def test_leaving_it_cancels_the_call(self):
        cancelled = threading.Event()

        def quiet(request, context):
            context.add_callback(cancelled.set)
            yield from self.events(request, upto=1)
            until_left(context)
        self.answer("WatchJob", quiet)
        for event in self.client.watch("j"):
            break
        self.assertEqual(event.sequence, 1)
        self.assertTrue(cancelled.wait(timeout=60))

    def test_wait_returns_the_job_that_succeeded(self):
        self.final(state=quantization_pb2.JOB_STATE_SUCCEEDED,
                   summary=quantization_pb2.JobSummary(linear_bits_per_weight=4.25))
        self.assertEqual(self.client.wait("j").summary.linear_bits_per_weight, 4.25)

    def test_wait_raises_a_jobs_failure(self):
        self.final(state=quantization_pb2.JOB_STATE_FAILED,
                   failure=common_pb2.Failure(code=8, message="layer 3: no memory"))
        with self.refused(Code.RESOURCE_EXHAUSTED) as refusal:
            self.client.wait("j")
        self.assertEqual(refusal.error.message, "layer 3: no memory")

    def test_wait_raises_when_the_job_was_cancelled(self):
        self.final(state=quantization_pb2.JOB_STATE_CANCELLED)
        with self.refused(Code.CANCELLED):
            self.client.wait("j")

    def test_the_timeout_holds_over_reconnections(self):
        def quiet(request, context):
            if request.after_sequence == 0:
                yield from self.events(request, upto=1)
                raise Abort(Code.UNAVAILABLE, "shutting down")
            until_left(context)
        self.answer("WatchJob", quiet)
        with self.refused(Code.DEADLINE_EXCEEDED):
            self.client.wait("j", timeout=3)
        self.assertEqual(self.after_sequences(), [0, 1])


class ModelTest(ClientTest):
    def test_models_goes_through_all_pages(self):
        self.answer("ListModels", lambda request, context: model_pb2.ListModelsResponse(
            models=[model_pb2.Model(name=request.page.token or "a")],
            next_page_token="" if request.page.token else "b"))
        models = self.client.models(kind="artifact", states=["loaded"])
        self.assertEqual([model.name for model in models], ["a", "b"])
        self.assertEqual(self.server.requests[1].kind, model_pb2.MODEL_KIND_ARTIFACT)
        self.assertEqual(list(self.server.requests[1].states), [model_pb2.MODEL_STATE_LOADED])

    def test_requests_carry_their_arguments(self):
        for name in ("GetModel", "LoadModel", "UnloadModel"):
            self.answer(name, lambda request, context: model_pb2.Model(name=request.name))
        self.answer("DeleteModel", lambda request, context: model_pb2.DeleteModelResponse())
        self.assertEqual(self.client.model("m", include_report=True).name, "m")
        self.assertEqual(self.client.load("m", version=2, compute="f32",
                                          max_context_tokens=128).name, "m")
        self.assertEqual(self.client.unload("m", force=True).name, "m")
        self.client.delete_model("m", version=3)
        self.assertEqual(self.server.requests, [
            model_pb2.GetModelRequest(name="m", include_report=True),
            model_pb2.LoadModelRequest(name="m", version=2, options=model_pb2.LoadOptions(
                compute=common_pb2.COMPUTE_F32, max_context_tokens=128)),
            model_pb2.UnloadModelRequest(name="m", force=True),
            model_pb2.DeleteModelRequest(name="m", version=3)])


class CorpusTest(ClientTest):
    def test_corpora_goes_through_all_pages(self):
        self.answer("ListCorpora", lambda request, context: model_pb2.ListCorporaResponse(
            corpora=[model_pb2.Corpus(name=request.page.token or "a.txt", bytes=3)],
            next_page_token="" if request.page.token else "b.txt"))
        self.assertEqual([corpus.name for corpus in self.client.corpora()], ["a.txt", "b.txt"])

    def test_delete(self):
        self.answer("DeleteCorpus", lambda request, context: model_pb2.DeleteCorpusResponse())
        self.client.delete_corpus("a.txt")
        self.assertEqual(self.server.requests, [model_pb2.DeleteCorpusRequest(name="a.txt")])


class GenerateTest(ClientTest):
    def setUp(self):
        super().setUp()
        self.answer("Generate", self.say)

    def say(self, request, context):
        """"Grüße!", with a response without text in between."""
        yield inference_pb2.GenerateResponse(
            text="Gr", token_ids=[5],
            start=inference_pb2.GenerateResponse.Start(request_id="r", version=2, seed=7))
        yield inference_pb2.GenerateResponse(token_ids=[6])
        yield inference_pb2.GenerateResponse(text="üße", token_ids=[7])
        yield inference_pb2.GenerateResponse(
            text="!", token_ids=[8], finish_reason=inference_pb2.FINISH_REASON_STOP,
            matched_stop="\n", usage=inference_pb2.Usage(prompt_tokens=3, completion_tokens=4),
            timing=inference_pb2.Timing(total_seconds=0.5))

    def test_it_iterates_over_pieces_of_text(self):
        generation = self.client.generate("tiny", "Hi")
        self.assertEqual(next(generation), "Gr")
        self.assertEqual((generation.text, generation.start.seed), ("Gr", 7))
        self.assertIsNone(generation.finish_reason)
        self.assertIsNone(generation.usage)
        self.assertEqual(list(generation), ["üße", "!"])
        self.assertEqual((generation.text, generation.token_ids), ("Grüße!", [5, 6, 7, 8]))
        self.assertEqual((generation.finish_reason, generation.matched_stop), ("stop", "\n"))
        self.assertEqual(generation.usage.completion_tokens, 4)
        self.assertEqual(generation.timing.total_seconds, 0.5)
        self.assertEqual(self.client.generate("tiny", "Hi").read(), "Grüße!")

    def test_fields_reach_their_messages(self):
        self.client.generate(
            "tiny", "", version=2, max_tokens=0, stop=["\n"], temperature=0, top_p=None,
            logit_bias={3: -100}, json_schema="{}", ignore_eos=True).read()
        self.assertEqual(self.server.requests, [inference_pb2.GenerateRequest(
            model="tiny", version=2, text="", max_tokens=0, stop=["\n"], ignore_eos=True,
            sampling=inference_pb2.Sampling(temperature=0, logit_bias={3: -100}),
            grammar=inference_pb2.Grammar(json_schema="{}"))])
        self.assertEqual(self.server.requests[0].WhichOneof("prompt"), "text")
        self.assertTrue(self.server.requests[0].sampling.HasField("temperature"))

    def test_prompts_of_all_kinds(self):
        self.client.generate("tiny", token_ids=range(3)).read()
        self.client.generate("tiny", messages=[
            {"role": "system", "content": "Be brief."},
            inference_pb2.ChatMessage(role="user", content="Hi")]).read()
        ids, chat = self.server.requests
        self.assertEqual(list(ids.token_ids.ids), [0, 1, 2])
        self.assertEqual([(turn.role, turn.content) for turn in chat.chat.messages],
                         [("system", "Be brief."), ("user", "Hi")])
        self.assertFalse(chat.HasField("sampling"))

    def test_wrong_arguments_are_refused_before_the_call(self):
        for arguments in ({}, {"prompt": "a", "token_ids": [1]}, {"prompt": "a", "n": 2},
                          {"prompt": "a", "regex": "a", "ebnf": "b"}):
            with self.subTest(arguments), self.assertRaises(TypeError):
                self.client.generate("tiny", **arguments)
        self.assertEqual(self.server.requests, [])

    def test_closing_cancels_the_call(self):
        cancelled = threading.Event()

        def endless(request, context):
            context.add_callback(cancelled.set)
            yield inference_pb2.GenerateResponse(text="a")
            until_left(context)
        self.answer("Generate", endless)
        with self.client.generate("tiny", "Hi") as generation:
            self.assertEqual(next(generation), "a")
        self.assertTrue(cancelled.wait(timeout=60))
        self.assertEqual(list(generation), [])
        self.assertIsNone(generation.finish_reason)

    def test_closing_from_another_thread_ends_the_iteration(self):
        def endless(request, context):
            yield inference_pb2.GenerateResponse(text="a")
            until_left(context)
        self.answer("Generate", endless)
        generation = self.client.generate("tiny", "Hi")
        pieces = []
        for piece in generation:
            pieces.append(piece)
            threading.Thread(target=generation.close).start()
        self.assertEqual(pieces, ["a"])

    def test_an_error_comes_after_the_pieces_before_it(self):
        def cut_off(request, context):
            yield inference_pb2.GenerateResponse(text="a")
            raise Abort(Code.ABORTED, "the model was unloaded by force")
        self.answer("Generate", cut_off)
        generation = self.client.generate("tiny", "Hi")
        with self.refused(Code.ABORTED):
            generation.read()
        self.assertEqual(generation.text, "a")


class TextTest(ClientTest):
    def test_score(self):
        self.answer("Score", lambda request, context: inference_pb2.ScoreResponse(
            token_ids=[1, 2], perplexity=3.5,
            logprobs=[inference_pb2.TokenLogprob(token_id=2, logprob=-1.25)]))
        score = self.client.score("tiny", "ab", top_logprobs=2)
        self.assertEqual((score.perplexity, score.logprobs[0].logprob), (3.5, -1.25))
        self.client.score("tiny", token_ids=[1, 2])
        self.assertEqual(self.server.requests, [
            inference_pb2.ScoreRequest(model="tiny", text="ab", top_logprobs=2),
            inference_pb2.ScoreRequest(model="tiny",
                                       token_ids=inference_pb2.TokenIds(ids=[1, 2]))])

    def test_tokenize_and_detokenize(self):
        self.answer("Tokenize", lambda request, context: inference_pb2.TokenizeResponse(
            token_ids=[1, 2], tokens=[b"a", b"\xff"]))
        self.answer("Detokenize", lambda request, context: inference_pb2.DetokenizeResponse(
            text="a\ufffd"))
        tokens = self.client.tokenize("tiny", "", add_special_tokens=False)
        self.assertEqual((list(tokens.token_ids), list(tokens.tokens)), ([1, 2], [b"a", b"\xff"]))
        self.client.tokenize("tiny", messages=[{"role": "user", "content": "Hi"}])
        self.assertEqual(self.client.detokenize("tiny", [1, 2], skip_special_tokens=True),
                         "a\ufffd")
        empty, chat, ids = self.server.requests
        self.assertEqual(empty.WhichOneof("input"), "text")
        self.assertTrue(empty.HasField("add_special_tokens"))
        self.assertEqual(chat.chat.messages[0].content, "Hi")
        self.assertFalse(chat.HasField("add_special_tokens"))
        self.assertEqual(list(ids.token_ids), [1, 2])


class EvaluationTest(ClientTest):
    def evaluate(self, request, context):
        for done in range(3):
            yield evaluation_pb2.EvaluatePerplexityResponse(
                windows_done=done, windows_total=2, done=done == 2, perplexity=10.0 - done)

    def test_progress_then_the_result(self):
        self.answer("EvaluatePerplexity", self.evaluate)
        evaluation = self.client.evaluate_perplexity(
            "tiny", common_pb2.CorpusRef(name="a.jsonl", first_text=2), window=64, compute="f32")
        self.assertEqual([progress.windows_done for progress in evaluation], [0, 1, 2])
        self.assertEqual(evaluation.result.perplexity, 8.0)
        self.assertEqual(self.client.evaluate_perplexity("tiny", "a.txt").result.perplexity, 8.0)
        self.assertEqual(self.server.requests, [
            evaluation_pb2.EvaluatePerplexityRequest(
                model="tiny", corpus=common_pb2.CorpusRef(name="a.jsonl", first_text=2), window=64,
                compute=common_pb2.COMPUTE_F32),
            evaluation_pb2.EvaluatePerplexityRequest(
                model="tiny", corpus=common_pb2.CorpusRef(name="a.txt"))])

    def test_no_result_is_an_error(self):
        self.answer("EvaluatePerplexity", lambda request, context: iter(
            [evaluation_pb2.EvaluatePerplexityResponse(windows_done=1)]))
        with self.refused(Code.INTERNAL):
            self.client.evaluate_perplexity("tiny", "a.txt").result
        evaluation = self.client.evaluate_perplexity("tiny", "a.txt")
        evaluation.close()
        with self.refused(Code.CANCELLED):
            evaluation.result


class ProfileTest(ClientTest):
    def profile(self, request, context):
        yield evaluation_pb2.ProfileActivationsResponse(layers_total=2)
        for layer in range(2):
            yield evaluation_pb2.ProfileActivationsResponse(
                layers_done=layer + 1, layers_total=2,
                profile=evaluation_pb2.ActivationProfile(layer=layer, kurtosis=3))
        yield evaluation_pb2.ProfileActivationsResponse(layers_done=2, layers_total=2, done=True)

    def test_progress_and_the_profiles(self):
        self.answer("ProfileActivations", self.profile)
        profile = self.client.profile_activations("tiny", "a.txt", windows=2, sites=["qkv"],
                                                  layers=[0, 1], compute="f32")
        self.assertEqual([progress.layers_done for progress in profile], [0, 1, 2, 2])
        self.assertEqual([each.layer for each in profile.profiles], [0, 1])
        self.assertEqual(self.server.requests, [evaluation_pb2.ProfileActivationsRequest(
            model="tiny", corpus=common_pb2.CorpusRef(name="a.txt"), windows=2, layers=[0, 1],
            sites=[evaluation_pb2.ACTIVATION_SITE_QKV], compute=common_pb2.COMPUTE_F32)])
        with self.assertRaises(TypeError):
            self.client.profile_activations("tiny", "a.txt", tokens=2)

    def test_no_end_is_an_error(self):
        self.answer("ProfileActivations", lambda request, context: iter(
            [evaluation_pb2.ProfileActivationsResponse(layers_done=1)]))
        with self.refused(Code.INTERNAL):
            self.client.profile_activations("tiny", "a.txt").profiles


if __name__ == "__main__":
    unittest.main()
