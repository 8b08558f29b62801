"""How many worker groups a machine is used with, where the study leaves it open."""

from __future__ import annotations

import pytest

from dcr_ray.models import ModelCard
from dcr_ray.planning.machine import Machine
from dcr_ray.planning.memory import GIB
from dcr_ray.planning.needs import memory_problems, settled_groups, with_groups
from dcr_ray.pools.simulated import CARD_CONFIG
from dcr_ray.study import parse_study
from tests.test_sweep import SPEC

CARD = ModelCard.from_config(CARD_CONFIG, "simulated")


def study(concurrent: int = 8, ranks: int = 1, **resources):
    return parse_study(
        SPEC | {"search": {"trials": 20, "concurrent": concurrent}, "shape": {"ranks": ranks}, "resources": resources}
    )


@pytest.mark.parametrize(
    ("spec", "machine", "groups"),
    [
        (study(), Machine(4, 64 * GIB, gpus=0), 4),
        (study(concurrent=2), Machine(16, 64 * GIB, gpus=0), 2),
        (study(ranks=2), Machine(4, 64 * GIB, gpus=0), 2),
        (study(ranks=8), Machine(4, 64 * GIB, gpus=0), 1),
        (study(), Machine(64, 64 * GIB, gpus=8), 1),
        (study(), None, 1),
        (study(worker_groups=3), Machine(2, 64 * GIB, gpus=0), 3),
    ],
    ids=["a-core-each", "a-trial-each", "two-ranks", "more-ranks-than-cores", "gpus", "elsewhere", "as-told"],
)
def test_groups_are_as_many_as_cores_and_trials_allow(spec, machine, groups):
    assert settled_groups(spec, CARD, machine) == groups


def test_there_are_fewer_groups_where_memory_is_short():
    large = ModelCard.from_config(CARD_CONFIG | {"num_hidden_layers": 30, "hidden_size": 1024, "head_dim": 64}, "large")
    spec = study()
    found = [settled_groups(spec, large, Machine(8, int(gib * GIB), gpus=0)) for gib in (1, 8, 64)]
    assert found[0] == 1 < found[1] < found[2] == 8
    machine = Machine(8, 8 * GIB, gpus=0)
    assert not memory_problems(with_groups(spec, found[1]), large, machine)
    assert memory_problems(with_groups(spec, found[1] + 1), large, machine)
