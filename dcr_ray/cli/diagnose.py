"""The command `diagnose`: the kernel between a model's prompts and their separability per layer, on held-out data."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcr_ray.cli.show import print_json, print_table
from dcr_ray.errors import InputError, Problem
from dcr_ray.study import DataSpec, load_study

BUILTIN = {
    "train": {
        "seemingly_toxic": "builtin-seemingly-toxic",
        "toxic": "builtin-toxic",
        "general": "builtin-instructions",
        "safety": "builtin-refusals",
    },
    "evaluate": {
        "compliance": "builtin-seemingly-toxic",
        "defense": "builtin-toxic",
        "capability": "builtin-instructions",
    },
}
"""Held-out prompts of the sets that come with the package."""

MOST_PROBED = 200
"""Prompts of a class that separability is read from."""


def diagnose(options: Namespace) -> int:
    """Kernel and separability of one model, or of two on the same prompts and probes."""
    import torch

    from dcr_ray.data.of_study import load_study_data
    from dcr_ray.diagnosis.opened import open_streamed, open_whole
    from dcr_ray.weights.resolve import default_cache_dir, resolve

    _check(options)
    spec = load_study(options.spec, options.overrides) if options.spec else None
    data = load_study_data(spec.data if spec else DataSpec.model_validate(BUILTIN))
    system_prompt = spec.base_recipe().system_prompt if spec else ""
    names = [options.model, *([options.against] if options.against else [])]
    folders = [resolve(name, cache_dir=default_cache_dir(), progress=_say) for name in names]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    document: dict[str, Any] = {"models": names, "prompts_from": options.spec or "built-in sets"}
    kernels, layers, states = [], [], []
    for name, folder in zip(names, folders, strict=True):
        opened = open_streamed(folder, device) if options.streamed else open_whole(folder, device)
        if options.only != "separability":
            groups = kernels[0].probes // 4 if kernels else None
            kernels.append(_kernel(options, opened, folder, data, system_prompt, name, groups))
        if options.only != "kernel":
            states.append(_states(opened, folder, data, system_prompt, name))
        del opened
    if kernels:
        document["kernel"] = [kernel.as_dict() for kernel in kernels]
    if states:
        layers = [_separability(data, each, states[1] if place == 0 and len(states) > 1 else None)
                  for place, each in enumerate(states)]  # fmt: skip
        document["separability"] = [[layer.as_dict() for layer in each] for each in layers]
    if len(kernels) == 2:
        document["kernel_difference"] = _differences(kernels)
    if options.out:
        _write(Path(options.out), document, names, kernels, layers)
    if options.json:
        print_json(document)
    else:
        _print(names, kernels, layers, document)
    return 0


def _kernel(
    options: Namespace, opened: Any, folder: Path, data: Any, system_prompt: str | None, name: str, groups: int | None
) -> Any:
    """A second model gets as many groups of probes as the first one took, so that the two can be compared."""
    from dcr_ray.diagnosis.kernel import diagnose_kernel
    from dcr_ray.evaluate.first_token import refusal_first_tokens
    from dcr_ray.train.tokens import prompt_tokens, tokenizer_of

    texts = {
        "seemingly_toxic": [item.text for item in data.held_out_seemingly_toxic],
        "toxic": [item.text for item in data.held_out_toxic],
        "general": [item.prompt for item in data.capability],
    }
    prompts = {
        kind: prompt_tokens(str(folder), tuple(_spread(each, options.prompts)), system_prompt)
        for kind, each in texts.items()
    }
    count = len(opened.layers)

    def report(done: int, most: int, error: float | None) -> None:
        so_far = f", error {error:.3f}" if error is not None else ""
        print(f"\r{name}: {done} of at most {most} groups of probes{so_far}   ", end="", file=sys.stderr, flush=True)

    found = diagnose_kernel(
        opened,
        prompts,
        layer=min(count, max(1, round(options.layer_depth * count))),
        scopes=tuple(options.scopes.split(",")),
        refusal_tokens=refusal_first_tokens(tokenizer_of(str(folder))),
        wanted_error=options.error,
        groups=groups or 32,
        fewest_groups=groups or 3,
        seconds=None if groups or options.minutes is None else 60 * options.minutes,
        report=report,
    )
    print(file=sys.stderr)
    return found


def _states(opened: Any, folder: Path, data: Any, system_prompt: str | None, name: str) -> Any:
    from dcr_ray.diagnosis.layer_states import layer_states
    from dcr_ray.train.tokens import prompt_tokens

    _say(f"{name}: states of every layer")
    texts = tuple(item.text for item in _probed(data))
    return layer_states(opened, prompt_tokens(str(folder), texts, system_prompt))


def _separability(data: Any, states: Any, base: Any) -> Any:
    from dcr_ray.diagnosis.separability import Labelled, separability

    toxic = set(map(id, data.held_out_toxic))
    labels = [
        Labelled(id(item) in toxic, data.source_of[item.source], f"{data.source_of[item.source]} {item.group}")
        for item in _probed(data)
    ]
    return separability(states, labels, base_states=base)


def _probed(data: Any) -> list[Any]:
    return [*_spread(data.held_out_seemingly_toxic, MOST_PROBED), *_spread(data.held_out_toxic, MOST_PROBED)]


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many, evenly spread over all, since sources stand one after another."""
    if len(items) <= most:
        return list(items)
    return [items[place * len(items) // most] for place in range(most)]


def _differences(kernels: list[Any]) -> dict[str, Any]:
    from dcr_ray.diagnosis.ratios import differences

    model, against = kernels
    return {
        scope: [pair.as_dict() for pair in differences(against.squared[scope], model.squared[scope], model.classes)]
        for scope in model.squared
    }


def _write(out: Path, document: dict[str, Any], names: list[str], kernels: list[Any], layers: list[Any]) -> None:
    from dcr_ray.report.diagnosis_charts import draw_kernels, draw_separability

    out.mkdir(parents=True, exist_ok=True)
    (out / "diagnosis.json").write_text(json.dumps(document, indent=1))
    titles = [Path(name).name for name in names]
    if kernels:
        draw_kernels(dict(zip(titles, kernels, strict=True)), out / "kernel.png")
    if layers:
        draw_separability(dict(zip(titles, layers, strict=True)), out / "separability.png")
    _say(f"written to {out}")


def _print(names: list[str], kernels: list[Any], layers: list[Any], document: dict[str, Any]) -> None:
    columns = ("scope", "pair", "ratio", "symmetric", "probes", "prompts", "refusal")
    for name, kernel in zip(names, kernels, strict=False):
        title = f"Kernel of {name}: {kernel.probes} probes ({kernel.stopped}), {kernel.seconds:.0f} s"
        print_table([row for scope in kernel.ratios for row in _kernel_rows(kernel, scope)], columns, title)
    if kernels:
        print(
            "ratio: geometric mean of ||K(x', x)|| / ||K(x', x')||; symmetric: in [0, 1]; probes, prompts: standard "
            "errors\nof the mean log ratio; refusal: cosine of the gradients of log P(the first token begins a refusal)"
        )
    for scope, pairs in document.get("kernel_difference", {}).items():
        rows = [
            {
                "pair": _pair(pair["first"], pair["second"]),
                "log ratio": f"{pair['figures']['log_ratio']['value']:+.3f}",
                "probes": pair["figures"]["log_ratio"]["probe_error"],
                "prompts": pair["figures"]["log_ratio"]["prompt_error"],
            }
            for pair in pairs
        ]
        print_table(rows, tuple(rows[0]), f"{names[0]} less {names[1]}, scope {scope}")
    for name, each in zip(names, layers, strict=False):
        rows = [_layer_row(layer) for layer in each]
        columns = tuple(column for column in rows[0] if any(row[column] is not None for row in rows))
        print_table(rows, columns, f"Separability of {name}")


def _pair(first: str, second: str) -> str:
    return f"{first.replace('_toxic', '')} - {second.replace('_toxic', '')}"


def _kernel_rows(kernel: Any, scope: str) -> list[dict[str, Any]]:
    from math import exp

    return [
        {
            "scope": scope,
            "pair": _pair(pair.first, pair.second),
            "ratio": f"{exp(pair.figures['log_ratio'].value):.3f}",
            "symmetric": f"{exp(pair.figures['symmetric_log_ratio'].value):.3f}",
            "probes": pair.figures["log_ratio"].probe_error,
            "prompts": pair.figures["log_ratio"].prompt_error,
            "refusal": kernel.refusal.get(scope, {}).get(f"{pair.first}-{pair.second}"),
        }
        for pair in kernel.ratios[scope]
    ]


def _layer_row(layer: Any) -> dict[str, Any]:
    def short(value: float | None) -> str | None:
        return None if value is None else f"{value:.2f}"

    return {
        "layer": layer.layer,
        "AUROC": f"{layer.auroc:.2f} [{layer.auroc_low:.2f}, {layer.auroc_high:.2f}]",
        "one file": short(layer.same_source_auroc),
        "other files": short(layer.other_sources_auroc),
        "control: file": short(layer.origin_auroc),
        "cosines within, across": f"{layer.within_cosine:+.3f} {layer.across_cosine:+.3f}",
        "CKA": short(layer.cka),
    }


def _check(options: Namespace) -> None:
    problems = []
    if options.prompts < 2:
        problems.append(Problem("--prompts", str(options.prompts), "2 or more of each class"))
    if not 0 < options.layer_depth <= 1:
        problems.append(Problem("--layer-depth", str(options.layer_depth), "above 0, at most 1"))
    if options.error <= 0:
        problems.append(Problem("--error", str(options.error), "a positive number"))
    if problems:
        raise InputError(problems)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
