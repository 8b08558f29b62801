"""One DeepSpeed engine for one stage: made anew, used, destroyed, so that a process can run stage after stage.

It knows modules and losses, not what they mean. Losses it is given are of the global batch: DeepSpeed's average over
ranks is undone here, so that the number of ranks and of chunks never enters a gradient.
"""

from __future__ import annotations

import gc
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from dcr_ray.errors import StageFailed
from dcr_ray.shape import Shape
from dcr_ray.train.world import World


class TrainingEngine:
    """Forward, backward, step and weights of a module in training. All ranks call every method together."""

    def __init__(self, engine: Any, world: World, zero_stage: int, gradient_clip: float):
        self.deepspeed = engine
        self.world = world
        self._zero_stage = zero_stage
        self._gradient_clip = gradient_clip

    @property
    def module(self) -> nn.Module:
        return self.deepspeed.module

    def __call__(self, *inputs: Any) -> Tensor:
        return self.deepspeed(*inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradient of this rank's part of the step's loss; the parts of all ranks and chunks sum up to it.

        `last` says that this chunk completes the step.
        """
        self.deepspeed.set_gradient_accumulation_boundary(last)
        self.deepspeed.backward(loss * self.world.size)

    def step(self, learning_rate: float) -> float:
        """One AdamW update with clipped gradients. Returns their norm before clipping.

        Raises StageFailed("diverged") on all ranks where the norm is not finite; the weights are then worthless.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._zero_stage == 0:
            norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), self._gradient_clip))
            self._check(norm)
            self.deepspeed.step()
        else:
            self.deepspeed.step()
            norm = float(self.deepspeed.get_global_grad_norm())
            self._check(norm)
        return norm

    def _check(self, norm: float) -> None:
        # DeepSpeed gives a norm that is not finite as -1 or as infinity, depending on the ZeRO stage.
        if self.world.any(not math.isfinite(norm) or norm < 0):
            raise StageFailed("diverged", f"the gradient's norm is not finite at step {self.deepspeed.global_steps}")

    def full_tensor(self, parameter: nn.Parameter) -> Tensor:
        """The whole parameter, from its fp32 master where it has one; on every rank, on the rank's device.

        Not to be changed: it may be the parameter's own memory.
        """
        from deepspeed.utils import safe_get_full_fp32_param

        if parameter.requires_grad and parameter.dtype != torch.float32:
            return safe_get_full_fp32_param(parameter)
        if not hasattr(parameter, "ds_id"):
            return parameter.detach()
        with gathered([parameter]):
            return parameter.detach().clone()


def gathered(parameters: list[nn.Parameter], modifier_rank: int | None = None) -> Any:
    """A context in which parameters that ZeRO-3 has divided are whole; nothing to do for others."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=modifier_rank)


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """The parameter's shape, also where ZeRO-3 has divided it."""
    return getattr(parameter, "ds_shape", parameter.shape)


def deepspeed_config(
    shape: Shape, precision: str, gradient_clip: float, device: torch.device, live: int | None = None
) -> dict[str, Any]:
    """The DeepSpeed configuration of a stage. Accumulation is counted by the caller, so it is 1 here.

    `live` is how many parameters may stay gathered under ZeRO-3; None leaves all buffers at DeepSpeed's defaults, which
    are made for models of billions.
    """
    zero: dict[str, Any] = {"stage": effective_zero_stage(shape, precision)}
    if shape.offload_optimizer and device.type != "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if shape.offload_parameters and device.type != "cpu":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    if zero["stage"] == 3 and live is not None:
        zero |= {"stage3_max_live_parameters": live, "stage3_max_reuse_distance": live}
        zero |= {
            "stage3_prefetch_bucket_size": min(50_000_000, live // 2),
            "reduce_bucket_size": min(500_000_000, live),
        }
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": gradient_clip if zero["stage"] else 0.0,
        "bf16": {"enabled": precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # torch's own AdamW needs no compiler on the machine; DeepSpeed's CPU version does.
        "zero_force_ds_cpu_optimizer": False,
    }


def effective_zero_stage(shape: Shape, precision: str) -> int:
    """The shape's ZeRO stage, but 1 for bf16 with stage 0: DeepSpeed keeps no fp32 masters in stage 0."""
    return max(shape.zero_stage, 1) if precision == "bf16" else shape.zero_stage


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed on this device, quiet, and without extensions that need a compiler."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Launchers set it; a lone process has no launcher, and DeepSpeed asks.
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    # Said at every exchange of every step; the calls are DeepSpeed's own.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # Its shared-memory all-reduce is compiled at first use, for most of a minute; gloo needs nothing.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    return deepspeed


@contextmanager
def training_engine(
    module: nn.Module, world: World, config: dict[str, Any], weight_decay: float, gradient_clip: float
) -> Iterator[TrainingEngine]:
    """An engine with AdamW over the module's trainable parameters; destroyed, with its memory, when the block ends.

    Weight decay is for matrices; norms and biases are left out, as is usual. The learning rate comes with every step.
    """
    deepspeed = import_deepspeed(world.device)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if len(full_shape(p)) >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if len(full_shape(p)) < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, fused=True)
    # Its bf16 optimizer prints memory figures to stdout, where commands print their results.
    with redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    zero_stage = config["zero_optimization"]["stage"]
    if zero_stage == 0 and world.size == 1:
        # Alone there is nothing to reduce, and DeepSpeed would copy all gradients there and back.
        engine.enable_backward_allreduce = False
    try:
        yield TrainingEngine(engine, world, zero_stage, gradient_clip)
    finally:
        engine.destroy()
        if zero_stage == 3:
            _release_zero_3(engine, module)
        del engine, optimizer, groups, trained
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()


def _release_zero_3(engine: Any, module: nn.Module) -> None:
    """Give up all tensors of a destroyed ZeRO-3 engine, which outlives its last reference.

    DeepSpeed keeps the module on a global list, and hooks that live in autograd keep parameters and optimizer: without
    this, weights, gradients and optimizer states of every stage would stay in memory as long as the process.
    """
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    FWD_MODULE_STACK[:] = [kept for kept in FWD_MODULE_STACK if kept is not module]
    engine.basic_optimizer.state.clear()
    engine.basic_optimizer.param_groups.clear()
    vars(engine.optimizer).clear()
    engine.optimizer = engine.basic_optimizer = None
    for parameter in module.parameters():
        vars(parameter).clear()
        parameter.grad = None
        parameter.data = parameter.data.new_empty(0)


@contextmanager
def memory_failures(world: World) -> Iterator[None]:
    """Turn running out of memory into StageFailed("out_of_memory") with the numbers.

    It is raised on the rank that ran out. Others of its group may wait for it, so the group has to be ended.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # The CPU's allocator has no error class of its own.
        of_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
        if not of_memory:
            raise
        numbers = " ".join(str(error).split())[:500]
        raise StageFailed("out_of_memory", f"rank {world.rank} of {world.size}: {numbers}") from error
