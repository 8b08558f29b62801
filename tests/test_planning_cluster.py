"""Plans for clusters: FLOPs, exchange, what fits, what it costs, against figures worked out elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcr_ray.errors import InputError
from dcr_ray.planning.calibration import calibrated, gpu_named
from dcr_ray.planning.cards import known_card
from dcr_ray.planning.cluster import load_cluster, parse_cluster
from dcr_ray.planning.cost import plan_on_cluster
from dcr_ray.planning.flops import dcr_flops, sft_flops
from dcr_ray.planning.gpus import GPUS
from dcr_ray.planning.plan import drawn_recipes, stage_counts
from dcr_ray.planning.seconds import RATES, Where, dcr_seconds, hidden_exchange_tokens
from dcr_ray.planning.shapes import engines, nothing_fits, trainings
from dcr_ray.planning.work import DataFacts, TrainingWork
from dcr_ray.recipe import ContrastiveRecipe, LoraRecipe, Recipe
from dcr_ray.shape import Shape
from dcr_ray.study import parse_study

FIELDS = ("seemingly_toxic", "toxic", "general", "safety", "compliance", "defense", "capability")
FACTS = DataFacts(
    dict.fromkeys(FIELDS, 500) | {"general": 20_000, "safety": 1_000},
    dict.fromkeys(FIELDS, 80.0),
    dict.fromkeys(FIELDS, 0.0) | {"general": 800.0, "safety": 400.0, "capability": 400.0},
)
FULL = Recipe.model_validate({"dcr": {"batch_size": 32}, "sft": {"batch_size": 32, "max_tokens": 1024}})
LORA = Recipe.model_validate(FULL.model_dump() | {"sft": FULL.sft.model_dump() | {"lora": {"rank": 8}}})


def cluster(nodes: int, gpu: str = "H100-80GB", gpus: int = 8, network: float = 400, **more):
    facts = {"gpu": gpu, "gpus": gpus, "cpus": 192, "host_memory_gib": 2048, "disk_gib": 28000}
    facts |= {"network_gb_s": network, "price_per_hour": 80.0} | more
    text = f"""
