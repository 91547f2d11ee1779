"""What quantization did to each layer and linear."""

from nibble_tools.figures import (figure, layer_axis, line, log_if_wide, png, shared_legend)
from nibble_tools.page import folded, heading, note, picture, table
from nibble_tools.subject import Subject, human_bytes

from nibble.v1 import quantization_pb2

Layers = list[quantization_pb2.LayerReport]


def section(subject: Subject) -> str:
    body = table((), subject.facts)
    if subject.spec:
        body += heading("Spec") + table(("field", "value"), subject.spec)
    if not subject.layers:
        return body
    body += heading("Error by layer and linear")
    body += note("Output error: trace(E H E^T) / trace(W H W^T), E = W - quantized W, H of the "
                 "calibration inputs; weight error: ||E|| / ||W||. Both with the low-rank "
                 "compensation, where there is one.")
    body += picture(error_figure(subject.layers), "errors of every linear by layer")
    body += worst(subject.layers)
    body += warnings(subject.layers)
    body += heading("Time and memory")
    body += picture(cost_figure(subject.layers), "seconds and peak memory by layer")
    return body + folded("every layer and linear", every_linear(subject.layers))


def kind(linear: quantization_pb2.LinearReport) -> str:
    """model.layers.3.self_attn.q_proj -> q_proj"""
    return linear.name.rpartition(".")[2]


def kinds(layers: Layers) -> list[str]:
    """Of linears, in the order of the forward pass."""
    return list(dict.fromkeys(kind(linear) for layer in layers for linear in layer.linears))


def error_figure(layers: Layers) -> bytes:
    calibrated = any(linear.HasField("output_error")
                     for layer in layers for linear in layer.linears)
    fields = [("output_error", "relative output error")] if calibrated else []
    fields.append(("weight_error", "relative weight error"))
    made, axes = figure(len(fields), 1, 3.2 * len(fields) + 0.4)
    for axis, (name, label) in zip(axes[:, 0], fields):
        values = []
        for index, each in enumerate(kinds(layers)):
            found = [(layer.layer, getattr(linear, name)) for layer in layers
                     for linear in layer.linears if kind(linear) == each]
            line(axis, *zip(*found), index, each)
            values += [value for _, value in found]
        log_if_wide(axis, values)
        axis.set_ylabel(label)
        layer_axis(axis, [layer.layer for layer in layers])
    shared_legend(made, axes[0, 0], 7)
    return png(made)


def cost_figure(layers: Layers) -> bytes:
    numbers = [layer.layer for layer in layers]
    made, axes = figure(1, 2, 3.0)
    seconds, memory = axes[0]
    seconds.bar(numbers, [layer.seconds for layer in layers], color="#0072B2", width=0.8)
    seconds.set_ylabel("seconds, calibration included")
    line(memory, numbers, [layer.peak_host_bytes / 2**30 for layer in layers], 5, "host")
    if any(layer.peak_device_bytes for layer in layers):
        line(memory, numbers, [layer.peak_device_bytes / 2**30 for layer in layers], 4, "device")
    memory.set_ylabel("peak memory so far, GiB")
    memory.set_ylim(0, 1.1 * memory.dataLim.y1)
    memory.legend(loc="lower right")
    for axis in (seconds, memory):
        layer_axis(axis, numbers)
    return png(made)


def output_error(linear: quantization_pb2.LinearReport) -> str:
    return f"{linear.output_error:.6f}" if linear.HasField("output_error") else "-"


def worst(layers: Layers) -> str:
    """The linears with the largest errors."""
    linears = [linear for layer in layers for linear in layer.linears]
    linears.sort(key=lambda each: (each.output_error, each.weight_error), reverse=True)
    return table(("largest errors", "output error", "weight error"),
                 [(each.name, output_error(each), f"{each.weight_error:.5f}")
                  for each in linears[:8]])


def warnings(layers: Layers) -> str:
    """Clamped groups and raised damping, where there are any."""
    linears = [linear for layer in layers for linear in layer.linears]
    odd = [each for each in linears if each.clamped_groups or each.damping_escalations]
    if not odd:
        return note("No group's scale met the clamp, and no damping was raised.")
    return folded(
        f"{sum(each.clamped_groups for each in odd):,} groups met the clamp of their scale, "
        f"damping was raised {sum(each.damping_escalations for each in odd)} times",
        table(("linear", "clamped groups", "damping", "raised"),
              [(each.name, f"{each.clamped_groups:,}", f"{each.damping:g}",
                str(each.damping_escalations)) for each in odd]))


def every_linear(layers: Layers) -> str:
    rows = [(linear.name, output_error(linear), f"{linear.weight_error:.5f}",
             f"{linear.clamped_groups:,}", f"{linear.damping:g}", str(linear.damping_escalations),
             f"{linear.seconds:.2f}", human_bytes(layer.peak_host_bytes))
            for layer in layers for linear in layer.linears]
    return table(("linear", "output error", "weight error", "clamped groups", "damping", "raised",
                  "seconds", "peak memory so far"), rows)
