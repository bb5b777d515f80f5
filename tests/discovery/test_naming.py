"""Names for clusters: found across a gap between pictures and texts, distinct, and read from a file."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.preprocessing import normalize

from clipkit.discovery.naming import propose_names, read_vocabulary
from clipkit.errors import UserError


def planted(clusters: int = 8, words: int = 40, width: int = 32) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Cluster k shows word k. Pictures lie around one place, texts around another, and one word lies near pictures."""
    rng = np.random.default_rng(0)
    meaning, images, texts = rng.normal(size=(words, width)), 3 * rng.normal(size=width), 3 * rng.normal(size=width)
    centres = normalize(images + meaning[:clusters] + 0.2 * rng.normal(size=(clusters, width)))
    word_embeds = texts + meaning
    word_embeds[-1] = texts + 0.5 * images
    return centres, [f"word {index}" for index in range(words)], normalize(word_embeds)


def first(names: list[list[tuple[str, float]]]) -> list[str]:
    return [row[0][0] for row in names]


def test_names_are_found_across_the_gap() -> None:
    centres, words, word_embeds = planted()
    assert first(propose_names(centres, words, word_embeds)) == words[:8]
    plain = propose_names(centres, words, word_embeds, centred=False)
    assert sum(row[0][0] == word or row[1][0] == word for row, word in zip(plain, words, strict=False)) < 8
    assert sum("word 39" in dict(row) for row in plain) > 4  # the word that lies near all pictures


def test_an_origin_stands_in_for_the_mean_of_centres() -> None:
    centres, words, word_embeds = planted()
    origin = centres.mean(0)
    given, found = (propose_names(centres, words, word_embeds, origin=place) for place in (origin, None))
    assert [[word for word, _ in row] for row in given] == [[word for word, _ in row] for row in found]
    alone = propose_names(centres[3:4], words, word_embeds, origin=origin)
    assert first(alone) == ["word 3"]


def test_similarities_are_cosines_after_both_means_are_taken_away() -> None:
    centres, words, word_embeds = planted()
    a, b = centres - centres.mean(0), word_embeds - word_embeds.mean(0)
    for row, centre in zip(propose_names(centres, words, word_embeds, top=40), a, strict=True):
        assert len(row) == 40
        for word, similarity in row:
            other = b[words.index(word)]
            expected = centre @ other / np.linalg.norm(centre) / np.linalg.norm(other)
            assert similarity == pytest.approx(expected, abs=1e-6)
        rest = [similarity for _, similarity in row[1:]]
        assert rest == sorted(rest, reverse=True)


def test_first_names_of_different_clusters_differ() -> None:
    """Both centres are nearest to "cat"; the one that loses less takes its second."""
    words, word_embeds = ["cat", "dog", "lorry"], np.eye(3)
    centres = np.array([[0.8, 0.1, 0.5], [0.8, 0.7, 0.0]])
    names = propose_names(centres, words, word_embeds, centred=False, top=2)
    assert first(names) == ["cat", "dog"]
    assert names[1][1][0] == "cat"  # still said, as the second


def test_one_cluster_or_more_clusters_than_words_have_names() -> None:
    words, word_embeds = ["cat", "dog"], np.eye(2)
    assert first(propose_names(np.array([[0.2, 0.9]]), words, word_embeds)) == ["dog"]
    centres = np.array([[0.9, 0.1], [0.1, 0.9], [0.0, 1.0]])
    assert first(propose_names(centres, words, word_embeds, centred=False)) == ["cat", "dog", "dog"]
    assert propose_names(np.empty((0, 2)), words, word_embeds) == []


@pytest.mark.parametrize("words", [[], ["cat"]])
def test_words_and_their_embeddings_have_to_match(words: list[str]) -> None:
    with pytest.raises(ValueError, match="an embedding each"):
        propose_names(np.ones((2, 3)), words, np.ones((2, 3)))


def test_the_emoji_words_are_lower_case_and_each_stands_once() -> None:
    words = read_vocabulary(None)
    assert len(words) == len(set(words)) > 800
    assert all(word == word.lower() == word.strip() != "" for word in words)
    assert {"camel", "food fruit"} <= set(words)


def test_a_vocabulary_file_loses_empty_lines_comments_and_repeats(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("\ufeff# animals\ncat\n\n  hot dog \ncat\n#dog\ncafé\n", encoding="utf-8")
    assert read_vocabulary(file) == ["cat", "hot dog", "café"]


@pytest.mark.parametrize("content", [b"", b"# nothing\n\n", b"caf\xe9\n", None])
def test_a_vocabulary_without_words_is_explained(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "words.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=r"words\.txt") as error:
        read_vocabulary(file)
    assert any(said in str(error.value) for said in ("holds no words", "UTF-8", "cannot be read"))