name: made-up
num_nodes: {nodes}
resources: {{accelerators: "H100:8"}}
# dcr_ray:
# nodes: {{node: {facts}}}
# storage: {{path: /shared, read_gb_s: 2, write_gb_s: 1.5}}
"""
    return parse_cluster(text, "made-up.yaml")


def study(**sections):
    sets = {"seemingly_toxic": "builtin-seemingly-toxic", "toxic": "builtin-toxic"}
    plain = {
        "study": "planned",
        "model": "meta-llama/Llama-3.1-8B",
        "data": {
            "train": sets | {"general": "builtin-instructions", "safety": "builtin-refusals"},
            "evaluate": {
                "compliance": "builtin-seemingly-toxic",
                "defense": "builtin-toxic",
                "capability": "builtin-instructions",
            },
        },
        "recipe": LORA.model_dump(mode="json"),
        "space": {"dcr.layer_depth": {"low": 0.3, "high": 0.6}},
        "objectives": {"compliance": "maximize", "defense": "maximize"},
        "search": {"trials": 12, "concurrent": 4},
    }
    return parse_study(plain | sections)


def planned(spec, nodes, calibration=None):
    card = known_card(spec.model)
    found = calibration or calibrated([], card.parameters, GPUS["H100-80GB"])
    return plan_on_cluster(spec, card, FACTS, nodes, drawn_recipes(spec), stage_counts(spec), found)


def test_full_training_costs_six_operations_a_matrix_weight_and_token():
    card = known_card("meta-llama/Llama-3.1-8B")
    # Matrices and head of the 8B, its norms left out: 7,504,658,432 weights; attention 12 L a d s.
    expected = 6 * 7_504_658_432 + 12 * 32 * 4096 * 1000
    assert sft_flops(card, 1.0, 1.0, 1000).model == pytest.approx(expected, rel=1e-12)


def test_adapters_spare_the_gradients_of_frozen_weights():
    card, lora = known_card("meta-llama/Llama-3.1-8B"), LoraRecipe(rank=8, targets=("q_proj",))
    adapters = 32 * 8 * (4096 + 4096)
    assert sft_flops(card, 1.0, 1.0, 0.0, lora).model == 4 * 7_504_658_432 + 6 * adapters


def test_the_dcr_stage_costs_in_proportion_to_its_depth():
    card = known_card("meta-llama/Llama-3.1-8B")
    whole = dcr_flops(card, 32, 1e6, 40).model
    assert dcr_flops(card, 8, 1e6, 40).model == pytest.approx(whole / 4)
    # Of frozen layers only the forward pass is left.
    assert dcr_flops(card, 8, 1e6, 40, frozen=4).model == pytest.approx(whole / 4 * (4 + 12) / 24)


def test_recomputed_activations_are_hardware_flops_alone():
    card = known_card("Qwen/Qwen2.5-0.5B")
    plain, again = dcr_flops(card, 12, 1e3, 40), dcr_flops(card, 12, 1e3, 40, checkpointing=True)
    assert again.model == plain.model == plain.hardware and again.hardware == pytest.approx(plain.model * 4 / 3)


def test_zero_3_hides_its_exchange_from_about_a_thousand_tokens_within_a_node():
    one, four = cluster(1), cluster(4, network=25)
    inside = hidden_exchange_tokens(Where(one.nodes[0], 1, 8))
    assert inside == pytest.approx(6 * 0.4 * 989e12 / (8 * 0.7 * 450e9))
    # 200 Gb/s a node, 18 times less than NVLink, takes 18 times as many tokens.
    assert hidden_exchange_tokens(Where(four.nodes[0], 4, 32)) == pytest.approx(inside * 450 / 25)


def test_a_small_model_on_a_gpu_takes_as_long_as_its_kernels_take_to_be_launched():
    # Measured on an H200, Qwen2.5-1.5B's shape, bf16, 64 prompts of 58 tokens a step: milliseconds a step.
    card, recipe = known_card("Qwen/Qwen2.5-1.5B"), ContrastiveRecipe(layer_depth=0.5, batch_size=64)
    where = Where(cluster(1, gpu="H200-141GB").nodes[0], 1, 1)
    work, storage = TrainingWork(1000, 64, 58.4, 0), cluster(1).storage
    found = dcr_seconds(card, recipe, work, Shape(precision="bf16"), where, storage)
    assert found.compute == pytest.approx(89.0, rel=0.05) and found.optimizer == pytest.approx(15.5, rel=0.05)
    recomputed = Shape(precision="bf16", activation_checkpointing=True)
    again = dcr_seconds(card, recipe, work, recomputed, where, storage)
    assert again.compute == pytest.approx(found.compute * 4 / 3)
    large = known_card("meta-llama/Llama-3.1-70B")
    long = dcr_seconds(large, recipe, work, Shape(precision="bf16"), where, storage)
    assert long.compute > 1.5 * 1000 * 40 * RATES.launch_seconds, "there it is arithmetic that takes the time"


@pytest.mark.parametrize(
    "model, nodes, fits",
    [
        ("meta-llama/Llama-3.1-8B", 1, True),
        ("Qwen/Qwen2.5-14B", 1, True),
        ("meta-llama/Llama-3.1-70B", 4, True),
    ],
)
def test_a_model_fits_the_nodes_that_it_is_known_to_fit_without_offload(model, nodes, fits):
    found = trainings(known_card(model), FULL, FACTS, cluster(nodes))
    assert any(not fit.shape.offload_optimizer for fit in found) is fits


def test_70b_fully_fine_tuned_on_one_node_is_refused_with_numbers_and_what_would_help():
    card, small = known_card("meta-llama/Llama-3.1-70B"), cluster(1, host_memory_gib=1000)
    assert trainings(card, FULL, FACTS, small) == []
    problems = nothing_fits(card, FULL, FACTS, small)
    assert "GiB needed" in problems[0].found and "Short by" in problems[0].fix and "lora" in problems[0].fix


def test_a_small_model_is_put_on_one_gpu():
    best = trainings(known_card("Qwen/Qwen2.5-0.5B"), LORA, FACTS, cluster(1))[0]
    assert best.shape.ranks == 1 and not best.shape.offload_optimizer


def test_more_memory_never_makes_less_fit():
    card = known_card("Qwen/Qwen2.5-32B")
    small, large = (trainings(card, FULL, FACTS, cluster(2, gpu)) for gpu in ("H100-80GB", "H200-141GB"))
    assert {(fit.shape, fit.where.nodes) for fit in small} <= {(fit.shape, fit.where.nodes) for fit in large}


def test_an_engine_takes_as_few_gpus_as_hold_it():
    assert engines(known_card("meta-llama/Llama-3.1-8B"), cluster(1), 1024)[0].where.ranks == 1
    assert engines(known_card("meta-llama/Llama-3.1-70B"), cluster(1), 1024)[0].where.ranks == 4
    assert engines(known_card("meta-llama/Llama-3.1-70B"), cluster(1, "H200-141GB"), 1024)[0].where.ranks == 2


def test_a_plan_leaves_gpus_to_its_engines_and_prices_the_whole_cluster():
    plan = planned(study(), cluster(1))
    assert plan.problems == () and plan.groups * plan.training.where.ranks + 1 <= 8
    assert plan.price == pytest.approx(plan.hours * 80)
    assert sum(cost.price for cost in plan.stages.values()) < plan.price
    assert plan.stages["sft"].to_run == 13 and plan.stages["dcr"].to_run == 12


def test_shared_stages_are_paid_once():
    spaces = ({"dcr.layer_depth": {"choices": [0.3, 0.6]}}, {"dcr.layer_depth": {"low": 0.3, "high": 0.6}})
    few, many = (
        planned(study(space=space | {"sft.learning_rate": {"low": 1e-5, "high": 1e-3}}), cluster(1)).stages["dcr"]
        for space in spaces
    )
    assert (few.to_run, few.shared) == (2, 10) and (many.to_run, many.shared) == (12, 0)
    assert few.reserved < many.reserved / 4


def test_a_study_whose_own_shape_does_not_fit_is_told_so_and_what_would():
    plan = planned(study(shape={"ranks": 2}, recipe=FULL.model_dump(mode="json")), cluster(1))
    assert plan.problems and "GiB needed per GPU" in plan.problems[0].found
    assert plan.training is None and plan.cheapest is not None


def test_the_settings_of_a_plan_make_the_study_plan_the_same():
    first = planned(study(), cluster(1))
    again = planned(study(**first.settings()), cluster(1))
    assert again.problems == () and again.training.shape == first.training.shape
    assert again.hours == pytest.approx(first.hours)


def test_interruptions_of_spot_nodes_lengthen_a_study():
    steady, spot = planned(study(), cluster(1)), planned(study(), cluster(1, interruptions_per_hour=0.5))
    assert steady.repeated_share == 0 and spot.repeated_share > 0 and spot.hours > steady.hours


class Measured:
    def __init__(self, rate, device="NVIDIA H100 80GB HBM3", parameters=8e9, ranks=2):
        computed = {"model_flops": rate * ranks * 10, "parameters": parameters, "ranks": ranks, "threads": 1}
        self.results = {"seconds": {"forward_backward": 10.0}, "computed": computed | {"device": device}}


def test_measured_rates_take_the_place_of_assumed_ones():
    gpu = GPUS["H100-80GB"]
    found = calibrated([Measured(0.2 * gpu.flops_per_second), Measured(0.3 * gpu.flops_per_second)], 8e9, gpu)
    assert found.records == 2 and found.rates.training_share == pytest.approx(0.25)
    slow, fast = planned(study(), cluster(1), found), planned(study(), cluster(1))
    assert slow.stages["sft"].each > fast.stages["sft"].each
    assert calibrated([Measured(1e14, "NVIDIA A100-SXM4-80GB")], 8e9, gpu).rates == RATES
    # Of a like size where there is any.
    sizes = [Measured(0.1 * gpu.flops_per_second, parameters=1e8), Measured(0.3 * gpu.flops_per_second)]
    assert calibrated(sizes, 8e9, gpu).rates.training_share == pytest.approx(0.3)


@pytest.mark.parametrize(
    "driver, name",
    [
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA H200", "H200-141GB"),
        ("NVIDIA L4", "L4-24GB"),
    ],
)
def test_a_gpu_is_known_by_its_drivers_name(driver, name):
    assert gpu_named(driver) == GPUS[name]


def test_an_unknown_gpu_is_no_known_one():
    assert gpu_named("NVIDIA GeForce RTX 4090") is None


FILES = sorted((Path(__file__).parent.parent / "clusters").glob("*.*"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_shipped_cluster_file_tells_its_nodes(file):
    found = load_cluster(file)
    assert found.name and found.nodes and all(node.count >= 1 for node in found.nodes)


def test_every_fault_of_a_cluster_file_is_told_at_once():
    text = (
        "name: x\nresources: {}\n# dcr_ray:\n# nodes:\n#   node: {gpu: H100-80GB, gpus: -1, cpus: 1, memory: 2}\n"
        "# storage: {path: /s}\n"
    )
    with pytest.raises(InputError) as caught:
        parse_cluster(text, "x.yaml")
    told = " ".join(str(problem) for problem in caught.value.problems)
    assert all(name in told for name in ("gpus", "memory", "host_memory_gib", "read_gb_s"))


@pytest.mark.parametrize(
    "text, told",
    [
        ("a: 1", "no known kind"),
        ("resources: {}\nname: x", "no facts"),
        (
            "resources: {}\nname: x\n# dcr_ray:\n# nodes: {other: {cpus: 1, host_memory_gib: 1, disk_gib: 1}}\n"
            "# storage: {path: /s, read_gb_s: 1, write_gb_s: 1}\n",
            "no facts of 'node'",
        ),
        (
            "resources: {}\nname: x\n# dcr_ray:\n# nodes: {node: {gpus: 1, gpu: H100, cpus: 1, host_memory_gib: 1, "
            "disk_gib: 1}}\n# storage: {path: /s, read_gb_s: 1, write_gb_s: 1}\n",
            "'H100-80GB'",
        ),
    ],
)
def test_a_file_that_tells_too_little_is_refused_with_the_reason(text, told):
    with pytest.raises(InputError, match=told):
        parse_cluster(text, "x.yaml")
