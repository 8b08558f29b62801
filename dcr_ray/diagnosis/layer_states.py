"""States of prompts after every layer of a plain model: what separability is read from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dcr_ray.diagnosis.opened import Opened, right_padded
from dcr_ray.methods.states import states_of

BATCH_PROMPTS = 16


def layer_states(opened: Opened, rows: Sequence[Sequence[int]], pooling: str = "last") -> NDArray[np.float32]:
    """States [prompts, layers, width] after each layer, before the final norm; of the last token, or the mean of all.

    Rows are token ids, padded on the right, where a causal model does not look.
    """
    parts = []
    for start in range(0, len(rows), BATCH_PROMPTS):
        ids, mask, last = right_padded(rows[start : start + BATCH_PROMPTS], opened.device)
        outputs: list[torch.Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda _, __, output: outputs.append(states_of(output)))
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
            pooled = states[torch.arange(len(last), device=states.device), :, last]
        else:
            share = mask / mask.sum(1, keepdim=True)
            pooled = torch.einsum("nltd,nt->nld", states, share.float())
        parts.append(pooled.cpu().numpy())
    return np.concatenate(parts)
