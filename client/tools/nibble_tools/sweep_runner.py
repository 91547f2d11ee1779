"""Quantizes by each scheme and evaluates on each corpus, going on where an earlier run stopped."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from nibble.v1 import common_pb2, quantization_pb2

from nibble_client import Client, NibbleError
from nibble_tools.failure import Failure
from nibble_tools.progress import Progress
from nibble_tools.schemes import Scheme
from nibble_tools.sweep_state import Cell, Made, Quantized, State, key_of

# The server's fault or the network's, not a scheme's: the sweep stops.
STOPS = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.CANCELLED,
         grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.DEADLINE_EXCEEDED}


# How long a model may be in use after its evaluation, and how often to look.
RELEASE_SECONDS, RELEASE_PAUSE = 60.0, 0.2


@dataclass
class Plan:
    """What to run."""

    model: str
    schemes: list[Scheme]
    corpora: list[common_pb2.CorpusRef]
    # Calibration and compute, as fields of JobSpec.
    shared: dict[str, Any]
    # window, windows and compute, as fields of EvaluatePerplexityRequest.
    evaluation: dict[str, Any]
    keep: bool = False  # the quantized models
    ahead: int = 1      # jobs submitted before their turn


@dataclass
class Row:
    """What is known of one scheme."""

    scheme: Scheme
    quantized: Quantized | None = None
    cells: dict[str, Cell] = field(default_factory=dict)  # by the corpus's label
    failure: str = ""


def label(corpus: common_pb2.CorpusRef) -> str:
    """wiki.txt, or c4.jsonl:1:100."""
    if not corpus.HasField("first_text"):
        return corpus.name
    return f"{corpus.name}:{corpus.first_text}:{corpus.last_text}"


def _remove(delete: Callable[[str], None], name: str) -> None:
    """Waits for a model that is still in use: a server lets go of it after the evaluation's end."""
    give_up = time.monotonic() + RELEASE_SECONDS
    while True:
        try:
            return delete(name)
        except NibbleError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return None
            busy = error.code is grpc.StatusCode.FAILED_PRECONDITION
            if not busy or time.monotonic() > give_up:
                raise
        time.sleep(RELEASE_PAUSE)


