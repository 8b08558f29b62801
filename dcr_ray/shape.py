"""Shape: how a training stage runs. It never changes what is computed beyond rounding, except by its precision."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["fp32", "mixed", "bf16", "auto"]

HEAD_BUFFER_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
"""What the logits of some tokens may take at a time in the SFT loss, fp32. On a CPU a cache should hold them."""


class Shape(BaseModel):
    """Ranks, memory savings and precision of a training stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ranks: int = Field(1, ge=1, description="data-parallel processes, one per GPU where there are GPUs")
    zero_stage: Literal[0, 1, 2, 3] = Field(
        0, description="DeepSpeed ZeRO: 1 shards optimizer state, 2 gradients too, 3 parameters too"
    )
    micro_batch_size: int | None = Field(
        None, ge=1, description="most sequences a rank holds at once; none means its whole part of the batch"
    )
    precision: Precision = Field(
        "auto",
        description="mixed keeps weights in fp32 and rounds matrix products' inputs to bf16; bf16 keeps weights in "
        "bf16 beside fp32 masters; auto is bf16 on GPUs that have it, else fp32",
    )
    offload_optimizer: bool = Field(False, description="keep optimizer state in the host's memory (ZeRO 1 to 3)")
    offload_parameters: bool = Field(
        False, description="keep divided parameters in the host's memory as well (ZeRO 3 on GPUs)"
    )
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    checkpoint_seconds: float = Field(300.0, gt=0, description="seconds between two checkpoints inside a stage")

    @model_validator(mode="after")
    def _offload_needs_zero(self) -> Shape:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer needs zero_stage 1, 2 or 3, found 0")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(f"offload_parameters needs zero_stage 3, found {self.zero_stage}")
        return self

    def settled(self, on_gpu: bool) -> Shape:
        """With `auto` replaced by what it means on the hardware at hand, so that identities do not depend on it."""
        if self.precision != "auto":
            return self
        return self.model_copy(update={"precision": "bf16" if on_gpu else "fp32"})
