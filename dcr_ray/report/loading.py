"""Where the checkpoints of a study lie, and how to load the one to look at first.

It knows nothing of what is in a checkpoint beyond that the last training stage writes a Hugging Face model folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from dcr_ray.pareto import Objectives, pareto_front
from dcr_ray.report.measured import baseline_of
from dcr_ray.report.verdict import choose
from dcr_ray.report.wording import code_block, escape_markdown
from dcr_ray.trial import Trial

MODEL_STAGE = "sft"


def checkpoint_folder(trial: Trial) -> str | None:
    """The folder of the trial's final model, or None where its safety fine-tuning did not finish."""
    return next((stage.path for stage in trial.stages if stage.name == MODEL_STAGE), None)


def checkpoints_section(trials: Sequence[Trial], objectives: Objectives) -> list[str]:
    """Markdown: the folders of the baseline and the front, and code that loads the chosen trial."""
    baseline = baseline_of(trials)
    kept = ([baseline] if baseline else []) + pareto_front(trials, objectives)
    folders = [(trial, folder) for trial in kept if (folder := checkpoint_folder(trial))]
    if not folders:
        return ["No trial to keep has a checkpoint."]
    parts = ["\n".join(f"- {escape_markdown(trial.name)}: {escape_markdown(folder)}" for trial, folder in folders)]
    chosen = choose(trials, objectives)
    if chosen is None or (folder := checkpoint_folder(chosen[0])) is None:
        return parts
    trial, why = chosen
    parts += [
        f"To load {escape_markdown(trial.name)}, {why}, in transformers:",
        code_block(
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"folder = {folder!r}\n"
            "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
            'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")',
            "python",
        ),
        "In vLLM:",
        code_block(f"vllm serve {shlex.quote(folder)}", "bash"),
    ]
    if trial.recipe.system_prompt is not None:
        parts.append("It was trained and measured with this system prompt, and its figures hold only with it:")
        parts.append(code_block(trial.recipe.system_prompt, "text"))
    return parts
