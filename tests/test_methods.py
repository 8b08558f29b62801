"""Surgical, SCANS and ACTOR on tiny models: the published steps, checked against their formulas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcr_ray.data.chat import prompt_ids
from dcr_ray.errors import StageFailed
from dcr_ray.evaluate.canary import read_canary
from dcr_ray.evaluate.transformers_engine import TransformersEngine
from dcr_ray.methods.ablation import HEAD, ablate_weights, ablated
from dcr_ray.methods.actor import layer_silhouettes, run_actor
from dcr_ray.methods.jobs import EditJob
from dcr_ray.methods.run import run_edit
from dcr_ray.methods.scans import Steering, between, harmfulness, transitions
from dcr_ray.methods.serves import method_problems
from dcr_ray.methods.states import blocks, common_end, end_states, load_model, next_token_logprobs, refusal_scores
from dcr_ray.models import ModelCard
from dcr_ray.recipe import ActorRecipe, ScansRecipe, SurgicalRecipe
from tests.train_models import SEEMINGLY_TOXIC, TOXIC, tiny_model

GENERAL = tuple(f"How do I write {i} programs that read a file?" for i in range(18))
CPU = torch.device("cpu")


def rows(model_dir: str, texts: tuple[str, ...]) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    return [prompt_ids(tokenizer, text, None) for text in texts]


def edit_job(model_dir: str, output_dir: Path, recipe) -> EditJob:
    output_dir.mkdir(parents=True, exist_ok=True)
    return EditJob(
        model_dir, model_dir, recipe, SEEMINGLY_TOXIC, TOXIC, GENERAL, None, 0, str(output_dir),
        canary_prompts=("Where is it?",),
    )  # fmt: skip


def refusing_model(folder: Path, **options) -> str:
    """A tiny model whose head is biased by hand so that toxic and seemingly toxic prompts begin with "I"."""
    place = tiny_model(folder / "refusing", **options)
    model = load_model(place, CPU)
    tokenizer = AutoTokenizer.from_pretrained(place)
    token = tokenizer("I", add_special_tokens=False)["input_ids"][0]
    refused = end_final(model, rows(place, (*SEEMINGLY_TOXIC, *TOXIC)))
    answered = end_final(model, rows(place, GENERAL))
    # A linear classifier by least squares, put into the head's row of that token.
    states = torch.cat([refused, answered])
    wanted = torch.cat([torch.full((len(refused),), 9.0), torch.full((len(answered),), -9.0)])
    head = model.get_output_embeddings().weight
    others = torch.cat([states @ head[:token].T, states @ head[token + 1 :].T], 1).logsumexp(1)
    head.data[token] = torch.linalg.lstsq(states, (wanted + others)[:, None]).solution[:, 0]
    model.save_pretrained(place)
    return place


def end_final(model, prompts) -> torch.Tensor:
    """States after the final norm at the last token."""
    return model.base_model.norm(end_states(model, prompts, 1)[:, -1, 0])


@pytest.fixture(scope="module")
def untied_dir(tmp_path_factory) -> str:
    return refusing_model(tmp_path_factory.mktemp("methods"), tied=False)


def test_end_states_are_the_inputs_of_blocks_and_the_last_output(tmp_path):
    place = tiny_model(tmp_path)
    model = load_model(place, CPU)
    prompts = rows(place, (*SEEMINGLY_TOXIC[:3], *TOXIC[:2]))
    found = end_states(model, prompts, 2)
    for row, prompt in enumerate(prompts):
        states = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        expected = torch.stack([state[0, -2:] for state in states[:-1]])
        torch.testing.assert_close(found[row, :-1], expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.base_model.norm(found[row, -1]), states[-1][0, -2:], rtol=1e-4, atol=1e-4)


def test_the_templates_end_is_what_all_prompts_share(tmp_path):
    place = tiny_model(tmp_path)
    tail = rows(place, TOXIC[:4])[0][-common_end(rows(place, (*TOXIC[:4], *GENERAL[:4]))) :]
    assert AutoTokenizer.from_pretrained(place).decode(tail) == "<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma"])
def test_edited_weights_and_hooks_are_the_same_model(family, tied, tmp_path):
    place = tiny_model(tmp_path, family=family, tied=tied)
    model = load_model(place, CPU)
    prompts = rows(place, (*TOXIC[:3], *GENERAL[:3]))
    direction = torch.randn(64, generator=torch.Generator().manual_seed(1))
    direction /= direction.norm()
    before = next_token_logprobs(model, prompts)
    with ablated(model, direction):
        hooked = next_token_logprobs(model, prompts)
    changed = ablate_weights(model, direction)
    torch.testing.assert_close(next_token_logprobs(model, prompts), hooked, rtol=0, atol=1e-4)
    assert (before - hooked).abs().max() > 0.01
    assert (HEAD in changed) == tied
    assert end_states(model, prompts, 1)[:, :, 0].matmul(direction).abs().max() < 1e-4


def test_surgical_lowers_false_refusal_and_leaves_the_true_direction(untied_dir, tmp_path):
    results = run_edit(edit_job(untied_dir, tmp_path / "out", SurgicalRecipe(validation_prompts=4, kl_bound=3.0)))
    metrics = results["metrics"]
    assert metrics["surgical_score_after"] < metrics["surgical_score_before"]
    assert metrics["surgical_weights_against_hooks"] < 1e-3
    assert metrics["surgical_kl"] <= 3.0 and metrics["surgical_layer_depth"] < 0.8
    edited = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    original = load_model(untied_dir, CPU)
    same = {
        name
        for name, tensor in edited.named_parameters()
        if torch.equal(tensor, dict(original.named_parameters())[name])
    }
    assert all(("o_proj" in n or "down_proj" in n or "embed" in n) != (n in same) for n, _ in edited.named_parameters())
    engine = TransformersEngine(tmp_path / "out")
    assert engine.prove_live(tmp_path / "out") < 1e-3


def test_orthogonality_takes_the_true_direction_out_of_the_false_one():
    w, r = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for share in (1.0, 0.5):
        kept = w - share * (w @ r) / (r @ r) * r
        assert float(kept @ r) == pytest.approx((1 - share) * float(w @ r), abs=1e-9)


def test_surgical_says_how_many_prompts_are_really_refused(tmp_path):
    place = tiny_model(tmp_path / "plain")
    model = load_model(place, CPU)
    tokenizer = AutoTokenizer.from_pretrained(place)
    from dcr_ray.evaluate.first_token import refusal_first_tokens

    tokens = refusal_first_tokens(tokenizer)
    refused = int((refusal_scores(next_token_logprobs(model, rows(place, TOXIC)), tokens) > 0).sum())
    assert refused == 0, "a random model begins with any token"
    with pytest.raises(StageFailed, match=r"0 of \d+ seemingly toxic prompts are really refused"):
        run_edit(edit_job(place, tmp_path / "out", SurgicalRecipe()))


def test_a_tied_model_gets_a_head_of_its_own(tmp_path):
    place = refusing_model(tmp_path, tied=True, seed=3)
    run_edit(edit_job(place, tmp_path / "out", SurgicalRecipe(validation_prompts=4, kl_bound=50.0, fewest_refused=2)))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    edited, original = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), load_model(place, CPU)
    assert torch.equal(edited.lm_head.weight, original.lm_head.weight)
    assert not torch.equal(edited.model.embed_tokens.weight, original.model.embed_tokens.weight)


def test_actor_trains_one_layer_towards_its_targets(untied_dir, tmp_path):
    recipe = ActorRecipe(layer_depth=0.5, learning_rate=3e-3, epochs=6, alpha=0.8)
    results = run_edit(edit_job(untied_dir, tmp_path / "out", recipe))
    assert results["metrics"]["actor_final_loss"] < results["metrics"]["actor_first_loss"]
    edited, original = (
        dict(AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).named_parameters())
        for place in (tmp_path / "out", untied_dir)
    )
    changed = {name for name in edited if not torch.equal(edited[name], original[name])}
    assert changed and all(name.startswith("model.layers.1.") for name in changed)
    assert read_canary(tmp_path / "out")


def test_actor_moves_each_prompt_by_its_own_projection(untied_dir):
    model = load_model(untied_dir, CPU)
    groups = [rows(untied_dir, texts) for texts in (SEEMINGLY_TOXIC, TOXIC, GENERAL)]
    before = [end_states(model, each, 1)[:, 2, 0] for each in groups]
    direction = before[1].mean(0) - before[2].mean(0)
    run_actor(
        model,
        ActorRecipe(layer_depth=0.5, epochs=1, alpha=0.5, learning_rate=1e-3, batch_size=2),
        *groups,
        0,
        lambda *_: None,
    )
    after = [end_states(model, each, 1)[:, 2, 0] for each in groups]

    def share(states: torch.Tensor) -> float:
        return float((torch.nn.functional.normalize(states, dim=1) @ direction).mean() / direction.norm())

    moves = [share(new) - share(old) for old, new in zip(before, after, strict=True)]
    signs = [1 if share(old) > 0 else -1 for old in before]
    assert moves[1] * signs[1] > 0, "harmful prompts go further along their projection"
    assert moves[0] * signs[0] < 0 and moves[2] * signs[2] < 0, "others lose a part of theirs"


def test_silhouettes_are_higher_where_the_kinds_lie_apart(untied_dir):
    model = load_model(untied_dir, CPU)
    apart = layer_silhouettes(model, rows(untied_dir, TOXIC), rows(untied_dir, GENERAL))
    mixed = layer_silhouettes(model, rows(untied_dir, TOXIC[::2]), rows(untied_dir, TOXIC[1::2]))
    assert len(apart) == 4 and min(apart) > max(mixed)


@pytest.fixture(scope="module")
def scans_dir(untied_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    run_edit(edit_job(untied_dir, folder, ScansRecipe(threshold=None, strength=2.0, first_depth=0.25, last_depth=0.75)))
    return folder


def test_scans_test_follows_its_formula(untied_dir, scans_dir):
    model = load_model(untied_dir, CPU)
    steering = Steering(model, scans_dir)
    prompts = rows(untied_dir, TOXIC[:5])
    sure = AutoTokenizer.from_pretrained(untied_dir)(" Sure", add_special_tokens=False)["input_ids"]
    references = steering._references
    scores = harmfulness(transitions(model, prompts, steering.after, sure), references, 1)
    for prompt, score in zip(prompts, scores, strict=True):
        states = model(torch.tensor([[*prompt, *sure]]), output_hidden_states=True).hidden_states
        cosines = []
        for layer in range(1, 3):  # the last block's output is normed in what transformers gives
            state = states[layer + 1][0].double()
            moved = state[len(prompt) - steering.after] - state[-1]
            cosines.append(float(torch.cosine_similarity(moved, references[layer], dim=0)))
        raw = end_states(model, [[*prompt, *sure]], steering.after + len(sure))[0, -1].double()
        cosines.append(float(torch.cosine_similarity(raw[0] - raw[-1], references[3], dim=0)))
        assert float(score) == pytest.approx(sum(cosines) / 3, abs=1e-5)


def test_scans_steers_from_the_instructions_end_on(untied_dir, scans_dir):
    model = load_model(untied_dir, CPU)
    steering = Steering(model, scans_dir)
    prompt = rows(untied_dir, TOXIC[:1])[0]
    captured = {}
    blocks(model)[1].register_forward_hook(lambda _, __, output: captured.update(now=output))
    model(torch.tensor([prompt]))
    before = captured["now"][0].clone()
    with steering.applied(torch.ones(1)) as steered:
        steered.from_places([len(prompt) - steering.after], len(prompt))
        # The steering hook was added later, so the captured output is seen before it; ask the next block's input.
        taken = {}
        hook = blocks(model)[2].register_forward_pre_hook(
            lambda _, a, k: taken.update(now=a[0] if a else k["hidden_states"]), with_kwargs=True
        )
        model(torch.tensor([prompt]))
        hook.remove()
    difference = taken["now"][0] - before
    vector = steering._vectors[0]
    torch.testing.assert_close(difference[-steering.after :], vector.expand(steering.after, -1), rtol=1e-4, atol=1e-4)
    assert difference[: -steering.after].abs().max() < 1e-5
    assert float(vector.norm()) == pytest.approx(2.0, rel=1e-4)


def test_steered_answers_do_not_depend_on_their_batch(untied_dir, scans_dir):
    prompts = rows(untied_dir, (*TOXIC[:4], *GENERAL[:4]))
    answers = []
    for batch_size in (1, 8):
        engine = TransformersEngine(untied_dir, batch_size=batch_size)
        plain = [g.text for g in engine.generate(prompts, max_tokens=6)]
        engine.steer(scans_dir)
        steered = engine.generate(prompts, max_tokens=6)
        assert [g.text for g in steered] != plain
        scores = engine.sequence_logprobs([([*prompt, 5, 6], len(prompt)) for prompt in prompts])
        walked = engine.continuation_logprobs(prompts, [(5, 6)])
        assert scores == pytest.approx([row[0] for row in walked], abs=1e-3)
        answers.append([g.text for g in steered])
        engine.load(untied_dir)
        assert [g.text for g in engine.generate(prompts, max_tokens=6)] == plain, "other weights are not steered"
    assert answers[0] == answers[1]


def test_the_threshold_between_two_kinds_parts_them_best():
    assert between(torch.tensor([0.8, 0.9, 0.7]), torch.tensor([0.1, 0.3, 0.2])) == pytest.approx(0.5)
    cut = between(torch.tensor([0.8, 0.9, 0.25]), torch.tensor([0.1, 0.3, 0.2]))
    assert 0.2 < cut < 0.8


def test_what_a_model_cannot_serve_is_said_before_anything_starts(tmp_path):
    place = Path(tiny_model(tmp_path, family="gemma2"))
    card = ModelCard.from_folder(place)
    (place / "chat_template.jinja").unlink()
    found = method_problems(["surgical", "scans"], card, place, zero_stage=3)
    assert [problem.where for problem in found] == ["recipe.method", "recipe.method", "shape.zero_stage"]
    assert "without a chat template" in found[0].found and "Gemma2" in found[1].found
    assert method_problems(["dcr", "stl-aug"], card, place, zero_stage=3) == []
