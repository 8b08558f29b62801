"""The kernel diagnosis against exact Jacobians: the identity, the products by layer, the estimators, the errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call, jacrev

from dcr_ray.diagnosis.exact import exact_squared_norms
from dcr_ray.diagnosis.gradients import Lora, _factored_gram, _linear_gram, gradient_grams
from dcr_ray.diagnosis.kernel import (
    PROBES_OF_A_GROUP,
    diagnose_kernel,
    from_products,
    logit_cotangents,
    probe_group,
    squared_norms,
)
from dcr_ray.diagnosis.one_sided import one_sided_squared_norms, scope_parameters
from dcr_ray.diagnosis.opened import open_streamed, open_whole
from dcr_ray.diagnosis.ratios import differences, figures_of, pair_ratios, prompt_errors
from dcr_ray.diagnosis.scopes import scope_of
from dcr_ray.errors import InputError
from dcr_ray.weights.tiny import build_tiny_model

CPU = torch.device("cpu")
ROWS = [[5, 9, 9, 31, 7], [8, 2, 9], [5, 9, 40, 41, 2, 6, 7]]
SMALL = {"layers": 3, "hidden": 32, "intermediate": 48, "heads": 2, "kv_heads": 1, "head_dim": 16, "vocabulary": 300}


def opened_model(folder: Path, family: str = "llama", tied: bool = True, dtype: torch.dtype = torch.float64):
    place = folder / f"{family}-{tied}"
    if not place.exists():
        build_tiny_model(place, family, tied=tied, **SMALL)
    return open_whole(place, CPU, dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kernel")


def jacobians(opened, names: list[str]) -> list[torch.Tensor]:
    """The exact Jacobian [V, parameters] of every prompt's last logits."""
    everything = {name: parameter.detach() for name, parameter in opened.model.named_parameters()}
    found = []
    for row in ROWS:

        def logits(own: dict[str, torch.Tensor], row: list[int] = row) -> torch.Tensor:
            ids = torch.tensor([row])
            return functional_call(opened.model, {**everything, **own}, (ids,), {"use_cache": False}).logits[0, -1]

        each = jacrev(logits)({name: everything[name] for name in names})
        found.append(torch.cat([each[name].flatten(1) for name in names], 1))
    return found


def brute_force(opened, names: list[str]) -> torch.Tensor:
    found = jacobians(opened, names)
    return torch.tensor([[(a @ b.T).square().sum() for b in found] for a in found], dtype=torch.float64)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma"])
def test_head_and_body_give_the_norm_of_the_whole_kernel(family, tied, folder):
    opened = opened_model(folder, family, tied)
    scopes = [scope_of(name, 2, 3) for name in (("all", "trunk") if tied else ("all", "trunk", "tail", "last2+head"))]
    found = exact_squared_norms(opened, ROWS, scopes)
    for scope in scopes:
        expected = brute_force(opened, scope_parameters(opened, scope))
        torch.testing.assert_close(found[scope.name], expected, rtol=1e-10, atol=0)


def test_the_kernel_of_the_head_alone_is_a_multiple_of_one(folder):
    opened = opened_model(folder, tied=False)
    scope = scope_of("head", 2, 3)
    states = gradient_grams(opened, ROWS, torch.eye(32, dtype=torch.float64)[:2]).states
    expected = 300 * (states @ states.T) ** 2
    torch.testing.assert_close(exact_squared_norms(opened, ROWS, [scope])["head"], expected)
    torch.testing.assert_close(brute_force(opened, ["lm_head.weight"]), expected)


def test_fresh_adapters_are_those_of_a_low_rank_update(folder):
    """dy = (alpha / rank) B A x: the Jacobian by B, at B = 0, written out with the adapters' own A."""
    from dcr_ray.diagnosis.gradients import _adapter

    opened = opened_model(folder, tied=False)
    lora = Lora(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))
    found = exact_squared_norms(opened, ROWS, [scope_of("lora", 1, 3)], lora)["lora"]
    names = [n for n, _ in opened.model.named_parameters() if n.split(".")[-2] in lora.targets]
    everything = dict(opened.model.named_parameters())
    products = []
    for row in ROWS:

        def logits(own, row=row):
            moved = {}
            for name, b in own.items():
                _, _, layer, place = name.removesuffix(".weight").split(".", 3)
                a = _adapter(lora, int(layer), place, torch.zeros(1, 1, everything[name].shape[1], dtype=b.dtype))
                moved[name] = everything[name].detach() + b @ a
            rest = {n: p.detach() for n, p in everything.items()}
            return functional_call(
                opened.model, {**rest, **moved}, (torch.tensor([row]),), {"use_cache": False}
            ).logits[0, -1]

        start = {name: torch.zeros(everything[name].shape[0], 2, dtype=torch.float64) for name in names}
        each = jacrev(logits)(start)
        products.append(torch.cat([each[name].flatten(1) for name in names], 1))
    expected = torch.tensor([[(a @ b.T).square().sum() for b in products] for a in products], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("o", "i"), [(6, 5), (400, 500)])
