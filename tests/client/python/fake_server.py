"""A server of nibble's services whose answers a test scripts."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc

from nibble.v1 import (evaluation_pb2_grpc, inference_pb2_grpc, model_pb2_grpc,
                       quantization_pb2_grpc)

_SERVICES = {
    "Quantization": quantization_pb2_grpc, "Model": model_pb2_grpc,
    "Inference": inference_pb2_grpc, "Evaluation": evaluation_pb2_grpc}


class Abort(Exception):
    """Ends a call with this status."""

    def __init__(self, code, message):
        super().__init__(code, message)
        self.code, self.message = code, message


class FakeServer:
    """Answers each RPC by `handlers[name](request, context)` and keeps all requests.

    A handler of a stream is a generator.
    """

    def __init__(self):
        self.handlers = {}
        self.requests = []
        self.port = 0
        self.start()

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def start(self):
        """Starts, or starts again on the same port."""
        # One port, one server: without this a stopping server would share it with its successor.
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        for name, module in _SERVICES.items():
            servicer = type(name, (getattr(module, f"{name}ServiceServicer"),), {})
            for method in [each for each in dir(servicer) if each[0].isupper()]:
                setattr(servicer, method, self._answer(method))
            getattr(module, f"add_{name}ServiceServicer_to_server")(servicer(), self._server)
        self.port = self._server.add_insecure_port(self.address)
        self._server.start()

    def stop(self):
        """Breaks every call, as a killed daemon does."""
        self._server.stop(grace=0).wait()

    def _answer(self, name):
        streams = name in ("WatchJob", "Generate", "EvaluatePerplexity", "ProfileActivations")

        def unary(_, request, context):
            self.requests.append(request)
            try:
                return self.handlers[name](request, context)
            except Abort as status:
                context.abort(status.code, status.message)

        def stream(_, request, context):
            self.requests.append(request)
            try:
                yield from self.handlers[name](request, context)
            except Abort as status:
                context.abort(status.code, status.message)

        return stream if streams else unary


def until_left(context):
    """Keeps a handler's call open until its client leaves."""
    left = threading.Event()
    if context.add_callback(left.set):
        left.wait(timeout=60)
