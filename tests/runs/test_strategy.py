"""What Lightning is told where several processes train together."""

import pytest
import torch
from torch import nn

from clipkit.models.image import TimmImageTower
from clipkit.runs.strategy import synchronise_batchnorm


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_byobnet"])
@pytest.mark.parametrize("training", [True, False])
def test_synchronised_batchnorm_changes_nothing_for_one_process(name: str, training: bool) -> None:
    """Activations that a layer holds stay, also in the two halves of a tower, and after training is over."""
    tower, other = (TimmImageTower(name, image_size=64).train(training) for _ in range(2))
    other.load_state_dict(tower.state_dict())
    layers = [m for m in other.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    synchronise_batchnorm(other)
    assert layers
    assert all(isinstance(layer, nn.SyncBatchNorm) for layer in layers)  # the very objects
    pixels = torch.rand(4, 3, 64, 64)
    for groups in (0, 1):
        expected = tower.tail(tower.trunk(pixels, groups=groups), groups=groups)
        found = other.tail(other.trunk(pixels, groups=groups), groups=groups)
        assert torch.equal(found, expected)
    before, after = tower.state_dict(), other.state_dict()
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
