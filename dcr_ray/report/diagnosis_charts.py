"""Pictures of a diagnosis: ratios of kernels by scope and pair of classes, and separability layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from pathlib import Path
from typing import Any

from dcr_ray.report.canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, legend_above, light_sheet, printable

MODEL_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE)

SHORT = {"seemingly_toxic": "seemingly", "toxic": "toxic", "general": "general"}


def draw_kernels(kernels: Mapping[str, Any], path: Path) -> Path:
    """A panel for each scope: geometric mean of the symmetric ratio of each pair of classes, by model (name -> report).

    Thick bars are the probes' error, thin ones the prompts', both of two standard errors.
    """
    first = next(iter(kernels.values()))
    scopes = list(first.ratios)
    with light_sheet(1.2 + 2.7 * len(scopes), 3.4, path) as figure:
        panels = figure.subplots(1, len(scopes), squeeze=False, sharey=True)[0]
        for axes, scope in zip(panels, scopes, strict=True):
            for place, (name, kernel) in enumerate(kernels.items()):
                colour = MODEL_COLOURS[place % len(MODEL_COLOURS)]
                shift = 0.24 * (place - (len(kernels) - 1) / 2)
                for at, pair in enumerate(kernel.ratios[scope]):
                    figure_of = pair.figures["symmetric_log_ratio"]
                    for error, width in ((figure_of.prompt_error, 1.0), (figure_of.probe_error, 3.5)):
                        if error is not None:
                            ends = [exp(figure_of.value - 2 * error), exp(figure_of.value + 2 * error)]
                            axes.plot([at + shift] * 2, ends, color=colour, linewidth=width, solid_capstyle="butt")
                    label = printable(name) if at == 0 else None
                    axes.plot([at + shift], [exp(figure_of.value)], "o", color=colour, markersize=4, label=label)
            labels = [f"{SHORT[p.first]}\n{SHORT[p.second]}" for p in first.ratios[scope]]
            axes.set_xticks(range(len(labels)), labels, fontsize=6.5)
            axes.set_title(scope)
            axes.set_ylim(0, 1.02)
        panels[0].set_ylabel("||K(x', x)|| / sqrt(||K(x', x')|| ||K(x, x)||)", fontsize=8)
        legend_above(figure, list(panels))
    return path


_LINES = (
    ("auroc", "class, new families", BLUE, "-"),
    ("same_source_auroc", "class, one file", GREEN, "-"),
    ("other_sources_auroc", "class, new files", ORANGE, "-"),
    ("origin_auroc", "control: file", GREY, "--"),
)


def draw_separability(models: Mapping[str, Sequence[Any]], path: Path) -> Path:
    """A row for each model (name -> its layers): probes' AUROC with their control, cosines, alignment to the other."""
    aligned = any(layer.cka is not None for layers in models.values() for layer in layers)
    with light_sheet(11.0 if aligned else 7.6, 0.6 + 2.5 * len(models), path) as figure:
        rows = figure.subplots(len(models), 3 if aligned else 2, squeeze=False)
        for axes, (name, layers) in zip(rows, models.items(), strict=True):
            x = [layer.layer for layer in layers]
            axes[0].fill_between(
                x, [layer.auroc_low for layer in layers], [layer.auroc_high for layer in layers],
                color=BLUE, alpha=0.15, linewidth=0,
            )  # fmt: skip
            for field, label, colour, style in _LINES:
                _line(axes[0], x, [getattr(layer, field) for layer in layers], label, colour, style)
            axes[0].set_ylim(0.4, 1.02)
            axes[0].set_ylabel("AUROC")
            axes[0].set_title(printable(name))
            _line(axes[1], x, [layer.within_cosine for layer in layers], "within a class", VERMILLION, "-")
            _line(axes[1], x, [layer.across_cosine for layer in layers], "across classes", PURPLE, "-")
            axes[1].set_ylabel("mean cosine, centred")
            if aligned:
                _line(axes[2], x, [layer.cka for layer in layers], "to the other model", GREEN, "-")
                axes[2].set_ylim(-0.05, 1.05)
                axes[2].set_ylabel("CKA")
            for panel in axes:
                panel.set_xlabel("layer")
        legend_above(figure, [panel for axes in rows for panel in axes])
    return path


def _line(axes: Any, x: list[int], values: list[float | None], label: str, colour: str, style: str) -> None:
    if any(value is not None for value in values):
        y = [float("nan") if value is None else value for value in values]
        axes.plot(x, y, style, color=colour, label=label, linewidth=1.6)
