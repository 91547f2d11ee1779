"""What goes into the linears: ZeroQuant-FP's figures 1 and 2 and the same over all layers."""

import math
from collections import defaultdict

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, SymmetricalLogLocator

from nibble.v1 import evaluation_pb2
from nibble_tools.figures import (COLOURS, figure, layer_axis, line, log_if_wide, png,
                                  shared_legend, short_number)
from nibble_tools.page import folded, heading, note, picture, table

Profile = evaluation_pb2.ActivationProfile

SITES = {evaluation_pb2.ACTIVATION_SITE_QKV: "into q, k, v",
         evaluation_pb2.ACTIVATION_SITE_ATTENTION_OUTPUT: "into the attention's output",
         evaluation_pb2.ACTIVATION_SITE_MLP_INPUT: "into the MLP",
         evaluation_pb2.ACTIVATION_SITE_MLP_OUTPUT: "into the MLP's output"}
FORMATS = {2: "E4M3", 3: "E5M2", 4: "INT8"}  # of nibble.v1.ActivationFormat
HISTOGRAM_LAYERS = 4
# Colours and markers of places and of formats.
SITE_STYLES = (4, 5, 3, 1)
FORMAT_STYLES = (5, 4, 3, 6)


def section(profiles: list[Profile]) -> str:
    by_site = sites_of(profiles)
    body = heading("What goes into the linears")
    body += note(f"{profiles[0].tokens:,} tokens. The inputs of the decoder layers' linears before "
                 "any rounding; all counts and quantiles are exact.")
    body += picture(histogram_figure(by_site), "histograms of activations")
    if len(by_site[next(iter(by_site))]) > 1:
        body += picture(quantile_figure(by_site), "quantiles of activations by layer")
        body += picture(shape_figure(by_site), "kurtosis, token ranges and outliers by layer")
    body += outlier_table(by_site)
    if any(profile.placements for profile in profiles):
        body += heading("How formats place one token's values")
        body += note("Of the layer with the highest kurtosis at each place. The top row is the "
                     "values as they are; below are those that each format has for them, and its "
                     "relative error. A row's axis is linear around 0 and logarithmic outside.")
        body += picture(placement_figure(by_site), "values of a token in several formats")
        if len(by_site[next(iter(by_site))]) > 1:
            body += picture(placement_error_figure(by_site), "rounding errors by layer")
    return body + folded("every layer and place", every_profile(profiles))


def sites_of(profiles: list[Profile]) -> dict[int, list[Profile]]:
    """The profiles of each place, by layer."""
    sites = defaultdict(list)
    for profile in sorted(profiles, key=lambda each: (each.site, each.layer)):
        sites[profile.site].append(profile)
    return dict(sites)


def spread(items: list, count: int) -> list:
    """At most so many, from the first to the last."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def histogram_figure(by_site: dict[int, list[Profile]]) -> bytes:
    """The paper's figure 1: layers downwards, places sideways."""
    layers = spread(sorted({each.layer for site in by_site.values() for each in site}),
                    HISTOGRAM_LAYERS)
    made, axes = figure(len(layers), len(by_site), 2.1 * len(layers) + 0.5)
    for column, (site, profiles) in enumerate(by_site.items()):
        found = {profile.layer: profile for profile in profiles}
        for row, layer in enumerate(layers):
            axis = axes[row, column]
            if layer not in found:
                axis.set_axis_off()
                continue
            draw_histogram(axis, found[layer])
            if row == 0:
                axis.set_title(SITES[site])
            if row == len(layers) - 1:
                axis.set_xlabel("value")
            if column == 0:
                axis.set_ylabel(f"layer {layer}\nshare of values")
    return png(made)


def draw_histogram(axis: object, profile: Profile) -> None:
    counts = np.asarray(profile.histogram.counts, float)
    low, high = profile.histogram.min, profile.histogram.max
    edges = np.linspace(low, high if high > low else low + 1, len(counts) + 1)
    axis.stairs(counts / counts.sum(), edges, fill=True, color=COLOURS[4])
    axis.set_yscale("log")
    axis.set_ylim(0.5 / counts.sum(), 2)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.xaxis.set_major_formatter(FuncFormatter(short_number))
    axis.text(0.98, 0.96, f"kurtosis {short_number(profile.kurtosis)}\n"
              f"{len(profile.outlier_channels)} outlier channels", transform=axis.transAxes,
              ha="right", va="top", fontsize=8,
              bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1})


def quantile_bands(profile: Profile) -> dict[tuple[float, float], tuple[float, float]]:
    """The values at pairs of probabilities that lie around the median, the widest first."""
    values = {quantile.probability: quantile.value for quantile in profile.quantiles}
    pairs = {}
    for low in sorted(values):
        high = next((each for each in values if math.isclose(each, 1 - low, abs_tol=1e-9)), None)
        if low < 0.5 and high is not None:
            pairs[low, high] = values[low], values[high]
    return pairs


def quantile_figure(by_site: dict[int, list[Profile]]) -> bytes:
    made, axes = figure(2, 2, 6.4)
    for axis, (site, profiles) in zip(axes.flat, by_site.items()):
        layers = [profile.layer for profile in profiles]
        bands = [quantile_bands(profile) for profile in profiles]
        for depth, (low, high) in enumerate(bands[0]):
            lows, highs = zip(*(band[low, high] for band in bands))
            axis.fill_between(layers, lows, highs, color="#0072B2", linewidth=0,
                              alpha=0.12 + 0.11 * depth,
                              label=f"{100 * low:g}% to {100 * high:g}%")
        axis.plot(layers, [median(profile.quantiles) for profile in profiles], color="#000000",
                  linewidth=1.2, label="median")
        symmetric_log(axis, "y", max((abs(each.value) for profile in profiles
                                      for each in profile.quantiles
                                      if 0.2 < each.probability < 0.8), default=0))
        axis.set_title(SITES[site])
        axis.set_ylabel("value")
        layer_axis(axis, layers)
    for axis in list(axes.flat)[len(by_site):]:
        axis.set_axis_off()
    shared_legend(made, axes[0, 0], 7)
    return png(made)


