"""States of prompts after every layer of a plain model: what separability is read from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dcr_ray.diagnosis.opened import Opened

BATCH_PROMPTS = 16


def layer_states(opened: Opened, rows: Sequence[Sequence[int]], pooling: str = "last") -> NDArray[np.float32]:
    """States [prompts, layers, width] after each layer, before the final norm; of the last token, or the mean of all.

    Rows are token ids, padded on the right, where a causal model does not look.
    """
    parts = []
    for start in range(0, len(rows), BATCH_PROMPTS):
        batch = rows[start : start + BATCH_PROMPTS]
        width = max(map(len, batch))
        ids = torch.tensor([list(row) + [0] * (width - len(row)) for row in batch], device=opened.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in batch], device=opened.device)
        outputs: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(
                lambda _, __, output: outputs.append(output[0] if isinstance(output, tuple) else output)
            )
            for layer in opened.layers
        ]
        try:
            with torch.inference_mode():
                opened.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        states = torch.stack(outputs, 1).float()
        if pooling == "last":
            at = torch.tensor([len(row) - 1 for row in batch], device=states.device)
            pooled = states[torch.arange(len(batch), device=states.device), :, at]
        else:
            share = mask / mask.sum(1, keepdim=True)
            pooled = torch.einsum("nltd,nt->nld", states, share.float())
        parts.append(pooled.cpu().numpy())
    return np.concatenate(parts)