def test_both_ways_to_multiply_a_linear_maps_gradients_agree(o, i):
    generator = torch.Generator().manual_seed(0)
    lengths = [4, 1, 3]
    cotangents = torch.randn(2, 3, 4, o, dtype=torch.float64, generator=generator)
    for place, length in enumerate(lengths):
        cotangents[:, place, length:] = 0
    inputs = torch.randn(3, 4, i, dtype=torch.float64, generator=generator)
    formed = torch.einsum("cnto,nti->cnoi", cotangents, inputs).reshape(6, -1)
    torch.testing.assert_close(_linear_gram(cotangents, inputs, lengths), formed @ formed.T)
    torch.testing.assert_close(_factored_gram(cotangents, inputs, lengths), formed @ formed.T)


def test_padding_and_batches_change_nothing(folder, monkeypatch):
    opened = opened_model(folder)
    probes = torch.randn(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = gradient_grams(opened, ROWS, probes)
    monkeypatch.setattr("dcr_ray.diagnosis.gradients.PULLED_PROMPTS", 1)
    apart = gradient_grams(opened, [*ROWS, [7] * 12], probes)
    for one, other in zip([*together.layers, together.embedding], [*apart.layers, apart.embedding], strict=True):
        torch.testing.assert_close(other[:, :3, :, :3], one, rtol=1e-9, atol=1e-12)


def test_a_model_streamed_from_its_files_gives_the_same_products(folder):
    whole = opened_model(folder, "qwen2", True, torch.float32)
    streamed = open_streamed(folder / "qwen2-True", CPU)
    probes = probe_group(300, 0, 0, torch.float32)
    found = [gradient_grams(opened, ROWS, probes @ opened.head) for opened in (whole, streamed)]
    for one, other in zip(*([*g.layers, g.norm, g.embedding] for g in found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert all(parameter.is_meta for parameter in streamed.model.parameters())


def random_rest(seed: int) -> tuple[torch.Tensor, float]:
    """A kernel's rest N = A diag A^T + noise of some rank, and s."""
    generator = torch.Generator().manual_seed(seed)
    rank = int(torch.randint(1, 20, (1,), generator=generator))
    left = torch.randn(23, rank, dtype=torch.float64, generator=generator)
    right = torch.randn(23, rank, dtype=torch.float64, generator=generator)
    return left @ (left if seed % 2 else right).T, float(torch.randn(1, generator=generator)) * 3


def test_the_two_sided_estimator_is_unbiased_on_two_hundred_kernels():
    groups, scores, relative = 400, [], []
    for seed in range(200):
        rest, s = random_rest(seed)
        exact = float((s * torch.eye(23, dtype=torch.float64) + rest).square().sum())
        generator = torch.Generator().manual_seed(1000 + seed)
        probes = torch.randn(groups, PROBES_OF_A_GROUP, 23, dtype=torch.float64, generator=generator)
        products = torch.einsum("giv,vw,gjw->gij", probes, rest, probes)
        own = torch.tensor([[s]], dtype=torch.float64)
        found = torch.stack([from_products(each[:, None, :, None], own, 23)[0, 0] for each in products])
        scores.append(float((found.mean() - exact) / (found.std() / groups**0.5)))
        relative.append(float(found.mean() / exact - 1))
    assert max(map(abs, scores)) < 4.5 and np.std(scores) == pytest.approx(1, abs=0.2)
    assert abs(np.mean(relative)) < 0.01


def test_squares_of_a_probe_with_itself_would_add_the_trace():
    rest, _ = random_rest(1)
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(2000, PROBES_OF_A_GROUP, 23, dtype=torch.float64, generator=generator)
    products = torch.einsum("giv,vw,gjw->gij", probes, rest, probes)
    exact = float(rest.square().sum())
    trap = float(products.square().mean())
    # On the diagonal E (u^T N u)^2 = tr(N)^2 + ||N||^2 + tr(N^2), for a quarter of the products.
    symmetric = float(rest.trace() ** 2 + exact + (rest @ rest).trace())
    assert trap == pytest.approx(0.75 * exact + 0.25 * symmetric, rel=0.1) and trap > 1.15 * exact


@pytest.mark.parametrize("tied", [True, False])
def test_estimates_of_a_model_are_within_their_errors_of_the_exact_norms(tied, folder):
    opened = opened_model(folder, "llama", tied)
    scopes = [scope_of(name, 2, 3) for name in ("all", "trunk", "tail", "last1+head", "head", "lora")]
    exact = exact_squared_norms(opened, ROWS, scopes, Lora())
    found = {scope.name: [] for scope in scopes}
    for group in range(60):
        probes = probe_group(300, group, 7, torch.float64)
        grams = gradient_grams(opened, ROWS, probes @ opened.head, lora=Lora())
        for scope in scopes:
            found[scope.name].append(squared_norms(grams, scope, probes, tied))
    for scope in scopes:
        each = torch.stack(found[scope.name])
        error = each.std(0) / len(each) ** 0.5 + 1e-9 * exact[scope.name]
        assert ((each.mean(0) - exact[scope.name]).abs() / error).max() < 4.5, scope.name


@pytest.mark.parametrize("tied", [True, False])
def test_the_one_sided_estimator_agrees_with_the_exact_norms(tied, folder):
    opened = opened_model(folder, "qwen2", tied)
    opened.model.set_attn_implementation("eager")
    scope = scope_of("all" if tied else "tail", 2, 3)
    exact = exact_squared_norms(opened, ROWS[:2], [scope])[scope.name]
    probes = torch.randn(40, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    estimate, error = one_sided_squared_norms(opened, ROWS[:2], scope, probes)
    assert ((estimate - exact).abs() / error).max() < 4.5
    assert ((estimate / exact - 1).abs() < 0.3).all()


def test_exact_ratios_are_what_cauchy_and_schwarz_allow(folder):
    squared = exact_squared_norms(opened_model(folder), ROWS, [scope_of("all", 2, 3)])["all"]
    assert torch.linalg.eigvalsh(squared).min() > -1e-9 * squared.max(), "squared norms are inner products of J^T J"
    own = squared.diagonal().sqrt().sqrt()
    symmetric = squared.sqrt() / own[:, None] / own[None, :]
    assert symmetric.max() <= 1 + 1e-12 and symmetric.min() >= 0
    torch.testing.assert_close(symmetric.diagonal(), torch.ones(3, dtype=torch.float64))
    figures = figures_of(squared.numpy(), np.array([0, 1, 2]), np.array([0, 1, 2]))
    by_hand = np.mean([0.5 * np.log(squared[n, m] / squared[n, n]) for n in range(3) for m in range(3) if n != m])
    assert figures["log_ratio"] == pytest.approx(by_hand)


def test_refusal_gradients_are_those_of_autograd(folder):
    for tied in (True, False):
        opened = opened_model(folder, "llama", tied)
        tokens = frozenset({3, 17, 99})
        found = diagnose_kernel(
            opened, {"seemingly_toxic": ROWS[:2], "toxic": [ROWS[2], ROWS[0][::-1]]}, layer=2, scopes=("all",),
            refusal_tokens=tokens, groups=1, fewest_groups=1,
        ).refusal["all"]  # fmt: skip
        gradients = []
        opened.model.requires_grad_(True)
        for row in (*ROWS, ROWS[0][::-1]):
            logits = opened.model(torch.tensor([row])).logits[0, -1]
            value = logits.log_softmax(0)[sorted(tokens)].logsumexp(0)
            each = torch.autograd.grad(value, list(opened.model.parameters()))
            gradients.append(torch.cat([g.flatten() for g in each]))
        opened.model.requires_grad_(False)
        unit = torch.nn.functional.normalize(torch.stack(gradients), dim=1)
        cosine = unit @ unit.T
        assert found["seemingly_toxic-toxic"] == pytest.approx(float(cosine[:2, 2:].mean()), rel=1e-7)
        assert found["toxic-toxic"] == pytest.approx(float(cosine[2, 3]), rel=1e-7)


def test_the_cotangent_of_a_refusals_probability_is_its_gradient():
    logits = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    value = logits.log_softmax(1)[:, [1, 4]].logsumexp(1).sum()
    (expected,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(logit_cotangents(logits.detach(), frozenset({1, 4})), expected)


def prompts(count: int, seed: int) -> dict[str, list[list[int]]]:
    generator = np.random.default_rng(seed)
    draw = lambda: generator.integers(3, 300, generator.integers(4, 10)).tolist()  # noqa: E731
    return {name: [draw() for _ in range(count)] for name in ("seemingly_toxic", "toxic", "general")}


def test_a_diagnosis_stops_when_it_knows_enough_and_says_why(folder):
    opened = opened_model(folder, dtype=torch.float32)
    loose = diagnose_kernel(opened, prompts(4, 0), layer=2, scopes=("all", "trunk"), wanted_error=0.9, groups=12)
    assert loose.stopped == "error" and loose.probes == 3 * PROBES_OF_A_GROUP
    fixed = diagnose_kernel(opened, prompts(4, 0), layer=2, groups=4, fewest_groups=4)
    assert fixed.stopped == "groups" and fixed.probes == 4 * PROBES_OF_A_GROUP
    hurried = diagnose_kernel(opened, prompts(4, 0), layer=2, wanted_error=1e-9, groups=12, seconds=0.0)
    assert hurried.stopped == "seconds" and hurried.probes == 3 * PROBES_OF_A_GROUP
    document = loose.as_dict()
    assert document["prompts"] == {"seemingly_toxic": 4, "toxic": 4, "general": 4}
    pairs = {(pair["first"], pair["second"]) for pair in document["ratios"]["trunk"]}
    assert pairs == {
        ("seemingly_toxic", "toxic"), ("toxic", "toxic"), ("seemingly_toxic", "seemingly_toxic"),
        ("general", "toxic"), ("general", "seemingly_toxic"),
    }  # fmt: skip


def test_its_estimate_is_near_the_exact_ratio(folder):
    opened = opened_model(folder, "llama", False)
    asked = prompts(3, 1)
    report = diagnose_kernel(opened, asked, layer=2, scopes=("all",), groups=24, fewest_groups=24)
    rows = [*asked["seemingly_toxic"], *asked["toxic"], *asked["general"]]
    exact = exact_squared_norms(opened, rows, [scope_of("all", 2, 3)])["all"].numpy()
    for pair in report.ratios["all"]:
        r, c = (np.array([i for i, name in enumerate(report.classes) if name == k]) for k in (pair.first, pair.second))
        expected = figures_of(exact, r, c)
        for name, figure in pair.figures.items():
            assert abs(figure.value - expected[name]) < 5 * figure.probe_error + 0.02, (pair.first, name)


def test_the_same_model_twice_differs_by_nothing(folder):
    opened = opened_model(folder, dtype=torch.float32)
    one, other = (diagnose_kernel(opened, prompts(3, 2), layer=2, groups=3, fewest_groups=3) for _ in range(2))
    for pair in differences(one.squared["all"], other.squared["all"], one.classes):
        assert all(abs(figure.value) < 1e-5 and figure.probe_error < 1e-5 for figure in pair.figures.values())


def test_the_error_of_prompts_is_that_of_drawing_them_anew():
    generator = np.random.default_rng(0)

    def squared(n: int) -> np.ndarray:
        """Norms of rank-one kernels: F(x', x) = a(x')^2 a(x)^2, so that each prompt has an effect of its own."""
        size = np.exp(0.5 * generator.standard_normal(2 * n))
        return np.outer(size, size) ** 2

    rows, columns = np.arange(20), np.arange(20, 40)
    drawn = [figures_of(squared(20), rows, columns)["log_ratio"] for _ in range(300)]
    told = [
        prompt_errors(rows, columns, lambda r, c, s=s: figures_of(s, r, c), 0)["log_ratio"]
        for s in (squared(20) for _ in range(8))
    ]
    assert np.mean(told) == pytest.approx(np.std(drawn), rel=0.25)


def test_the_error_of_probes_covers(monkeypatch):
    monkeypatch.setattr("dcr_ray.diagnosis.ratios.RESAMPLES", 2)
    generator = np.random.default_rng(1)
    exact = np.outer(np.arange(1.0, 7.0), np.arange(1.0, 7.0)) ** 0.8
    classes = ["seemingly_toxic"] * 3 + ["toxic"] * 3
    inside = 0
    true = figures_of(exact, np.arange(3), np.arange(3, 6))["log_ratio"]
    for _ in range(200):
        groups = exact * np.exp(0.2 * generator.standard_normal((8, 1, 1))) * (
            1 + 0.2 * generator.standard_normal((8, 6, 6))
        )  # fmt: skip
        figure = pair_ratios(groups, classes)[0].figures["log_ratio"]
        inside += abs(figure.value - true) < 2.36 * figure.probe_error
    assert 0.9 < inside / 200 <= 1.0


def test_what_cannot_be_diagnosed_is_said_at_once(folder):
    opened = opened_model(folder, dtype=torch.float32)
    with pytest.raises(InputError) as caught:
        diagnose_kernel(opened, {"seemingly_toxic": [[1]], "toxic": [[]] * 2, "odd": []}, layer=9, scopes=("al",))
    where = [problem.where for problem in caught.value.problems]
    assert where == ["scopes", "layer", "seemingly_toxic prompts", "prompts", "toxic prompt 0", "toxic prompt 1"]


def test_a_model_that_caps_its_logits_is_refused(tmp_path):
    build_tiny_model(tmp_path / "gemma2", "gemma2", **SMALL)
    with pytest.raises(InputError, match="softcapping"):
        open_whole(tmp_path / "gemma2", CPU)
