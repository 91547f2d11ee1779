"""Messages from keyword arguments: which there are, and how they are filled in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict, TypeVar

from google.protobuf.message import Message

from nibble.v1 import common_pb2, evaluation_pb2, inference_pb2

# A number of the enum, or its name, whole ("FORMAT_E2M1") or without prefix in any case ("e2m1").
EnumValue = int | str
# The name of a corpus, or a range of its texts.
Corpus = str | common_pb2.CorpusRef

_Message = TypeVar("_Message", bound=Message)
# Each of protobuf's backends has an EnumDescriptor of its own.
_EnumDescriptor = Any


class JobFields(TypedDict, total=False):
    """The fields of nibble.v1.JobSpec, which documents each."""

    model: str
    model_version: int
    output: str
    weights: EnumValue
    weights_asymmetric: bool
    activations: EnumValue
    activations_symmetric: bool
    group_size: int | None
    scale: EnumValue
    m2_rounding: EnumValue
    scale_search: EnumValue
    method: EnumValue
    act_order: bool | None
    damping: float | None
    lorc_rank: int
    lorc_metric: EnumValue
    lorc_iterations: int | None
    rotate: bool
    rotate_seed: int | None
    exclude: Iterable[str]
    compute: EnumValue
    corpus: Corpus | None
    windows: int | None
    window: int | None
    priority: int
    labels: Mapping[str, str]


class ProfileFields(TypedDict, total=False):
    """The fields of nibble.v1.ProfileActivationsRequest but model and corpus, documented there."""

    version: int
    request_id: str
    windows: int | None
    window: int | None
    compute: EnumValue
    layers: Iterable[int]
    sites: Iterable[EnumValue]
    histogram_bins: int | None
    quantiles: Iterable[float]
    outlier_ratio: float | None
    outlier_channels: int | None
    placement_token: int | None
    placement_formats: Iterable[evaluation_pb2.PlacementFormat]


class SamplingFields(TypedDict, total=False):
    """The fields of nibble.v1.Sampling, which documents each."""

    temperature: float | None
    top_k: int
    top_p: float | None
    min_p: float
    repetition_penalty: float | None
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None


class GrammarFields(TypedDict, total=False):
    """The fields of nibble.v1.Grammar, of which at most one may be set."""

    json_schema: str | None
    regex: str | None
    ebnf: str | None


class GenerateFields(SamplingFields, GrammarFields, total=False):
    """Besides those, the fields of nibble.v1.GenerateRequest but model, prompt and n."""

    version: int
    request_id: str
    max_tokens: int | None
    min_tokens: int
    stop: Iterable[str]
    stop_token_ids: Iterable[int]
    ignore_eos: bool
    include_special_tokens: bool
    logprobs: int | None
    prompt_logprobs: int | None
    priority: int


def fill(message_type: type[_Message], fields: Mapping[str, Any]) -> _Message:
    """A message of these fields; None leaves one unset."""
    known = message_type.DESCRIPTOR.fields_by_name
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in known:
            raise TypeError(f"{message_type.__name__} has no field {name!r}")
        enum = known[name].enum_type
        if value is None:
            continue
        if isinstance(value, str) and known[name].default_value == []:  # a repeated field
            raise TypeError(f"{name}: found {value!r}, expected a list")
        if enum is None:
            values[name] = value
        elif isinstance(value, (int, str)):
            values[name] = _enum_number(name, enum, value)
        else:
            values[name] = [_enum_number(name, enum, each) for each in value]
    return message_type(**values)


def generate_request(fields: GenerateFields) -> inference_pb2.GenerateRequest:
    """A request without model and prompt."""
    groups: dict[str, dict[str, Any]] = {"sampling": {}, "grammar": {}, "": {}}
    for name, value in fields.items():
        if name not in GenerateFields.__annotations__:
            raise TypeError(f"generate() got an unexpected keyword argument {name!r}")
        if value is not None:
            group = ("sampling" if name in SamplingFields.__annotations__ else
                     "grammar" if name in GrammarFields.__annotations__ else "")
            groups[group][name] = value
    if len(groups["grammar"]) > 1:
        raise TypeError(f"found {' and '.join(groups['grammar'])}, expected at most one grammar")
    return fill(inference_pb2.GenerateRequest, {
        "sampling": groups["sampling"] or None, "grammar": groups["grammar"] or None,
        **groups[""]})


def corpus_ref(corpus: Corpus | None) -> common_pb2.CorpusRef | None:
    """The message of a corpus that may be given by its name."""
    return common_pb2.CorpusRef(name=corpus) if isinstance(corpus, str) else corpus


def enum_word(enum: _EnumDescriptor, number: int) -> str:
    """The short name of an enum's value: FINISH_REASON_STOP is "stop"."""
    known = enum.values_by_number.get(number)
    return str(known.name).removeprefix(_prefix(enum)).lower() if known else str(number)


def _prefix(enum: _EnumDescriptor) -> str:
    return str(enum.values_by_number[0].name).removesuffix("UNSPECIFIED")


def _enum_number(field: str, enum: _EnumDescriptor, value: EnumValue) -> int:
    if isinstance(value, int):
        return value
    name = value.upper()
    known = enum.values_by_name.get(name) or enum.values_by_name.get(_prefix(enum) + name)
    if known is None:
        words = ", ".join(enum_word(enum, number) for number in enum.values_by_number if number)
        raise ValueError(f"{field}: found {value!r}, expected one of {words}")
    return int(known.number)
