"""A client of one nibbled, or of several behind one address."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from nibble.v1 import (common_pb2, evaluation_pb2, evaluation_pb2_grpc, inference_pb2,
                       inference_pb2_grpc, model_pb2, model_pb2_grpc, quantization_pb2,
                       quantization_pb2_grpc)
from nibble_client.errors import NibbleError, from_number, from_rpc
from nibble_client.fields import (Corpus, EnumValue, GenerateFields, JobFields, ProfileFields,
                                  corpus_ref, fill, generate_request)
from nibble_client.streams import Evaluation, Generation, Profile, Stream

# The turns of a conversation: {"role": "user", "content": "Hello"}.
Messages = Iterable[inference_pb2.ChatMessage | Mapping[str, str]]

_PAGE_SIZE = 100
_RECONNECT_PAUSE = 0.5
_CHANNEL_OPTIONS = [("grpc.max_receive_message_length", -1),  # reports of large models
                    ("grpc.initial_reconnect_backoff_ms", 200),
                    ("grpc.max_reconnect_backoff_ms", 2000),
                    # A stream on which nothing comes may be one of a server that is gone.
                    ("grpc.keepalive_time_ms", 20_000),
                    ("grpc.keepalive_timeout_ms", 20_000),
                    ("grpc.http2.max_pings_without_data", 0)]


class Client:
    """Calls nibble's services. Thread-safe; calls block.

    `address` is host:port; it connects at the first call. `credentials` are those of a TLS server.
    `reconnect_for`: how many seconds `watch` and `wait` try to reach a lost server again.

    Every method raises NibbleError with the server's status. `timeout` is a call's deadline in
    seconds (None: none); a call that is not done by then ends with DEADLINE_EXCEEDED. `version` 0
    is the newest version of a model. Enums are taken as numbers, or by name: "FORMAT_E2M1", "e2m1".

    What this class does not wrap is called by the stubs `quantization`, `models_service`,
    `inference` and `evaluation`, which raise grpc.RpcError.
    """

    def __init__(self, address: str = "127.0.0.1:8500", *,
                 credentials: grpc.ChannelCredentials | None = None,
                 reconnect_for: float = 60) -> None:
        self._channel = (grpc.insecure_channel(address, _CHANNEL_OPTIONS) if credentials is None
                         else grpc.secure_channel(address, credentials, _CHANNEL_OPTIONS))
        self._reconnect_for = reconnect_for
        self.quantization: Any = quantization_pb2_grpc.QuantizationServiceStub(self._channel)
        self.models_service: Any = model_pb2_grpc.ModelServiceStub(self._channel)
        self.inference: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self.evaluation: Any = evaluation_pb2_grpc.EvaluationServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls in flight are cancelled."""
        self._channel.close()

    # Jobs

    def submit(self, spec: quantization_pb2.JobSpec | None = None, *, request_id: str = "",
               timeout: float | None = None,
               **fields: Unpack[JobFields]) -> quantization_pb2.Job:
        """Queues a job, given as a JobSpec or by the spec's fields.

        Repeating a call with the same `request_id` returns the same job.
        """
        request = quantization_pb2.SubmitJobRequest(spec=_job_spec("submit", spec, fields),
                                                    request_id=request_id)
        return _unary(self.quantization.SubmitJob, request, timeout)

    def estimate(self, spec: quantization_pb2.JobSpec | None = None, *,
                 timeout: float | None = None,
                 **fields: Unpack[JobFields]) -> quantization_pb2.JobEstimate:
        """What a job would need, without queueing it; given as for `submit`."""
        request = quantization_pb2.EstimateJobRequest(spec=_job_spec("estimate", spec, fields))
        return _unary(self.quantization.EstimateJob, request, timeout)

    def job(self, job_id: str, *, include_layers: bool = False,
            timeout: float | None = None) -> quantization_pb2.Job:
        """One job; with the reports of its finished layers if asked for."""
        request = quantization_pb2.GetJobRequest(job_id=job_id, include_layers=include_layers)
        return _unary(self.quantization.GetJob, request, timeout)

    def jobs(self, *, states: Iterable[EnumValue] = (), labels: Mapping[str, str] | None = None,
             model: str = "", timeout: float | None = None) -> Iterator[quantization_pb2.Job]:
        """All jobs that meet every filter, newest first. `timeout` is for each page."""
        request = fill(quantization_pb2.ListJobsRequest,
                       {"states": states, "labels": labels, "model": model})
        for page in _pages(self.quantization.ListJobs, request, timeout):
            yield from page.jobs

    def watch(self, job_id: str, *, after_sequence: int = 0,
              timeout: float | None = None) -> Iterator[quantization_pb2.JobEvent]:
        """A job's events after `after_sequence`, each once and in order, up to its final state.

        A connection that is lost after the first event is taken up again after the last one seen.
        """
        request = quantization_pb2.WatchJobRequest(job_id=job_id, after_sequence=after_sequence)
        deadline = None if timeout is None else time.monotonic() + timeout
        give_up: float | None = None  # None: the connection is not known to be lost
        seen = False
        while True:
            began = time.monotonic()
            left = None if deadline is None else deadline - began
            with Stream[quantization_pb2.JobEvent](
                    self.quantization.WatchJob(request, timeout=left)) as stream:
                try:
                    for event in iter(stream.receive, None):
                        request.after_sequence = event.sequence
                        seen, give_up = True, None
                        yield event
                    return
                except NibbleError as error:
                    if error.code is not grpc.StatusCode.UNAVAILABLE or not seen:
                        raise
                    now = time.monotonic()
                    # A call that lasted was connected, though nothing happened to the job.
                    if give_up is None or now - began > self._reconnect_for:
                        give_up = now + self._reconnect_for
                    if now >= give_up:
                        raise
            time.sleep(_RECONNECT_PAUSE)

    def wait(self, job_id: str, *, timeout: float | None = None) -> quantization_pb2.Job:
        """The job once it has SUCCEEDED. NibbleError with its failure, or CANCELLED, otherwise."""
        for _ in self.watch(job_id, timeout=timeout):
            pass
        job = self.job(job_id)
        if job.state == quantization_pb2.JOB_STATE_FAILED:
            raise from_number(job.failure.code, job.failure.message)
        if job.state == quantization_pb2.JOB_STATE_CANCELLED:
            raise NibbleError(grpc.StatusCode.CANCELLED, f"job {job_id} was cancelled")
        return job

    def cancel(self, job_id: str, *, timeout: float | None = None) -> quantization_pb2.Job:
        """Asks a job to stop."""
        request = quantization_pb2.CancelJobRequest(job_id=job_id)
        return _unary(self.quantization.CancelJob, request, timeout)

    def delete(self, job_id: str, *, timeout: float | None = None) -> None:
        """Forgets a finished job; what it made stays."""
        _unary(self.quantization.DeleteJob, quantization_pb2.DeleteJobRequest(job_id=job_id),
               timeout)

    # Models

    def models(self, *, kind: EnumValue = 0, states: Iterable[EnumValue] = (),
               timeout: float | None = None) -> Iterator[model_pb2.Model]:
        """All models that meet the filters, by name. `timeout` is for each page."""
        request = fill(model_pb2.ListModelsRequest, {"kind": kind, "states": states})
        for page in _pages(self.models_service.ListModels, request, timeout):
            yield from page.models

    def model(self, name: str, *, version: int | None = None, include_report: bool = False,
              timeout: float | None = None) -> model_pb2.Model:
        """One model: all its versions, or only one. Layers' reports if asked for."""
        request = model_pb2.GetModelRequest(name=name, version=version or 0,
                                            include_report=include_report)
        return _unary(self.models_service.GetModel, request, timeout)

    def load(self, name: str, *, version: int = 0, compute: EnumValue = 0,
             kv_cache_format: EnumValue = 0, kv_cache_bytes: int | None = None,
             max_context_tokens: int | None = None,
             timeout: float | None = None) -> model_pb2.Model:
        """Loads a model for serving and returns when it is loaded."""
        options = fill(model_pb2.LoadOptions,
                       {"compute": compute, "kv_cache_format": kv_cache_format,
                        "kv_cache_bytes": kv_cache_bytes, "max_context_tokens": max_context_tokens})
        request = model_pb2.LoadModelRequest(name=name, version=version, options=options)
        return _unary(self.models_service.LoadModel, request, timeout)

    def unload(self, name: str, *, version: int = 0, force: bool = False,
               timeout: float | None = None) -> model_pb2.Model:
        """Takes a model out of service; its requests are finished first, or ended with `force`."""
        request = model_pb2.UnloadModelRequest(name=name, version=version, force=force)
        return _unary(self.models_service.UnloadModel, request, timeout)

    def delete_model(self, name: str, *, version: int | None = None,
                     timeout: float | None = None) -> None:
        """Removes a model's files for good: all its versions, or only one."""
        _unary(self.models_service.DeleteModel,
               model_pb2.DeleteModelRequest(name=name, version=version or 0), timeout)

    # Corpora

    def corpora(self, *, timeout: float | None = None) -> Iterator[model_pb2.Corpus]:
        """All corpora, by name. `timeout` is for each page."""
        for page in _pages(self.models_service.ListCorpora, model_pb2.ListCorporaRequest(),
                           timeout):
            yield from page.corpora

    def delete_corpus(self, name: str, *, timeout: float | None = None) -> None:
        """Removes a corpus."""
        _unary(self.models_service.DeleteCorpus, model_pb2.DeleteCorpusRequest(name=name), timeout)

    # Text

    def generate(self, model: str, prompt: str | None = None, *, messages: Messages | None = None,
                 token_ids: Iterable[int] | None = None, timeout: float | None = None,
                 **fields: Unpack[GenerateFields]) -> Generation:
        """Continues a text, a conversation or token ids: exactly one of them.

        The call begins at once, an error comes with the iteration. Leaving the iterator (close(),
        `with`, or dropping it) cancels the call.
        """
        request = generate_request(fields)
        request.MergeFrom(inference_pb2.GenerateRequest(
            model=model, **_input(prompt, messages, token_ids)))
        return Generation(self.inference.Generate(request, timeout=timeout))

    def score(self, model: str, text: str | None = None, *,
              token_ids: Iterable[int] | None = None, version: int = 0, top_logprobs: int = 0,
              priority: int = 0, request_id: str = "",
              timeout: float | None = None) -> inference_pb2.ScoreResponse:
        """Log-probabilities of the tokens of a text, or of token ids, from the second on."""
        request = inference_pb2.ScoreRequest(
            model=model, version=version, request_id=request_id, top_logprobs=top_logprobs,
            priority=priority, **_input(text, None, token_ids))
        return _unary(self.inference.Score, request, timeout)

    def tokenize(self, model: str, text: str | None = None, *, messages: Messages | None = None,
                 version: int = 0, add_special_tokens: bool | None = None,
                 timeout: float | None = None) -> inference_pb2.TokenizeResponse:
        """The tokens of a text, or of a conversation."""
        request = fill(inference_pb2.TokenizeRequest, {
            "model": model, "version": version, "add_special_tokens": add_special_tokens,
            **_input(text, messages, None)})
        return _unary(self.inference.Tokenize, request, timeout)

    def detokenize(self, model: str, token_ids: Iterable[int], *, version: int = 0,
                   skip_special_tokens: bool = False, timeout: float | None = None) -> str:
        """The text of tokens; bytes that are not UTF-8 appear as U+FFFD."""
        request = inference_pb2.DetokenizeRequest(model=model, version=version, token_ids=token_ids,
                                                  skip_special_tokens=skip_special_tokens)
        response = _unary(self.inference.Detokenize, request, timeout)
        return str(response.text)

    def evaluate_perplexity(self, model: str, corpus: Corpus, *, version: int = 0,
                            window: int | None = None, windows: int | None = None,
                            compute: EnumValue = 0, priority: int = 0, request_id: str = "",
                            timeout: float | None = None) -> Evaluation:
        """Perplexity on a corpus: iterate over the progress, or take `.result`.

        `corpus` is the name of a corpus, or a CorpusRef for a range of its texts. Leaving the
        iterator cancels the call.
        """
        request = fill(evaluation_pb2.EvaluatePerplexityRequest, {
            "model": model, "version": version, "request_id": request_id,
            "corpus": corpus_ref(corpus), "window": window, "windows": windows,
            "compute": compute, "priority": priority})
        return Evaluation(self.evaluation.EvaluatePerplexity(request, timeout=timeout))

    def profile_activations(self, model: str, corpus: Corpus, *, timeout: float | None = None,
                            **fields: Unpack[ProfileFields]) -> Profile:
        """What goes into the linears of a model: iterate over the progress, or take `.profiles`.

        `corpus` is the name of a corpus, or a CorpusRef for a range of its texts. Leaving the
        iterator cancels the call.
        """
        request = fill(evaluation_pb2.ProfileActivationsRequest,
                       {"model": model, "corpus": corpus_ref(corpus), **fields})
        return Profile(self.evaluation.ProfileActivations(request, timeout=timeout))


