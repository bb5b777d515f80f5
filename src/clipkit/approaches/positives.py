"""Which pictures and captions of a data set mean the same: they are each other's right answers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from clipkit.data.records import Records

__all__ = ["positive_groups"]


def positive_groups(records: Records, by: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which pictures and texts mean the same.

    Args:
        records: N pictures with U distinct texts.
        by: any of "group", "caption", "class"; pictures linked by one of them, directly or in a chain, are joined.

    Returns:
        [N] and [U] numbers: equal ones belong together. A text belongs to the pictures that it captions.
    """
    texts, text_of_caption = records.caption_texts
    count = len(records)
    row_of_caption = np.repeat(np.arange(count), np.diff(records.caption_offsets))
    links = []  # (node, node): pictures are 0 … N − 1, then texts or shared names
    if "group" in by:
        links.append((np.arange(count), records.groups))
    if "class" in by:
        labelled = records.labels >= 0
        links.append((np.flatnonzero(labelled), records.labels[labelled]))
    if "caption" in by:
        links.append((row_of_caption, text_of_caption))
    nodes, left, right = count, [], []
    for rows, names in links:
        left.append(rows)
        right.append(names + nodes)
        nodes += int(names.max(initial=-1)) + 1
    rows, columns = (np.concatenate(x) if x else np.empty(0, np.int64) for x in (left, right))
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(nodes, nodes))
    group = connected_components(graph, directed=False)[1][:count].astype(np.int64)
    text_group = np.full(len(texts), -1)
    text_group[text_of_caption[::-1]] = group[row_of_caption[::-1]]  # a text's first picture decides
    return group, text_group
