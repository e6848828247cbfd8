"""Plots of lines and curves; the only file that imports matplotlib."""

import importlib.util
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retroflow.errors import MissingExtraError, RetroflowError, UsageError

ENDINGS = (".pdf", ".png", ".svg")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Told apart with any colour vision. Source: Okabe & Ito 2008, jfly.uni-koeln.de/color."""

_GREY = "#5A5A5A"

_NOTE_WIDTH, _LONG_LABEL = 110, 40
"""Characters of a line below the picture; labels in a legend that have a line of their own."""

TITLES = {
    "k": ("Loss and the number of neighbours", "neighbours per chunk, k", "log"),
    "size": ("Loss and the size of the database", "share of the database (%)", "log"),
    "retriever": ("Loss and the retriever", "retriever, with its recall against exact search", "names"),
    "step": ("Loss and the retrieval step", "tokens between two lookups", "log"),
    "alpha": ("Loss and the overlap allowed", "longest shared run, at most (% of a chunk)", "linear"),
    "training_tokens": ("Loss and training tokens", "training tokens", "log"),
    "training_seconds": ("Loss and training time", "seconds of training", "log"),
}
"""Over what -> title, label of the x axis, its scale. "names": points have names in place of numbers."""


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        label: in the legend.
        x, y: its points, of equal length.
        intervals: lower and upper end at each point; empty for none.
        colour: a place in `COLOURS`; None for grey.
        style: of matplotlib, such as "--".
        marker: of matplotlib; "" for none.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    intervals: Sequence[tuple[float, float]] = ()
    colour: int | None = 0
    style: str = "-"
    marker: str = "o"


@dataclass(frozen=True)
class Panel:
    """Axes with lines.

    Attributes:
        lines: what is drawn.
        y_label: quantity and unit.
        y_scale: of matplotlib.
    """

    lines: Sequence[Line]
    y_label: str
    y_scale: str = "linear"


def draw(
    panels: Sequence[Panel],
    file: Path,
    *,
    title: str,
    x_label: str,
    x_scale: str = "linear",
    names: Sequence[str] = (),
    note: str = "",
) -> None:
    """Draw panels above each other over one x axis.

    Args:
        panels: from the top.
        file: the picture; its ending decides the format.
        title: of the whole picture.
        x_label: quantity and unit.
        x_scale: "linear", "log" (ticks are at the points), "logit" (x between 0 and 1), or "names".
        names: of the points 0, 1, ..., for "names".
        note: small text below.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: another ending.
        RetroflowError: the picture cannot be written.
    """
    check_plot(file)
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    below = textwrap.wrap(note, _NOTE_WIDTH)
    of_legends = sum(-(-len(panel.lines) // _legend_columns(panel)) for panel in panels)
    height = 1.6 + 2.6 * len(panels) + 0.22 * len(names and names[0].split("\n")) + 0.2 * (len(below) + of_legends)
    figure = Figure(figsize=(8, height), layout="constrained")
    heights = [2, *[1.2] * (len(panels) - 1)]
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel in zip(rows, panels, strict=True):
        for line in panel.lines:
            _draw_line(axes, line)
        axes.set_ylabel(panel.y_label)
        axes.set_yscale(panel.y_scale)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if len(panel.lines) > 1:
            axes.legend(
                frameon=False, ncols=_legend_columns(panel), loc="lower left", bbox_to_anchor=(0.0, 1.0), borderpad=0.0
            )
    _scale(rows[-1], x_scale, sorted({x for panel in panels for line in panel.lines for x in line.x}), names)
    rows[-1].set_xlabel(x_label)
    figure.suptitle(title, x=0.02, ha="left", fontsize="x-large")
    if below:
        figure.supxlabel("\n".join(below), x=0.02, ha="left", fontsize="small", color=_GREY)
    try:
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise RetroflowError(f"{file}: cannot be written ({error.strerror}); choose another file.") from error


def check_plot(file: Path) -> None:
    """Refuse a picture that cannot be drawn, before anything is measured for it.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: the name has another ending than a picture's.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError(f'{file}: needs matplotlib. Install it with: pip install "retroflow[plot]"')
    if file.suffix.lower() not in ENDINGS:
        raise UsageError(f"output='{file}': the name must end in .png, .svg or .pdf.")


