"""Hardware facts: peaks from data sheets, by the names that devices give themselves."""

from __future__ import annotations

import itertools

import pytest
import torch

from nanoscale.training import hardware
from nanoscale.training.hardware import PEAK_FLOPS, peak, peak_flops


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A40", 149.7e12),
        ("Tesla T4", 65e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("NVIDIA RTX 6000 Ada Generation", 364e12),
        ("NVIDIA RTX A6000", 155e12),
        ("AMD Instinct MI300X", 1307e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3080 Ti", None),
        ("NVIDIA GeForce RTX 4080 SUPER", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce GTX 1080", None),
        ("Quadro RTX 6000", None),
        ("Apple M3 Max", None),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", None),
        ("", None),
        ("L4-like", 121e12),
    ],
)
def test_a_peak_is_the_named_devices_or_unknown(name, expected):
    assert peak_flops(name) == expected


def test_every_device_of_the_table_is_found_by_its_own_name():
    assert {name: peak_flops(f"NVIDIA {name}") for name in PEAK_FLOPS} == PEAK_FLOPS


def test_a_slow_product_is_measured_three_times_and_no_more(monkeypatch):
    seconds = itertools.count()  # a clock on which everything takes a second
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: float(next(seconds)))
    assert peak(torch.device("cpu"), torch.float32) == 2 * 512**3
    assert next(seconds) < 12
