"""What all pictures share: a PNG without a display, colours that the colour-blind tell apart."""

import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter  # noqa: E402

# Okabe and Ito's, without the yellow that white swallows; each line has a marker of its own too.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 11.0  # inches
DPI = 110

plt.rcParams.update({"font.size": 9.5, "axes.titlesize": 10, "axes.spines.top": False,
                     "axes.spines.right": False, "axes.grid": True, "grid.color": "#e2e2e2",
                     "axes.axisbelow": True, "legend.frameon": False, "figure.facecolor": "white"})


def figure(rows: int, columns: int, height: float) -> tuple[Figure, object]:
    """Axes as an array [rows, columns], and room between them for their labels."""
    made, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False,
                              layout="constrained")
    made.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    return made, axes


def png(made: Figure) -> bytes:
    data = io.BytesIO()
    made.savefig(data, format="png", dpi=DPI)
    plt.close(made)
    return data.getvalue()


def short_number(value: float, _position: object = None) -> str:
    """3 digits at most: 0.02, 15, 1.2k."""
    if abs(value) >= 1000:
        return f"{value / 1000:.3g}k"
    return f"{value:.3g}"


def layer_axis(axes: Axes, layers: Sequence[int]) -> None:
    """x is the decoder layer; ticks are whole and don't crowd."""
    axes.set_xlabel("decoder layer")
    axes.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))


def line(axes: Axes, x: Sequence[float], y: Sequence[float], style: int, label: str) -> None:
    """One of at most seven lines over layers."""
    axes.plot(x, y, label=label, color=COLOURS[style], marker=MARKERS[style], markersize=4,
              markevery=max(1, len(x) // 40), linewidth=1.3)


def log_if_wide(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic y axis for positive values of different sizes."""
    if len(values) == 0 or min(values) <= 0 or max(values) / min(values) < 5:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if max(values) / min(values) < 100 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(short_number))
    axes.yaxis.set_minor_formatter(NullFormatter())


def shared_legend(made: Figure, axes: Axes, columns: int) -> None:
    """Above all axes, of the lines of one."""
    handles, labels = axes.get_legend_handles_labels()
    made.legend(handles, labels, loc="outside upper center", ncols=columns)