def _unary(method: Callable[..., Any], request: Any, timeout: float | None) -> Any:
    try:
        return method(request, timeout=timeout)
    except grpc.RpcError as error:
        raise from_rpc(error) from error


def _job_spec(method: str, spec: quantization_pb2.JobSpec | None,
              fields: JobFields) -> quantization_pb2.JobSpec:
    if (spec is None) != bool(fields):
        raise TypeError(f"{method}: expected either a JobSpec or fields of one")
    if spec is not None:
        return spec
    fields["corpus"] = corpus_ref(fields.get("corpus"))
    return fill(quantization_pb2.JobSpec, fields)


def _pages(method: Callable[..., Any], request: Any, timeout: float | None) -> Iterator[Any]:
    request.page.CopyFrom(common_pb2.Page(size=_PAGE_SIZE))
    while True:
        page = _unary(method, request, timeout)
        yield page
        if not page.next_page_token:
            return
        request.page.token = page.next_page_token


def _input(text: str | None, messages: Messages | None,
           token_ids: Iterable[int] | None) -> dict[str, Any]:
    """The one field of a request's `oneof` that was given."""
    given: dict[str, Any] = {}
    if text is not None:
        given["text"] = text
    if messages is not None:
        given["chat"] = inference_pb2.Chat(messages=messages)
    if token_ids is not None:
        given["token_ids"] = inference_pb2.TokenIds(ids=token_ids)
    if len(given) != 1:
        raise TypeError(f"found {' and '.join(given) or 'no input'}, expected exactly one of text, "
                        "messages and token ids")
    return given
