"""Server streams as iterators that can be closed."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from nibble.v1 import evaluation_pb2, inference_pb2
from nibble_client.errors import NibbleError, from_rpc
from nibble_client.fields import enum_word

_Message = TypeVar("_Message")


class Stream(Generic[_Message]):
    """A call whose answer is a stream; leaving it, closing it or dropping it cancels the call."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Cancels what is left of the call. May come from another thread, and more than once."""
        self._closed = True
        self._call.cancel()

    def receive(self) -> _Message | None:
        """The next message. None at the end, and once the stream is closed."""
        if self._closed:
            return None
        try:
            message: _Message | None = next(self._call, None)
            return message
        except grpc.RpcError as error:
            if self._closed:
                return None
            raise from_rpc(error) from error


class Generation(Stream[inference_pb2.GenerateResponse], Iterator[str]):
    """The text of one generation, piece by piece as it comes.

    What the server tells besides is in the attributes, which grow with the iteration.
    """

    def __init__(self, call: Any) -> None:
        super().__init__(call)
        # All pieces so far.
        self.text = ""
        # The tokens so far; their text may come later.
        self.token_ids: list[int] = []
        # One for each of them, if asked for.
        self.logprobs: list[inference_pb2.TokenLogprob] = []
        # Of the prompt, from its second token on, if asked for.
        self.prompt_logprobs: list[inference_pb2.TokenLogprob] = []
        # Request id, model version and seed, from the first response on.
        self.start: inference_pb2.GenerateResponse.Start | None = None
        # "stop" or "length", at the end; the stop string or token that was met.
        self.finish_reason: str | None = None
        self.matched_stop: str | None = None
        self.matched_stop_token_id: int | None = None
        # At the end.
        self.usage: inference_pb2.Usage | None = None
        self.timing: inference_pb2.Timing | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        while (response := self.receive()) is not None:
            self._keep(response)
            if response.text:
                return response.text
        raise StopIteration

    def read(self) -> str:
        """Waits for the end and returns the whole text."""
        for _ in self:
            pass
        return self.text

    def _keep(self, response: inference_pb2.GenerateResponse) -> None:
        self.text += response.text
        self.token_ids.extend(response.token_ids)
        self.logprobs.extend(response.logprobs)
        self.prompt_logprobs.extend(response.prompt_logprobs)
        if response.HasField("start"):
            self.start = response.start
        if response.finish_reason:
            self.finish_reason = enum_word(inference_pb2.FinishReason.DESCRIPTOR,
                                           response.finish_reason)
            self.matched_stop = response.matched_stop or None
        if response.HasField("matched_stop_token_id"):
            self.matched_stop_token_id = response.matched_stop_token_id
        if response.HasField("usage"):
            self.usage = response.usage
        if response.HasField("timing"):
            self.timing = response.timing


class _Measurement(Stream[_Message], Iterator[_Message]):
    """Responses of a measurement, the last of which says `done`."""

    def __init__(self, call: Any, name: str) -> None:
        super().__init__(call)
        self._name = name
        self._last: _Message | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> _Message:
        response = self.receive()
        if response is None:
            raise StopIteration
        self._last = response
        return response

    def _finish(self) -> _Message:
        """The last response; waits for it."""
        for _ in self:
            pass
        last: Any = self._last
        if last is None or not last.done:
            why = "was closed before" if self._closed else "ended without"
            code = grpc.StatusCode.CANCELLED if self._closed else grpc.StatusCode.INTERNAL
            raise NibbleError(code, f"the {self._name} {why} its result")
        return last


class Evaluation(_Measurement[evaluation_pb2.EvaluatePerplexityResponse]):
    """The progress of an evaluation; the last one is its result."""

    def __init__(self, call: Any) -> None:
        super().__init__(call, "evaluation")

    @property
    def result(self) -> evaluation_pb2.EvaluatePerplexityResponse:
        """The result; waits for it."""
        return self._finish()


class Profile(_Measurement[evaluation_pb2.ProfileActivationsResponse]):
    """The progress of a profile of activations, with each layer and site as it is finished."""

    def __init__(self, call: Any) -> None:
        super().__init__(call, "profile")
        self._profiles: list[evaluation_pb2.ActivationProfile] = []

    def __next__(self) -> evaluation_pb2.ProfileActivationsResponse:
        response = super().__next__()
        if response.HasField("profile"):
            self._profiles.append(response.profile)
        return response

    @property
    def profiles(self) -> list[evaluation_pb2.ActivationProfile]:
        """All of them, layer by layer; waits for the end."""
        self._finish()
        return self._profiles
