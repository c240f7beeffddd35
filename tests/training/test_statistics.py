"""What statistics and throughput are of, against arithmetic by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config

from nanoscale.model.gpt import GPT
from nanoscale.spec.counting import flops_per_iter
from nanoscale.training.statistics import activation_statistics
from nanoscale.training.telemetry import Meter


def test_attention_logits_count_where_they_are_not_masked():
    torch.manual_seed(0)
    config = tiny_config(n_layer=1, n_head=2, init_std=0.5)
    model = GPT(config)
    idx = torch.randint(config.vocab_size, (3, 8))
    found = activation_statistics(model, idx)

    (block,) = model.transformer.h
    with torch.no_grad():
        x = model.transformer.wte.weight[idx] + model.transformer.wpe.weight
        normal = F.layer_norm(x, x.shape[-1:], block.ln_1.weight)
        q, k = (normal @ layer.weight.T for layer in (block.attn.c_q, block.attn.c_k))
        heads = [(q[..., part] @ k[..., part].mT) / 8**0.5 for part in (slice(8), slice(8, 16))]
    seen = torch.stack(heads)[..., torch.ones(8, 8).tril().bool()]
    assert found["attention_logit_rms"] == pytest.approx(seen.square().mean().sqrt().item(), 1e-5)
    assert found["max_attention_logit"] == pytest.approx(seen.max().item(), 1e-5)


def test_the_first_update_counts_in_its_row_alone():
    """It pays for compilation and cold caches, which a run's throughput is not about."""
    config = tiny_config()
    meter = Meter(config, peak=1e12)
    meter.add(100.0)
    assert meter.total().mfu is None
    assert meter.row().time_ms == pytest.approx(100_000)
    for seconds in (1.0, 3.0):
        meter.add(seconds)
    for timing in (meter.total(), meter.row()):
        assert timing.time_ms == pytest.approx(2000)
        assert timing.mfu == pytest.approx(flops_per_iter(config) / 2 / 1e12)
        assert timing.tokens_per_second == pytest.approx(config.tokens_per_iter / 2)
