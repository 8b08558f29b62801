"""The look of every chart: a light sheet, colours safe for colour-blind readers, labels that do not collide.

It knows nothing of trials. Charts are drawn with matplotlib's own PNG writer and never open a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

DOTS_PER_INCH = 150
# Okabe and Ito (2008), Color Universal Design: told apart under all common kinds of colour blindness.
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#7A8490"


@contextmanager
def light_sheet(width_inches: float, height_inches: float, path: Path) -> Iterator[Figure]:
    """A figure in one style, whatever the user's matplotlibrc says; it is written to `path` as a PNG at the end."""
    import matplotlib.style
    from matplotlib.figure import Figure

    style = {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#E4E7EB",
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "axes.edgecolor": "#9AA3AD",
        "legend.frameon": False,
        "hatch.linewidth": 0.6,
        "text.parse_math": False,
    }
    with matplotlib.style.context(["default", style]):
        figure = Figure((width_inches, height_inches), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")
        yield figure
        figure.savefig(path, facecolor="white")


def printable(text: str) -> str:
    """The text with characters that the charts' font may lack shown as '?'."""
    return text.encode("latin-1", "replace").decode("latin-1")


def legend_above(figure: Figure, axes: Sequence[Axes], order: Sequence[str] = ()) -> None:
    """One legend for all panels, above them, where it can cover no point; labels named in `order` come first."""
    handles: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    labels = sorted(handles, key=lambda label: order.index(label) if label in order else len(order))
    columns = min(len(labels), max(2, int(figure.get_figwidth() / 1.45)))
    if labels:
        figure.legend(
            [handles[label] for label in labels], labels, loc="outside upper center", ncols=columns, columnspacing=1.5
        )


def label_points(
    axes: Axes,
    labels: Mapping[tuple[float, float], str],
    obstacles: Sequence[tuple[float, float]],
    lines: Sequence[tuple[float, float, float, float]] = (),
) -> list[Annotation]:
    """Write each label beside its point where it covers neither a point, another label nor the edge of the axes.

    `labels` maps a point in data coordinates to its text, the most important first, because earlier ones choose first.
    `lines` (x0, y0, x1, y1, level or upright) are avoided where a place near by allows it. A label for which no free
    place is near is left out; what was drawn is returned.
    """
    from matplotlib.patheffects import withStroke

    figure = axes.get_figure()
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the axes must not move under the labels that are about to be measured
    points = figure.dpi / 72
    half = 5 * points
    taken = [(x - half, y - half, x + half, y + half) for x, y in axes.transData.transform(list(obstacles))]
    strokes = [_pixels(axes, line) for line in lines]
    edge = tuple(axes.get_window_extent().extents)
    drawn: list[Annotation] = []
    for place, text in labels.items():
        note = axes.annotate(text, place, (0, 0), textcoords="offset points", fontsize=8, color="#1F2933", zorder=6)
        size = note.get_window_extent()
        x, y = axes.transData.transform(place)
        candidates = []
        for dx, dy in _OFFSETS:
            left = x + dx * points - (size.width if dx < 0 else 0 if dx > 0 else size.width / 2)
            bottom = y + dy * points - (size.height if dy < 0 else 0 if dy > 0 else size.height / 2)
            box = (left, bottom, left + size.width, bottom + size.height)
            if _inside(box, edge) and not any(_overlap(box, other) for other in taken):
                candidates.append(box)
        if not candidates:
            note.remove()
            continue
        # `min` keeps the first, and so the nearest, of equally good places.
        box = min(candidates, key=lambda candidate: sum(_overlap(candidate, stroke) for stroke in strokes))
        note.set(position=((box[0] - x) / points, (box[1] - y) / points), ha="left", va="bottom")
        note.set_path_effects([withStroke(linewidth=2, foreground="white")])
        nearest = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
        if max(abs(nearest[0] - x), abs(nearest[1] - y)) > 9 * points:
            ends = axes.transData.inverted().transform([(x, y), nearest])
            axes.plot(ends[:, 0], ends[:, 1], color=GREY, linewidth=0.6, zorder=2, scalex=False, scaley=False)
        taken.append(box)
        drawn.append(note)
    return drawn


_Box = tuple[float, float, float, float]

_DIRECTIONS = ((1, 0.6), (-1, 0.6), (1, -0.6), (-1, -0.6), (1, 0), (-1, 0), (0, 1), (0, -1))
_OFFSETS = [(distance * right, distance * up) for distance in (6, 12, 20, 30, 42) for right, up in _DIRECTIONS]
"""Places to try around a point, nearest first, in typographic points."""


def _pixels(axes: Axes, line: _Box) -> _Box:
    (x0, y0), (x1, y1) = axes.transData.transform([line[:2], line[2:]])
    return min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1


def _inside(box: _Box, edge: _Box) -> bool:
    return edge[0] < box[0] and edge[1] < box[1] and box[2] < edge[2] and box[3] < edge[3]


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
