"""How much arithmetic a training step is, and how much a device could do: together the model FLOP utilisation.

Utilisation is useful operations a second over the device's peak (PaLM, arXiv 2204.02311, appendix B).
"""

import re
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["UsefulFlops", "peak_flops"]

# Dense bfloat16 (and float16) operations a second in 1e12, as the makers state them. The first that fits counts.
PEAK = {
    r"H100 PCIe": 756,
    r"H100 NVL|H200 NVL": 835,
    r"H100|H200|GH200": 989,
    r"B200": 2250,
    r"A100": 312,
    r"A30": 165,
    r"A40": 150,
    r"A10G": 70,
    r"A10": 125,
    r"L40S": 362,
    r"L40": 181,
    r"L4": 121,
    r"RTX A6000": 155,
    r"RTX 4090": 165,
    r"RTX 3090": 71,
}
CUT_DOWN = r"Laptop|Max-Q|MIG"  # parts of the named device
HALF = ("bf16-mixed", "bf16-true", "16-mixed", "16-true")


class UsefulFlops(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's base class has no types
    """Counts the operations of matrix products, convolutions and attention that run inside; two for a product and sum.

    What is computed a second time in the backward pass to save memory (`torch.utils.checkpoint`) is left out, and so is
    the second computation of the scores in fused attention. Causal attention counts whole, as is usual. Compiled code
    runs uncompiled inside, and then needs more memory.

    Attributes:
        total: operations up to now.
        backward: set it to true when the backward pass begins.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0.0
        self.backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = _formula(func._overloadpacket)
        again = self.backward and torch.is_grad_enabled()  # only what is computed once more builds a graph there
        if formula is not None and not again:
            fused_backward = re.search(r"attention.*_backward", str(func)) is not None
            share = 4 / 5 if fused_backward else 1.0  # one of its five products computes the scores again
            self.total += share * formula(*args, **(kwargs or {}), out_val=result)
        return result


def _formula(operation: Any) -> Any:
    """What counts an operation; None if it is no product. Some versions of torch do not know attention on a CPU."""
    found = flop_registry.get(operation)
    name = str(operation)
    if found is None and "_for_cpu" in name:
        on_gpu = getattr(torch.ops.aten, name.rpartition(".")[2].replace("_for_cpu", ""), None)
        found = flop_registry.get(on_gpu)
    return found


def peak_flops(device: str, precision: str) -> float | None:
    """Operations a second that a device can do at most; None if it, or its rate in this precision, is not known.

    Args:
        device: as `torch.cuda.get_device_name` says.
        precision: Lightning's name.
    """
    if precision not in HALF or re.search(CUT_DOWN, device):
        return None
    found = (peak for name, peak in PEAK.items() if re.search(rf"\b(?:{name})\b", device))
    return next((1e12 * peak for peak in found), None)
