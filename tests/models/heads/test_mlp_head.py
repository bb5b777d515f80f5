"""The two-layer head, written out in float64."""

import torch
from torch.nn.functional import normalize

from clipkit.models.heads.mlp import MLPHead


def test_from_random_it_is_the_two_layers_alone() -> None:
    torch.manual_seed(0)
    head = MLPHead(("a", "b", "c"), 8).double()
    x = normalize(torch.randn(5, 8, dtype=torch.float64), dim=1)
    hidden = (8**0.5 * x @ head.hidden.weight.T + head.hidden.bias).clamp(min=0)
    torch.testing.assert_close(head(x), hidden @ head.output.weight.T + head.output.bias)
    assert head.hidden.out_features == 4
    assert sum(p.numel() for p in head.parameters()) == 8 * 4 + 4 + 4 * 3 + 3


def test_from_text_the_layers_are_added_to_the_zero_shot_logits() -> None:
    torch.manual_seed(1)
    head = MLPHead(("a", "b", "c"), 8).double()
    alone = MLPHead(("a", "b", "c"), 8).double()
    text = normalize(torch.randn(3, 8, dtype=torch.float64), dim=1)
    head.start_from_text(text, logit_scale=25.0)
    for layer in ("hidden", "output"):
        getattr(head, layer).load_state_dict(getattr(alone, layer).state_dict())
    x = normalize(torch.randn(5, 8, dtype=torch.float64), dim=1)
    torch.testing.assert_close(head(x), 25 * x @ text.T + alone(x))


def test_an_embedding_of_one_number_still_has_a_hidden_layer() -> None:
    assert MLPHead(("a", "b"), 1)(torch.ones(3, 1)).shape == (3, 2)
