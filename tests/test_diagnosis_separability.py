"""Separability per layer: a probe finds what is planted, and the controls say when that is only the source."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dcr_ray.diagnosis.layer_states import layer_states
from dcr_ray.diagnosis.opened import open_whole
from dcr_ray.diagnosis.separability import Labelled, auroc, debiased_cka, separability
from dcr_ray.errors import InputError
from dcr_ray.weights.tiny import build_tiny_model


def labelled(count: int = 40) -> list[Labelled]:
    """Each class from two files, half of it from each; file `x` has prompts of both."""
    return [
        Labelled(toxic, "x" if i % 2 else ("a" if toxic else "b"), f"{toxic}-{i // 2}")
        for toxic in (False, True)
        for i in range(count)
    ]


def states(labels: list[Labelled], by_class: float, by_source: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((len(labels), 1, 24)).astype(np.float32)
    x[:, 0, 0] += by_class * np.array([1 if label.toxic else -1 for label in labels])
    x[:, 0, 1] += by_source * np.array([1 if label.source == "x" else -1 for label in labels])
    return x


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_states_are_those_of_each_prompt_alone(pooling, tmp_path):
    build_tiny_model(tmp_path / "m", layers=3)
    opened = open_whole(tmp_path / "m", torch.device("cpu"))
    rows = [[5, 6, 7, 8, 9, 10, 11], [4, 4], [9, 8, 7]] * 7
    found = layer_states(opened, rows, pooling)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    for row, state in zip(rows[:3], found, strict=False):
        hidden = model(torch.tensor([row]), output_hidden_states=True).hidden_states
        for layer in (1, 2):
            expected = hidden[layer][0, -1] if pooling == "last" else hidden[layer][0].mean(0)
            np.testing.assert_allclose(state[layer - 1], expected.detach().numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[0], found[3], rtol=1e-5)


def test_a_probe_finds_what_separates_the_classes_and_nothing_where_nothing_does():
    labels = labelled()
    (apart,) = separability(states(labels, by_class=2.0, by_source=0.0), labels)
    (mixed,) = separability(states(labels, by_class=0.0, by_source=0.0), labels)
    assert apart.auroc > 0.85 and apart.auroc_low > 0.75 and apart.auroc_low < apart.auroc < apart.auroc_high
    assert mixed.auroc_low < 0.5 < mixed.auroc_high
    assert apart.within_cosine - apart.across_cosine > mixed.within_cosine - mixed.across_cosine + 0.02
    assert apart.same_source_auroc > 0.8 and apart.origin_auroc < 0.7 and apart.other_sources_auroc > 0.75


def test_what_is_only_the_source_is_seen_by_its_controls():
    """Toxic prompts from one kind of file, seemingly toxic from another: the probe is right for the wrong reason."""
    labels = [
        Labelled(label.toxic, source, label.group)
        for label, i in zip(labelled(), range(80), strict=True)
        for source in [("hh" if label.toxic else "xs") if i % 4 else ("xs" if label.toxic else "hh")]
    ]
    generator = np.random.default_rng(0)
    x = generator.standard_normal((80, 1, 24)).astype(np.float32)
    x[:, 0, 0] += 2 * np.array([1 if label.source == "hh" else -1 for label in labels])
    (found,) = separability(x, labels)
    assert found.auroc > 0.6, "three quarters of each class are from one source"
    assert found.origin_auroc > 0.9
    assert found.other_sources_auroc < 0.6 or found.same_source_auroc < 0.65


def test_alignment_is_one_with_itself_and_a_rotation_and_near_nothing_with_noise():
    generator = np.random.default_rng(0)
    x, noise = generator.standard_normal((60, 200)), generator.standard_normal((60, 200))
    rotation, _ = np.linalg.qr(generator.standard_normal((200, 200)))
    assert debiased_cka(x, x) == pytest.approx(1)
    assert debiased_cka(x, 3 * x @ rotation) == pytest.approx(1)
    assert abs(debiased_cka(x, noise)) < 0.1


def test_alignment_to_the_base_model_is_part_of_the_figures():
    labels = labelled()
    x = states(labels, 1.0, 0.0)
    (same,) = separability(x, labels, base_states=x)
    (other,) = separability(x, labels, base_states=states(labels, 0.0, 0.0, seed=5))
    assert same.cka == pytest.approx(1) and other.cka < 0.3
    assert separability(x, labels)[0].cka is None


def test_auroc_is_the_share_of_ordered_pairs():
    scores, positive = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert auroc(scores, positive) == pytest.approx((1 + 0.5 + 1 + 1) / 4)


def test_too_few_families_are_said_for_both_classes_at_once():
    labels = [Labelled(toxic, "a", "one") for toxic in (True, False) for _ in range(6)]
    with pytest.raises(InputError) as caught:
        separability(np.zeros((12, 1, 4), np.float32), labels)
    assert [p.where for p in caught.value.problems] == ["toxic prompts", "seemingly toxic prompts"]
