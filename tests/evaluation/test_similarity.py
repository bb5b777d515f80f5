"""The heat map of labelled pictures and class names shows cosines of pictures with their classes' sentences."""

import numpy as np
import pytest
from stand_ins import StandIn, data_of, painted, part_of

from clipkit.evaluation import Similarity
from clipkit.evaluation.similarity import class_similarity

NAMES = ("cat", "dog", "bus", "car")


def test_it_shows_a_picture_of_each_class_and_its_cosines() -> None:
    labels = [0, 0, 0, 2, 2, 2, 3, None, 3, 3]
    part = part_of(StandIn(lambda square: labels[int(square[0, 0, 0])], NAMES), data_of(painted(labels, NAMES)))
    axes = class_similarity(part).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["cat", "bus", "car"]  # no dog occurs
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), np.eye(3))
    axes = class_similarity(part, count=2).axes[0]
    assert len(axes.get_yticklabels()) == 2


def test_the_table_has_mean_cosines_by_class() -> None:
    answers = [0, 1, 1, 1]
    labels = [0, 0, 1, 1]
    part = part_of(StandIn(lambda square: answers[int(square[0, 0, 0])], NAMES), data_of(painted(labels, NAMES)))
    result = Similarity().run(part)
    table = result.tables["classes"].set_index("pictures of")
    assert table.loc["cat"].tolist() == pytest.approx([0.5, 0.5, 0, 0])
    assert table.loc["dog"].tolist() == pytest.approx([0, 1, 0, 0])
    assert result.metrics == {}
    assert not Similarity().fits(painted([None], NAMES))