def median(quantiles: object) -> float:
    """The value of the quantile nearest to the middle."""
    return min(quantiles, key=lambda each: abs(each.probability - 0.5)).value


def symmetric_log(axes: object, name: str, usual: float) -> None:
    """Linear around 0, as far as values are usual, to a power of ten; logarithmic outside."""
    threshold = 10.0 ** round(math.log10(usual)) if usual > 0 else 1.0
    getattr(axes, f"set_{name}scale")("symlog", linthresh=threshold, linscale=1)
    axis = getattr(axes, f"{name}axis")
    axis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=threshold))
    axis.get_major_locator().set_params(numticks=9)
    axis.set_major_formatter(FuncFormatter(short_number))


def shape_figure(by_site: dict[int, list[Profile]]) -> bytes:
    made, axes = figure(1, 3, 3.5)
    measures = (("kurtosis (3: normal)", lambda each: each.kurtosis),
                ("median range of a token", lambda each: median(each.token_range_quantiles)),
                ("outlier channels", lambda each: len(each.outlier_channels)))
    for axis, (label, measure) in zip(axes[0], measures):
        values = []
        for index, (site, profiles) in enumerate(by_site.items()):
            layers, found = zip(*((each.layer, measure(each)) for each in profiles))
            line(axis, layers, found, SITE_STYLES[index], SITES[site])
            values += found
        log_if_wide(axis, values)
        axis.set_ylabel(label)
        if axis.get_yscale() == "linear":
            axis.set_ylim(0, 1.1 * max(*values, 1))
            axis.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            axis.yaxis.set_major_formatter(FuncFormatter(short_number))
        layer_axis(axis, layers)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    shared_legend(made, axes[0, 0], 4)
    return png(made)


def outlier_table(by_site: dict[int, list[Profile]]) -> str:
    """The channels that stand out in the most layers."""
    rows = []
    for site, profiles in by_site.items():
        ratios = defaultdict(list)
        for profile in profiles:
            for outlier in profile.outlier_channels:
                ratios[outlier.channel].append(outlier.ratio)
        often = sorted(ratios, key=lambda each: (-len(ratios[each]), -max(ratios[each])))[:6]
        rows += [(SITES[site], str(channel), f"{len(ratios[channel])} of {len(profiles)}",
                  short_number(max(ratios[channel]))) for channel in often]
    if not rows:
        return note("No channel is an outlier by the profile's ratio.")
    return table(("outlier channels", "channel", "layers", "largest, in medians"), rows)


def format_name(placement: evaluation_pb2.Placement) -> str:
    name = FORMATS[placement.format.format]
    if name != "INT8":
        return name
    return "INT8 symmetric" if placement.format.symmetric else "INT8"


def placement_figure(by_site: dict[int, list[Profile]]) -> bytes:
    """The paper's figure 2."""
    made, axes = figure(2, 2, 5.6)
    for axis, (site, profiles) in zip(axes.flat, by_site.items()):
        profile = max(profiles, key=lambda each: each.kurtosis)
        placements = profile.placements
        values = np.asarray(placements[0].values)
        rows = [("values", values)] + [
            (f"{format_name(each)}\n{100 * each.relative_error:.2g}% off",
             np.unique(np.asarray(each.rounded))) for each in placements]
        for row, (_, marks) in enumerate(rows):
            axis.eventplot(marks, lineoffsets=-row, linelengths=0.72, linewidths=0.5,
                           colors=COLOURS[FORMAT_STYLES[(row - 1) % 4] if row else 0])
        axis.set_yticks([-row for row in range(len(rows))], [name for name, _ in rows])
        axis.grid(axis="y", visible=False)
        symmetric_log(axis, "x", float(np.median(np.abs(values))))
        axis.set_xlabel("value")
        axis.set_title(f"{SITES[site]}, layer {profile.layer}")
    for axis in list(axes.flat)[len(by_site):]:
        axis.set_axis_off()
    return png(made)


def placement_error_figure(by_site: dict[int, list[Profile]]) -> bytes:
    made, axes = figure(2, 2, 5.6)
    for axis, (site, profiles) in zip(axes.flat, by_site.items()):
        layers = [profile.layer for profile in profiles]
        values = []
        for index, placement in enumerate(profiles[0].placements):
            errors = [profile.placements[index].relative_error for profile in profiles]
            line(axis, layers, errors, FORMAT_STYLES[index % 4], format_name(placement))
            values += errors
        log_if_wide(axis, values)
        axis.set_title(SITES[site])
        axis.set_ylabel("relative error of the token")
        layer_axis(axis, layers)
    for axis in list(axes.flat)[len(by_site):]:
        axis.set_axis_off()
    shared_legend(made, axes[0, 0], 7)
    return png(made)


def every_profile(profiles: list[Profile]) -> str:
    rows = [(f"layer {each.layer}, {SITES[each.site]}", f"{each.min:.4g}", f"{each.max:.4g}",
             f"{each.mean:.4g}", f"{each.standard_deviation:.4g}", f"{each.kurtosis:.4g}",
             f"{median(each.token_range_quantiles):.4g}", str(len(each.outlier_channels)),
             *(f"{100 * placement.relative_error:.3g}%" for placement in each.placements))
            for each in profiles]
    return table(("place", "least", "greatest", "mean", "deviation", "kurtosis", "token range",
                  "outliers", *(f"{format_name(each)} error" for each in profiles[0].placements)),
                 rows)
