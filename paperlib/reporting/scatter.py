"""Quality against cost as named points (figures of the report)."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from paperlib.reporting.figures import MARKERS, at_least
from paperlib.run import STYLE


@style.context(STYLE)
def scatter(points: Sequence[Mapping[str, Any]], x: str, y: str, xlabel: str, ylabel: str, title: str,
            least: float = 0.2) -> Figure:
    """Quality against cost, the cost on a logarithmic axis.

    Args:
        points: {"name", "group", `x`, `y`}; a group has one colour and marker.
        least: smallest span of the vertical axis.
    """
    figure = Figure(figsize=(8, 4.6))
    axes = figure.subplots()
    for index, group in enumerate(dict.fromkeys(point["group"] for point in points)):
        chosen = [point for point in points if point["group"] == group]
        axes.scatter([point[x] for point in chosen], [point[y] for point in chosen], label=group, s=36,
                     marker=MARKERS[index % len(MARKERS)])
    axes.set_xscale("log")
    axes.margins(0.12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(axis="x", which="minor", labelsize=8)
    figure.legend(ncols=2, loc="outside lower center")
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.ticklabel_format(axis="y", useOffset=False)
    at_least(axes, least)
    _name_points(axes, [(point[x], point[y], point["name"]) for point in points])
    return figure


PLACES = (("left", "center", 7, 0), ("left", "bottom", 4, 4), ("left", "top", 4, -4), ("right", "center", -7, 0),
          ("right", "bottom", -4, 4), ("right", "top", -4, -4))
"""Where a name may stand beside its point: alignments, and the offset in points."""


def _name_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names beside points, each where it covers the fewest points and other names."""
    axes.figure.draw_without_rendering()
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axes.transData.transform([at[:2] for at in points])]
    for x, y, name in points:
        note = axes.annotate(name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=8)
        note.set_in_layout(False)

        def covered(place: tuple[str, str, int, int], note: Annotation = note) -> int:
            across, up, dx, dy = place
            note.set(ha=across, va=up, position=(dx, dy))
            box = note.get_window_extent()
            outside = box.x0 < axes.bbox.x0 or box.x1 > axes.bbox.x1
            return box.count_overlaps(taken) + len(points) * outside

        covered(min(PLACES, key=covered))
        taken.append(note.get_window_extent())