def plot_curve(curve: Mapping[str, Any], file: Path) -> None:
    """Draw a curve of `retroflow curve`: the losses, and below them the gain with its interval.

    Args:
        curve: the content of curves/NAME.json (docs/curves.md).
        file: the picture; its ending decides the format.

    Raises:
        RetroflowError: as `draw`.
    """
    title, x_label, scale = TITLES[curve["over"]]
    points = curve["points"]
    names = [_name(point) for point in points] if scale == "names" else []
    places = list(range(len(points))) if names else [100 * p["x"] if "%" in x_label else p["x"] for p in points]
    style = "" if names else "-"
    lines = []
    for number, series in enumerate(dict.fromkeys(point.get("series", "") for point in points)):
        own = [(x, point) for x, point in zip(places, points, strict=True) if point.get("series", "") == series]
        on = _line(f"{series} with retrieval".strip(), own, "on", number, style=style)
        off = _line(f"{series} without".strip(), own, "off", number if series else None, style="--", marker="s")
        lines += [line for line in (on, off) if line.x]
    panels = [Panel(lines, f"loss ({curve.get('measure', 'nats per token')})")]
    gain = _line("gain", list(zip(places, points, strict=True)), "gain", 2, style=style)
    if gain.x:
        zero = Line("no gain", [min(gain.x), max(gain.x)], [0.0, 0.0], colour=None, style=":", marker="")
        panels.append(Panel([gain, zero], f"gain ({curve.get('measure', 'nats per token')})"))
    draw(panels, file, title=title, x_label=x_label, x_scale=scale, names=names, note=curve.get("note", ""))


def plot_recall(bench: Mapping[str, Any], file: Path) -> None:
    """Draw queries per second against recall of `retroflow bench`: single queries, and below them a batch.

    Args:
        bench: the content of bench.json (docs/bench.md).
        file: the picture; its ending decides the format.

    Raises:
        RetroflowError: as `draw`.
    """
    k, queries = bench["k"], bench["data"]["queries"]
    least = 0.5 / (k * queries)  # a recall of 0 or 1 has no place on the axis
    panels = []
    for key, label in (("queries_per_second", "queries/s, one by one"), ("batch_queries_per_second", "in one batch")):
        lines = []
        for number, index in enumerate(bench["retrievers"]):
            settings = sorted(index["settings"], key=lambda setting: setting["recall"])
            recall = [min(max(setting["recall"], least), 1 - least) for setting in settings]
            lines.append(Line(index["retriever"], recall, [setting[key] for setting in settings], colour=number))
        panels.append(Panel(lines, label, "log"))
    data, machine = bench["data"], bench["machine"]
    loads = [load for index in bench["retrievers"] for load in index["load"] if load is not None]
    busy = f", load {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    cores = f"{machine['threads']} of {machine['cores']} cores{busy}"
    note = (
        f"{bench['date']}. {data['described']}. {machine['cpu']}, {cores}. "
        f"All {k * queries:,} neighbours found is drawn as half a miss."
    )
    draw(panels, file, title="Recall and speed", x_label=f"recall@{k}", x_scale="logit", note=note)


