"""Cross-entropy through an output head without keeping its logits: a few rows at a time, gradient at once.

The logits of n tokens over a vocabulary of V take n V numbers, and their softmax and gradients as many again: for small
models that is most of a step's memory. Here a chunk's logits live in one buffer that becomes their gradient and is used
again by the next chunk. The same arithmetic otherwise; losses and gradients are those of cross_entropy up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dcr_ray.shape import HEAD_BUFFER_BYTES


def summed_cross_entropy(
    states: Tensor,
    head: nn.Linear,
    targets: Tensor,
    softcap: float | None = None,
    products: torch.dtype | None = None,
) -> Tensor:
    """Sum over the n targets of -log softmax(head(states))[target], in nats, a scalar in fp32.

    states [n, width], targets [n]; `softcap` c makes logits c tanh(logits / c), as Gemma 2 does. `products` is the
    precision that matrix products' inputs are rounded to, by default that of the head.
    """
    return _SummedCrossEntropy.apply(states, head.weight, head.bias, targets, softcap, products or head.weight.dtype)


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        products: torch.dtype,
    ) -> Tensor:
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2]]
        ctx.dtypes = (states.dtype, weight.dtype, None if bias is None else bias.dtype)
        states, weight = states.to(products), weight.to(products)
        count, vocabulary = len(states), len(weight)
        rows = max(1, min(count, HEAD_BUFFER_BYTES[states.device.type] // (4 * vocabulary)))
        buffer = torch.empty(rows, vocabulary, device=states.device, dtype=torch.float32)
        total = states.new_zeros((), dtype=torch.float32)
        gradients = [
            torch.empty_like(states) if wanted[0] else None,
            torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None,
            torch.zeros_like(bias, dtype=torch.float32) if wanted[2] else None,
        ]
        for start in range(0, count, rows):
            part, answers = states[start : start + rows], targets[start : start + rows, None]
            logits = buffer[: len(part)]
            if products == torch.float32:
                torch.mm(part, weight.t(), out=logits)
            else:
                logits.copy_(part @ weight.t())
            if bias is not None:
                logits += bias
            if softcap:
                logits.div_(softcap).tanh_()
                slope = 1 - logits * logits if any(wanted) else None
                logits.mul_(softcap)
            log_sum = logits.logsumexp(1, keepdim=True)
            total += (log_sum - logits.gather(1, answers)).sum()
            if not any(wanted):
                continue
            logits.sub_(log_sum).exp_()
            logits.scatter_add_(1, answers, torch.full_like(log_sum, -1.0))
            if softcap:
                logits.mul_(slope)
            gradient = logits.to(products)
            if wanted[0]:
                gradients[0][start : start + rows] = gradient @ weight
            if wanted[1] and products == torch.float32:
                gradients[1].addmm_(gradient.t(), part)
            elif wanted[1]:
                gradients[1] += (gradient.t() @ part).float()
            if wanted[2]:
                gradients[2] += logits.sum(0)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [
            None if gradient is None else (gradient * scale).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*gradients, None, None, None)
