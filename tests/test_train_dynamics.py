"""Looks into training: they change nothing, and show the model as it is at each step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from dcr_ray.data.chat import prompt_ids
from dcr_ray.diagnosis.kernel import diagnose_kernel
from dcr_ray.diagnosis.opened import open_whole
from dcr_ray.diagnosis.refusal import first_token_refusals
from dcr_ray.evaluate.first_token import refusal_first_tokens
from dcr_ray.recipe import LoraRecipe
from dcr_ray.train.dcr import run_dcr
from dcr_ray.train.dynamics import DYNAMICS_FILE
from dcr_ray.train.jobs import StageStopped
from dcr_ray.train.sft import run_sft
from dcr_ray.train.watch import Watch
from tests.train_models import GENERAL, SEEMINGLY_TOXIC, SYSTEM_PROMPT, TOXIC, dcr_job, sft_job, tiny_model

WATCH = Watch(
    {"general": tuple(p for p, _ in GENERAL[:4]), "seemingly_toxic": SEEMINGLY_TOXIC[:4], "toxic": TOXIC[:4]},
    looks=3, kernel_prompts=2, kernel_groups=1, scopes=("all", "trunk"), layer=2, system_prompt=SYSTEM_PROMPT,
)  # fmt: skip


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> str:
    return tiny_model(tmp_path_factory.mktemp("models"))


def test_watching_a_stage_changes_none_of_its_numbers(model_dir, tmp_path):
    plain, watched = dcr_job(model_dir, tmp_path / "plain"), dcr_job(model_dir, tmp_path / "watched")
    losses = run_dcr(plain)["losses"]
    results = run_dcr(replace(watched, watch=WATCH))
    assert results["losses"] == losses
    steps = results["steps"]
    assert [line["step"] for line in results["dynamics"]] == sorted({0, round(steps / 3), round(steps * 2 / 3), steps})
    one, other = (load_file(Path(job.output_dir, "trunk.safetensors")) for job in (plain, watched))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("lora", [None, LoraRecipe(rank=2)], ids=["full", "lora"])
def test_looks_show_the_model_that_the_stage_begins_with_and_the_one_it_leaves(lora, model_dir, tmp_path):
    trunk = dcr_job(model_dir, tmp_path / "dcr")
    seen = run_dcr(replace(trunk, watch=WATCH))["dynamics"]
    job = sft_job(model_dir, tmp_path / "sft", trunk_dir=trunk.output_dir, lora=lora, learning_rate=5e-3)
    looks = run_sft(replace(job, watch=WATCH))["dynamics"]
    assert looks[0]["refusal"] == {
        name: pytest.approx(figure, rel=1e-4) for name, figure in seen[-1]["refusal"].items()
    }, "SFT begins where DCR ended"
    assert looks[0]["refusal"]["toxic"]["mean"] != pytest.approx(looks[-1]["refusal"]["toxic"]["mean"], rel=1e-2)
    opened = open_whole(job.output_dir, torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    rows = {name: [prompt_ids(tokenizer, t, SYSTEM_PROMPT) for t in texts] for name, texts in WATCH.prompts.items()}
    for name, each in rows.items():
        found = first_token_refusals(opened, each, refusal_first_tokens(tokenizer))
        assert looks[-1]["refusal"][name]["mean"] == pytest.approx(float(found.mean()), rel=1e-4)
    report = diagnose_kernel(
        opened, {name: each[:2] for name, each in rows.items()}, layer=2, scopes=("all",), groups=1, fewest_groups=1
    )
    expected = report.ratios["all"][0].figures["log_ratio"].value
    assert looks[-1]["kernel"]["all"]["seemingly_toxic-toxic"]["log_ratio"]["value"] == pytest.approx(
        expected, abs=1e-3
    )


def test_a_stage_that_goes_on_keeps_its_earlier_looks(model_dir, tmp_path):
    job = replace(dcr_job(model_dir, tmp_path / "cut"), watch=WATCH)
    with pytest.raises(StageStopped):
        run_dcr(job, should_stop=lambda: True)
    file = Path(job.output_dir, DYNAMICS_FILE)
    before = file.read_text()
    with open(file, "a") as stream:
        stream.write('{"step": 2, "cut off')
    looks = run_dcr(job)["dynamics"]
    whole = run_dcr(replace(dcr_job(model_dir, tmp_path / "whole"), watch=WATCH))["dynamics"]
    assert file.read_text().startswith(before)
    assert [line["step"] for line in looks] == [line["step"] for line in whole]
    for one, other in zip(looks, whole, strict=True):
        assert one["refusal"]["toxic"]["mean"] == pytest.approx(other["refusal"]["toxic"]["mean"], rel=1e-3)
    assert all(json.loads(line) for line in file.read_text().splitlines())