def plot_losses(curve: Mapping[str, Any], file: Path) -> None:
    """Draw the loss of a model against the recall of its retriever, of `retroflow bench --model`; and the gain below.

    Args:
        curve: over retrievers, as `retroflow curve` writes it; labels are names with options.
        file: the picture; its ending decides the format.

    Raises:
        RetroflowError: as `draw`.
    """
    points = [point for point in curve["points"] if point.get("recall") is not None]
    names = list(dict.fromkeys(point["label"].partition(":search.")[0] for point in points))
    panels = []
    for key, label in (("on", "loss"), ("gain", "gain over no retrieval")):
        lines = []
        for number, name in enumerate(names):
            own = [point for point in points if point["label"].partition(":search.")[0] == name]
            places = [(point["recall"], point) for point in sorted(own, key=lambda point: point["recall"])]
            line = _line(name, places, key, number)
            lines += [replace(line, intervals=line.intervals if key == "gain" else ())] if line.x else []
        off = curve["points"][0]["off"] if key == "on" else 0.0
        lines.append(Line("without retrieval", [0.0, 1.0], [off, off], colour=None, style="--", marker=""))
        if len(lines) > 1:  # no gain is shown where the overlap is not known
            panels.append(Panel(lines, f"{label} ({curve['measure']})"))
    draw(panels, file, title="Loss and recall", x_label="recall against exact search", note=curve["note"])


def plot_gains(table: Mapping[str, Any], file: Path) -> None:
    """Draw a table of losses: how far each row is below retrieval off, with its interval.

    Args:
        table: of `retroflow.pictures.measured.tables_of`.
        file: the picture; its ending decides the format.

    Raises:
        RetroflowError: as `draw`.
    """
    rows = [row for row in table["rows"] if row["gain"] is not None]
    points = list(enumerate(rows))
    names = [row["name"].replace("_", "\n") for row in rows]
    zero = Line("off", [-0.5, len(rows) - 0.5], [0.0, 0.0], colour=None, style=":", marker="")
    panels = [Panel([_line("gain", points, "gain", 0, style=""), zero], "nats per token below off")]
    draw(panels, file, title=table["title"], x_label="", x_scale="names", names=names, note=table["note"])


def _line(
    label: str, points: Sequence[tuple[float, Mapping[str, Any]]], key: str, colour: int | None, **looks: str
) -> Line:
    """Return the line of a key of the points that have it."""
    there = [(x, point) for x, point in points if point.get(key) is not None]
    intervals = [point.get(f"{key}_interval") for _, point in there]
    bounds = [(float(found[0]), float(found[1])) for found in intervals if found]
    return Line(
        label,
        [float(x) for x, _ in there],
        [float(point[key]) for _, point in there],
        bounds if len(bounds) == len(there) else (),
        colour,
        **looks,
    )


def _name(point: Mapping[str, Any]) -> str:
    recall = point.get("recall")
    return str(point["label"]) + ("" if recall is None else f"\n{recall:.3f}")


def _legend_columns(panel: Panel) -> int:
    return 2 if max(len(line.label) for line in panel.lines) < _LONG_LABEL else 1


def _draw_line(axes: Any, line: Line) -> None:
    colour = _GREY if line.colour is None else COLOURS[line.colour % len(COLOURS)]
    looks = {"linestyle": line.style or "none", "marker": line.marker, "markersize": 5}
    axes.plot(line.x, line.y, color=colour, label=line.label, **looks)
    if not line.intervals:
        return
    low, high = zip(*line.intervals, strict=True)
    if line.style and len(line.x) > 1:
        axes.fill_between(line.x, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.vlines(line.x, low, high, color=colour, linewidth=1.2)


def _scale(axes: Any, scale: str, places: Sequence[float], names: Sequence[str]) -> None:
    if scale == "names":
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif scale == "logit":
        axes.set_xscale("logit")
        axes.xaxis.set_major_formatter(lambda place, _: f"{place:.6g}")  # 0.99 and not 1 - 10^-2
        axes.minorticks_off()
    elif scale == "log" and places and places[0] > 0:
        axes.set_xscale("log")
        if len(places) <= 12:
            axes.set_xticks(places, [f"{place:,.3g}" if place < 1e6 else f"{place:.2e}" for place in places])
            axes.minorticks_off()
