"""Operations are counted as the textbook does, once each, also under gradient checkpointing."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from clipkit.models.text_transformer import TextTransformer
from clipkit.runs.flops import UsefulFlops, peak_flops


def counted(model: nn.Module, inputs: Tensor) -> float:
    """Of forward and backward."""
    with UsefulFlops() as counter:
        loss = model(inputs).square().mean()
        counter.backward = True
        loss.backward()
    return counter.total


class Stack(nn.Module):
    """Transformer blocks, checkpointed or not."""

    def __init__(self, *, checkpointed: bool, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        whole = TextTransformer(10, 8, width=width, layers=layers, heads=4, mlp=64)
        self.blocks, self.checkpointed = whole.blocks, checkpointed

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return x


def test_a_linear_layer_takes_three_products() -> None:
    inputs = torch.randn(5, 7, requires_grad=True)
    assert counted(nn.Linear(7, 3), inputs) == 3 * 2 * 5 * 7 * 3


def test_frozen_weights_take_no_product_for_their_gradient() -> None:
    frozen = nn.Linear(7, 3).requires_grad_(False)
    assert counted(nn.Sequential(frozen, nn.Linear(3, 2)), torch.randn(5, 7)) == 2 * 5 * (7 * 3 + 2 * 3 * 2)


def test_what_is_computed_twice_counts_once() -> None:
    inputs = torch.randn(3, 8, 32, requires_grad=True)
    plain, checkpointed = (counted(Stack(checkpointed=flag), inputs) for flag in (False, True))
    assert checkpointed == plain
    with FlopCounterMode(display=False) as everything:
        for end in ("", "_backward"):  # some versions of torch do not count attention on a CPU
            ours, theirs = (
                getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention{where}{end}")
                for where in ("_for_cpu", "")
            )
            everything.flop_registry.setdefault(ours, flop_registry[theirs])
        Stack(checkpointed=True)(inputs).square().mean().backward()
    assert plain < 0.8 * everything.get_total_flops()


def test_a_transformer_takes_what_the_formula_says() -> None:
    """Per token and layer 2 × weights forward, attention 4 × length × width; backward twice that (2204.02311, B)."""
    rows, length, width, mlp, layers = 3, 8, 32, 64, 2
    weights = layers * (4 * width**2 + 2 * width * mlp)
    expected = 3 * rows * length * (2 * weights + 4 * layers * length * width)
    found = counted(Stack(checkpointed=False), torch.randn(rows, length, width, requires_grad=True))
    assert found == pytest.approx(expected, rel=1e-6)


def test_attention_counts_its_backward_without_the_second_scores() -> None:
    q, k, v = (torch.randn(2, 4, 16, 8, requires_grad=True) for _ in range(3))
    with UsefulFlops() as counter:
        attended = scaled_dot_product_attention(q, k, v, is_causal=True)
        assert counter.total == 2 * (2 * 2 * 4 * 16 * 16 * 8)
        counter.backward = True
        attended.sum().backward()
    assert counter.total == pytest.approx(6 * (2 * 2 * 4 * 16 * 16 * 8))


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 4090", 165),
    ],
)
def test_peaks_of_known_devices(device: str, peak: float) -> None:
    assert peak_flops(device, "bf16-mixed") == peak * 1e12
    assert peak_flops(device, "32-true") is None


@pytest.mark.parametrize(
    "device", ["", "Quadro P400", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-80GB MIG 3g.40gb"]
)
def test_unknown_devices_and_parts_of_known_ones_have_no_peak(device: str) -> None:
    assert peak_flops(device, "bf16-mixed") is None
