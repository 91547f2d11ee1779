"""What a report is about: a job or a model, in one shape."""

from dataclasses import dataclass, field

from nibble.v1 import common_pb2, model_pb2, quantization_pb2


@dataclass
class Subject:
    title: str
    # The model whose activations a profile measures.
    profiled: str
    # Label and value, in order.
    facts: list[tuple[str, str]]
    spec: list[tuple[str, str]] = field(default_factory=list)
    layers: list[quantization_pb2.LayerReport] = field(default_factory=list)


def human_bytes(count: int) -> str:
    """1536 -> "1.5 KiB"."""
    value, unit = float(count), 0
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    while value >= 1024 and unit + 1 < len(units):
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {units[unit]}" if unit else f"{count} B"


def short(enum: object, number: int) -> str:
    """JOB_STATE_RUNNING -> "running"."""
    prefix = enum.DESCRIPTOR.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return enum.Name(number).removeprefix(prefix).lower()


def of_job(job: quantization_pb2.Job) -> Subject:
    facts = [("job", job.id), ("state", short(quantization_pb2.JobState, job.state)),
             ("attempt", str(job.attempt))]
    if job.HasField("failure"):
        facts.append(("failure", job.failure.message))
    if job.HasField("summary"):
        facts += _summary(job.summary)
    return Subject(f"{job.spec.model} to {job.spec.output}", job.spec.model, facts,
                   _spec(job.spec), list(job.layers))


def of_model(model: model_pb2.Model) -> Subject:
    version = model.versions[0]
    facts = [("model", f"{model.name}, version {version.version}"),
             ("kind", short(model_pb2.ModelKind, version.kind)),
             ("architecture", version.architecture),
             ("parameters", f"{version.parameters:,}"),
             ("layers", str(version.layers)),
             ("size", human_bytes(version.bytes)),
             ("bits per weight of the linears", f"{version.linear_bits_per_weight:.3f}"),
             ("bits per weight of the model", f"{version.model_bits_per_weight:.3f}")]
    spec = _spec(version.spec) if version.HasField("spec") else []
    return Subject(model.name, model.name, facts, spec, list(version.report))


def _summary(summary: quantization_pb2.JobSummary) -> list[tuple[str, str]]:
    facts = [("size", f"{human_bytes(summary.artifact_bytes)} of "
                      f"{human_bytes(summary.source_bytes)}"),
             ("bits per weight of the linears", f"{summary.linear_bits_per_weight:.3f}"),
             ("bits per weight of the model", f"{summary.model_bits_per_weight:.3f}"),
             ("seconds", f"{summary.seconds:.1f}"),
             ("peak host memory", human_bytes(summary.peak_host_bytes))]
    if summary.peak_device_bytes:
        facts.append(("peak device memory", human_bytes(summary.peak_device_bytes)))
    if summary.HasField("relative_error"):
        facts.append(("mean relative output error", f"{summary.relative_error:.6f}"))
    return facts


def _spec(spec: quantization_pb2.JobSpec) -> list[tuple[str, str]]:
    """Every field that is set, by its name."""
    return [(descriptor.name, _value(descriptor, value)) for descriptor, value in spec.ListFields()]


def _value(descriptor: object, value: object) -> str:
    if descriptor.enum_type is not None:
        prefix = descriptor.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
        return descriptor.enum_type.values_by_number[value].name.removeprefix(prefix).lower()
    if isinstance(value, common_pb2.CorpusRef):
        texts = (f", texts {value.first_text or 1} to {value.last_text or 'the last'}"
                 if value.first_text or value.last_text else "")
        return value.name + texts
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float, str)):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if hasattr(value, "items"):
        return ", ".join(f"{key}={each}" for key, each in sorted(value.items()))
    return ", ".join(value)
