"""What a training has learnt so far, parameter by parameter and whole: fp32 weights and Adam's two moments.

It is the same for any number of ranks and any ZeRO stage, so what some ranks wrote others go on from. DeepSpeed holds
it in pieces whose layout depends on both; this is the only module that knows where.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dcr_ray.train.divided import ReadFlat, is_divided, own_run, put_own_run
from dcr_ray.train.engine import TrainingEngine, full_shape

WEIGHTS, MOMENTS = "weights", ("exp_avg", "exp_avg_sq")


def trained_parameters(engine: TrainingEngine) -> list[tuple[str, nn.Parameter]]:
    """In the same order on every rank."""
    return [(name, parameter) for name, parameter in engine.module.named_parameters() if parameter.requires_grad]


def steps_taken(engine: TrainingEngine) -> int:
    """Updates that the optimizer has made, as Adam counts them."""
    states = _optimizer(engine).state.values()
    return int(next((float(state["step"]) for state in states if "step" in state), 0.0))


def whole_state(engine: TrainingEngine, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Weights and moments of one parameter, whole, in fp32, of its shape. All ranks take part."""
    from deepspeed.utils import safe_get_full_optimizer_state

    found = {WEIGHTS: engine.full_tensor(parameter)}
    for name in MOMENTS:
        if _in_pieces(parameter):
            found[name] = safe_get_full_optimizer_state(parameter, name)
        else:
            found[name] = _optimizer(engine).state[parameter][name]
    return {name: tensor.detach().float().reshape(full_shape(parameter)) for name, tensor in found.items()}


def put_state(engine: TrainingEngine, steps: int, read: ReadFlat) -> None:
    """Go on from what `whole_state` gave: `read` gives it by "NAME|weights", "NAME|exp_avg" and so on.

    All ranks take part. After it the next update is the one that would have followed.
    """
    _make_moments(engine, steps)
    for name, parameter in trained_parameters(engine):
        if is_divided(parameter):
            begin, end, places = own_run(parameter)
            for part in (WEIGHTS, *MOMENTS):
                run = torch.zeros(places)
                run[: end - begin] = read(f"{name}|{part}", begin, end)
                if part == WEIGHTS:
                    put_own_run(parameter, run)
                _put_local(parameter, run, part)
            continue
        whole = {
            part: read(f"{name}|{part}", 0, parameter.numel()).view(parameter.shape).to(parameter.device)
            for part in (WEIGHTS, *MOMENTS)
        }
        with torch.no_grad():
            parameter.copy_(whole[WEIGHTS])
        if _in_pieces(parameter):
            for part, value in whole.items():
                parameter.set_full_hp_param(value.float(), None if part == WEIGHTS else part)
        else:
            for part in MOMENTS:
                _optimizer(engine).state[parameter][part].copy_(whole[part])


def put_master(parameter: nn.Parameter, value: Tensor) -> None:
    """Set the fp32 master of a parameter that computes in bf16: `value` is this rank's run of a divided one, else the
    whole."""
    if is_divided(parameter):
        run = torch.zeros(own_run(parameter)[2])
        run[: value.numel()] = value
        _put_local(parameter, run, WEIGHTS)
    else:
        parameter.set_full_hp_param(value.to(parameter.device, torch.float32))


def _put_local(parameter: nn.Parameter, run: Tensor, part: str) -> None:
    parameter._z3_optimizer.set_local_hp_param(run, parameter, None if part == WEIGHTS else part)


def _in_pieces(parameter: nn.Parameter) -> bool:
    """Whether DeepSpeed keeps the parameter's optimizer state apart from it."""
    return is_divided(parameter) or hasattr(parameter, "_hp_mapping")


def _optimizer(engine: TrainingEngine) -> Any:
    """torch's AdamW, below whatever DeepSpeed has put around it."""
    return engine.deepspeed.basic_optimizer


def _make_moments(engine: TrainingEngine, steps: int) -> None:
    """Moments of zero that count `steps` updates, where the first update would have made them."""
    around, optimizer = engine.deepspeed.optimizer, _optimizer(engine)
    # With ZeRO-3 the groups of torch's optimizer are filled for each update and emptied after it.
    pieces = getattr(around, "fp32_partitioned_groups_flat", None)
    pieces = pieces or [piece for group in optimizer.param_groups for piece in group["params"]]
    for piece in pieces:
        state = optimizer.state[piece]
        for name in MOMENTS:
            if name not in state:
                state[name] = torch.zeros_like(piece, dtype=torch.float32)
        state["step"] = torch.tensor(float(steps), device=piece.device)
    link_moments(engine)


def link_moments(engine: TrainingEngine) -> None:
    """Have DeepSpeed find the moments of every parameter, to be called before `whole_state`.

    It links parameters to moments once, after the update of the first group, when other groups have none yet.
    """
    around = engine.deepspeed.optimizer
    link = getattr(around, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        around._hp_optimizer_states_linked = False
        link()
