"""Packed rows and the head's loss, each against the plain way of computing the same."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dcr_ray.train import head_loss
from dcr_ray.train.head_loss import summed_cross_entropy
from dcr_ray.train.loading import load_trunk
from dcr_ray.train.packing import pack, packed_attention, packed_states, shared_prefix
from tests.train_models import tiny_model

CPU = torch.device("cpu")


def rows(lengths: list[int], prefix: int = 0) -> list[list[int]]:
    chance = torch.Generator().manual_seed(len(lengths))
    start = torch.randint(1, 200, (prefix,), generator=chance).tolist()
    return [start + torch.randint(1, 200, (length,), generator=chance).tolist() for length in lengths]


def test_every_token_is_packed_once_and_the_shared_beginning_once_for_all():
    packed = pack(rows([5, 9, 2], prefix=10), 10, CPU)
    assert packed.input_ids.shape == (1, 10 + 16)
    assert packed.lengths == (15, 19, 12)
    assert packed.position_ids[0, :10].tolist() == list(range(10))
    for start, own, row in zip(packed.starts, packed.own, rows([5, 9, 2], prefix=10)):
        assert packed.input_ids[0, start : start + own].tolist() == row[10:]
        assert packed.position_ids[0, start : start + own].tolist() == list(range(10, 10 + own))


def test_rows_of_very_different_lengths_are_padded_apart_from_each_other():
    packed = pack(rows([300, 290, *[6] * 40]), 0, CPU)
    assert [(group.rows, group.longest) for group in packed.groups] == [(2, 300), (40, 6)]
    padded = sum(group.rows * group.longest for group in packed.groups)
    assert padded < 1.1 * packed.input_ids.numel()


@pytest.mark.parametrize("prefix", [0, 12])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_packed_row_has_the_states_and_gradients_that_it_has_alone(prefix, checkpointing, tmp_path):
    folder = tiny_model(tmp_path, family="qwen3", layers=3)
    lengths = [40, 3, 17, 17, 1, 90, 4]
    batch = rows(lengths, prefix)
    weights = torch.randn(sum(lengths), 64, generator=torch.Generator().manual_seed(0))
    trunk = load_trunk(folder, 3, torch.float32)
    if checkpointing:
        trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        trunk.train()
    packed = pack(batch, prefix, CPU)
    states = packed_states(trunk, packed)
    own = torch.cat([states[start : start + own] for start, own in zip(packed.starts, packed.own)])
    (own * weights).sum().backward()
    together = {name: p.grad.clone() for name, p in trunk.named_parameters() if p.requires_grad}
    trunk.zero_grad()
    alone = torch.cat([packed_states(trunk, pack([row], 0, CPU))[prefix:] for row in batch])
    (alone * weights).sum().backward()
    torch.testing.assert_close(own, alone, rtol=1e-4, atol=5e-5)
    for name, p in trunk.named_parameters():
        if p.requires_grad:
            scale = max(p.grad.abs().max().item(), 1e-3)
            torch.testing.assert_close(together[name], p.grad, rtol=1e-3, atol=1e-5 * scale)


def attended(prefix: int, lengths: list[int], window: int | None, device: torch.device) -> list[torch.Tensor]:
    """Packed attention and the gradients of its inputs, 4 heads on 2 of keys, and the same by row and in fp32."""
    packed = pack(rows(lengths, prefix), prefix, device)
    tokens, chance = packed.input_ids.numel(), torch.Generator().manual_seed(0)
    plain = [torch.randn(tokens, heads, 16, generator=chance) for heads in (4, 2, 2)]
    weights = torch.randn(tokens, 4, 16, generator=chance)
    inputs = [each.to(device, torch.bfloat16).requires_grad_() for each in plain]
    heads_first = [each.transpose(0, 1)[None] for each in inputs]
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True, training=True)
    output = packed_attention(module, *heads_first, None, packed=packed, scaling=0.25, sliding_window=window)[0][0]
    (output.float() * weights.to(device)).sum().backward()
    found = [output.detach().float().cpu(), *(each.grad.float().cpu() for each in inputs)]

    query, key, value = (each.bfloat16().float().requires_grad_() for each in plain)
    expected = []
    for start, own in [(0, prefix), *sorted(zip(packed.starts, packed.own))]:
        seen = torch.cat([torch.arange(prefix if start else 0), torch.arange(start, start + own)])
        keys, values = (each[seen].repeat_interleave(2, 1) for each in (key, value))
        logits = torch.einsum("qhd,khd->hqk", query[start : start + own], keys) / 4
        far = torch.arange(len(seen) - own, len(seen))[:, None] - torch.arange(len(seen))[None]
        hidden = (far < 0) | (far >= (window or len(seen)))
        expected.append(torch.einsum("hqk,khd->qhd", logits.masked_fill(hidden, -torch.inf).softmax(-1), values))
    (torch.cat(expected) * weights).sum().backward()
    return found + [torch.cat(expected).detach(), query.grad, key.grad, value.grad]


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
@pytest.mark.parametrize("prefix", [0, 12])
@pytest.mark.parametrize("window", [None, 10])
def test_packed_attention_is_that_of_each_row_behind_the_shared_beginning(device, prefix, window):
    found = attended(prefix, [40, 3, 17, 17, 1, 90, 4], window, torch.device(device))
    for ours, exact in zip(found[:4], found[4:], strict=True):
        torch.testing.assert_close(ours, exact, rtol=3e-2, atol=3e-2 * exact.abs().max().item())


def test_a_prefix_is_shared_only_where_it_pays_and_leaves_every_row_a_token():
    start = list(range(20))
    assert shared_prefix([[*start, 1], [*start, 2]], 100) == 20
    assert shared_prefix([[*start, 1], [*start, 2]], 12) == 12
    assert shared_prefix([start, [*start, 2]], 100) == 19
    assert shared_prefix([[*start[:5], 1], [*start[:5], 2]], 100) == 0
    assert shared_prefix([[*start, 1]], 100) == 0


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_the_heads_loss_and_gradients_are_those_of_cross_entropy(chunk_rows, bias, cap, monkeypatch):
    monkeypatch.setitem(head_loss.HEAD_BUFFER_BYTES, "cpu", chunk_rows * 50 * 4)
    torch.manual_seed(0)
    head = nn.Linear(16, 50, bias=bias)
    states = torch.randn(11, 16, requires_grad=True)
    targets = torch.randint(0, 50, (11,))
    (3 * summed_cross_entropy(states, head, targets, cap)).backward()
    found = [states.grad.clone(), *(p.grad.clone() for p in head.parameters())]
    states.grad = None
    head.zero_grad()
    logits = head(states)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    loss = cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(summed_cross_entropy(states, head, targets, cap), loss)
    (3 * loss).backward()
    for ours, expected in zip(found, [states.grad, *(p.grad for p in head.parameters())]):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_a_frozen_head_gets_no_gradient_and_no_target_costs_nothing():
    head = nn.Linear(8, 20, bias=False).requires_grad_(False)
    states = torch.randn(4, 8, requires_grad=True)
    summed_cross_entropy(states, head, torch.tensor([1, 2, 3, 4])).backward()
    assert head.weight.grad is None and states.grad.abs().sum() > 0
    none = summed_cross_entropy(states[:0], head, torch.tensor([], dtype=torch.long))
    assert none.item() == 0
    none.backward()


def test_bf16_losses_stay_near_fp32():
    torch.manual_seed(0)
    head, states = nn.Linear(32, 500, bias=False), torch.randn(20, 32)
    targets = torch.randint(0, 500, (20,))
    exact = summed_cross_entropy(states, head, targets).item()
    half = nn.Linear(32, 500, bias=False, dtype=torch.bfloat16)
    half.weight.data.copy_(head.weight)
    rounded = states.bfloat16().requires_grad_()
    loss = summed_cross_entropy(rounded, half, targets)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact, rel=1e-2)
    loss.backward()
    assert rounded.grad.dtype == half.weight.grad.dtype == torch.bfloat16
