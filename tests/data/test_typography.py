"""Words on pictures: legible, inside the picture, and the same for the same seed and picture."""

from collections import Counter

import numpy as np
import pytest
import torch

from clipkit.data.typography import FONTS, LOOKS, PLACES, Writing, writable, write, writings

NAMES = ("cat", "golden retriever", "2012 Mercedes-Benz S-Class Sedan with a long name", "Rindfleischetikettierung" * 3)


def grey(side: int) -> torch.Tensor:
    return torch.full((3, side, side), 128, dtype=torch.uint8)


@pytest.mark.parametrize("side", [32, 64, 112, 224])
@pytest.mark.parametrize("name", NAMES)
def test_a_text_of_any_length_is_seen_and_leaves_most_of_the_picture(side: int, name: str) -> None:
    square = grey(side)
    for way in writings(0, np.arange(12)):
        written = write(square, name, way)
        assert (written.dtype, written.shape) == (torch.uint8, square.shape)
        changed = (written != square).any(0)
        assert changed.float().mean() < 0.62  # a plate of half the height at most, and its border
        rows, columns = (changed.any(axis).nonzero().flatten() for axis in (1, 0))
        assert len(rows) >= 6  # letters of eight pixels
        assert (written == 0).any()  # black and white, ink and what is behind it
        assert (written == 255).any()
        assert columns[-1] - columns[0] >= len(rows) // 3
    assert (square == 128).all()


def test_a_short_word_never_touches_the_border() -> None:
    for place in PLACES:
        for look in LOOKS:
            for font in FONTS:
                changed = (write(grey(112), "cat", Writing(font, 0.24, place, look)) != 128).any(0)
                edge = torch.cat([changed[0], changed[-1], changed[:, 0], changed[:, -1]])
                assert not edge.any(), (place, look, font)


@pytest.mark.parametrize("place", PLACES)
def test_a_place_is_where_it_says(place: str) -> None:
    changed = (write(grey(112), "cat", Writing("Sans", 0.15, place, "black on a white plate")) != 128).any(0)
    rows, columns = (changed.any(axis).nonzero().float().mean().item() / 112 for axis in (1, 0))
    row, _, column = place.partition(" ")
    assert {"top": rows < 0.3, "middle": 0.4 < rows < 0.6, "bottom": rows > 0.7}[row]
    assert {"left": columns < 0.35, "": 0.4 < columns < 0.6, "right": columns > 0.65}[column]


def test_larger_letters_are_larger_until_they_no_longer_fit() -> None:
    def height(size: float, text: str) -> int:
        changed = (write(grey(224), text, Writing("Sans", size, "middle", "black with a white outline")) != 128).any(0)
        return int(changed.any(1).sum())

    assert height(0.12, "cat") < height(0.18, "cat") < height(0.24, "cat")
    assert height(0.24, NAMES[2]) <= 112 + 8


def test_the_way_of_writing_belongs_to_seed_and_picture_not_to_the_order() -> None:
    ids = np.arange(400)
    ways = writings(3, ids)
    assert writings(3, ids[::-1].copy()) == ways[::-1]
    assert [writings(3, ids[[i]])[0] for i in (7, 300)] == [ways[7], ways[300]]
    assert writings(4, ids) != ways
    for field, choices in (("font", FONTS), ("place", PLACES), ("look", LOOKS)):
        counts = Counter(getattr(way, field) for way in ways)
        assert counts.keys() == choices.keys()
        assert min(counts.values()) > 0.5 * len(ids) / len(choices)
    sizes = [way.size for way in ways]
    assert 0.12 <= min(sizes) < 0.13
    assert 0.23 < max(sizes) <= 0.24


def test_only_names_whose_letters_every_font_has_can_be_written() -> None:
    assert writable(["cat", "naïve – N° 5", "日本", "  ", "", "قطة"]).tolist() == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]