class Runner:
    """`changed` is called with all rows whenever something was found."""

    def __init__(self, client: Client, plan: Plan, state: State, progress: Progress,
                 changed: Callable[[list[Row]], None]) -> None:
        self._client, self._plan, self._state = client, plan, state
        self._progress, self._changed = progress, changed
        self._version = client.model(plan.model).versions[0]
        self._bytes = {corpus.name: corpus.bytes for corpus in client.corpora()}
        wanted = {corpus.name for corpus in plan.corpora}
        if "corpus" in plan.shared:
            wanted.add(plan.shared["corpus"].name)
        for name in sorted(wanted - set(self._bytes)):
            raise Failure(f"corpus: found {name!r}, expected one of the server's: "
                          f"{', '.join(self._bytes) or 'it has none'}")
        self.rows = [self._known(scheme) for scheme in plan.schemes]

    def run(self) -> None:
        self._changed(self.rows)
        for index, row in enumerate(self.rows):
            try:
                if not self._complete(row):
                    self._run_row(index, row)
                self._clean(row)
            except NibbleError as error:
                if error.code in STOPS:
                    raise
                row.failure = f"{error.code.name}: {error.message}"
                self._progress.note(f"{row.scheme.name} failed: {row.failure}")
            self._changed(self.rows)

    def _run_row(self, index: int, row: Row) -> None:
        model = self._plan.model
        if row.scheme.fields is None:
            self._note(row, Quantized(self._version.linear_bits_per_weight or 16,
                                      self._version.model_bits_per_weight or 16,
                                      self._version.bytes))
        else:
            job = self._submit(row.scheme)
            self._submit_ahead(index)
            model = job.spec.output
            self._quantize(index, row, job)
        for corpus in self._plan.corpora:
            if label(corpus) not in row.cells:
                self._evaluate(index, row, model, corpus)

    def _clean(self, row: Row) -> None:
        """Removes what was made for the scheme."""
        made = self._state.made.get(self._scheme_key(row.scheme))
        if made is None or self._plan.keep:
            return
        # The job last: one without its model is run again.
        _remove(self._client.delete_model, made.model)
        _remove(self._client.delete, made.job)
        del self._state.made[self._scheme_key(row.scheme)]
        self._state.save()

    # What results are of, so that they are found again.

    def _text_key(self, corpus: common_pb2.CorpusRef) -> list[Any]:
        return [label(corpus), self._bytes[corpus.name]]

    def _scheme_key(self, scheme: Scheme) -> str:
        shared = {name: value for name, value in self._plan.shared.items() if name != "corpus"}
        corpus = self._plan.shared.get("corpus")
        text = None if corpus is None else self._text_key(corpus)
        return key_of(self._plan.model, self._version.version,
                      self._version.created_at.ToJsonString(), scheme.fields,
                      scheme.fields and [shared, text])

    def _cell_key(self, scheme: Scheme, corpus: common_pb2.CorpusRef) -> str:
        return key_of(self._scheme_key(scheme), self._text_key(corpus), self._plan.evaluation)

    def _known(self, scheme: Scheme) -> Row:
        cells = {label(corpus): self._state.cells.get(self._cell_key(scheme, corpus))
                 for corpus in self._plan.corpora}
        return Row(scheme, self._state.quantized.get(self._scheme_key(scheme)),
                   {name: cell for name, cell in cells.items() if cell is not None})

    def _complete(self, row: Row) -> bool:
        return row.quantized is not None and len(row.cells) == len(self._plan.corpora)

    # Jobs

    def _spec(self, scheme: Scheme) -> dict[str, Any]:
        shared = dict(self._plan.shared)
        if scheme.fields["weights"] == "none":
            for name in ("corpus", "windows", "window"):  # nothing is calibrated
                shared.pop(name, None)
        output = f"{self._plan.model[:80]}-sweep-{self._scheme_key(scheme)[:12]}"
        return {"model": self._plan.model, "output": output, **shared, **scheme.fields}

    def _submit(self, scheme: Scheme) -> quantization_pb2.Job:
        """The scheme's job, of an earlier run too; a new one where that did not make its model."""
        spec, request_id = self._spec(scheme), f"sweep-{self._scheme_key(scheme)}"
        job = self._client.submit(request_id=request_id, **spec)
        if self._is_void(job):
            self._client.delete(job.id)
            job = self._client.submit(request_id=request_id, **spec)
        self._state.made[self._scheme_key(scheme)] = Made(job.spec.output, job.id)
        self._state.save()
        return job

    def _is_void(self, job: quantization_pb2.Job) -> bool:
        if job.state in (quantization_pb2.JOB_STATE_FAILED, quantization_pb2.JOB_STATE_CANCELLED):
            return True
        if job.state != quantization_pb2.JOB_STATE_SUCCEEDED:
            return False
        try:
            self._client.model(job.spec.output)
        except NibbleError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return True
            raise
        return False

    def _submit_ahead(self, index: int) -> None:
        """So that workers are not idle while this scheme is evaluated."""
        later = [row for row in self.rows[index + 1:]
                 if row.scheme.fields is not None and not self._complete(row)]
        for row in later[:self._plan.ahead]:
            try:
                self._submit(row.scheme)
            except NibbleError as error:
                if error.code in STOPS:
                    raise
                # It says so again in its turn.

    def _quantize(self, index: int, row: Row, job: quantization_pb2.Job) -> None:
        for event in self._client.watch(job.id):
            if event.HasField("progress") and event.progress.layers:
                self._show(index, f"layer {event.progress.layer} of {event.progress.layers}")
        summary = self._client.wait(job.id).summary
        error = summary.relative_error if summary.HasField("relative_error") else None
        self._note(row, Quantized(summary.linear_bits_per_weight, summary.model_bits_per_weight,
                                  summary.artifact_bytes, summary.seconds, error))

    def _note(self, row: Row, quantized: Quantized) -> None:
        row.quantized = self._state.quantized[self._scheme_key(row.scheme)] = quantized
        self._state.save()

    # Cells

    def _evaluate(self, index: int, row: Row, model: str, corpus: common_pb2.CorpusRef) -> None:
        name = label(corpus)
        evaluation = self._client.evaluate_perplexity(model, corpus, **self._plan.evaluation)
        for response in evaluation:
            if response.windows_total:
                self._show(index, f"{name}: window {response.windows_done} of "
                                  f"{response.windows_total}")
        result = evaluation.result
        cell = Cell(result.perplexity, result.windows_done, result.tokens, result.seconds)
        row.cells[name] = self._state.cells[self._cell_key(row.scheme, corpus)] = cell
        self._state.save()
        self._progress.note(f"{row.scheme.name}  {name}  {cell.perplexity:.4f}")
        self._changed(self.rows)

    def _show(self, index: int, text: str) -> None:
        name = self.rows[index].scheme.name
        self._progress.show(f"[{index + 1}/{len(self.rows)}] {name}  {text}")
