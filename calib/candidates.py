"""Which of the images that a generator offers are kept."""

import numpy as np
from numpy.typing import NDArray


def nearest(labels: NDArray[np.int64], distances: NDArray[np.float32], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Candidates to keep, as many as labels are wanted.

    Those in the farther half are out. Of the others each class has as many as are wanted of it, the nearest first;
    where it has too few, the nearest of other classes stand in.

    Args:
        labels: of the candidates, (M,).
        distances: of the candidates, (M,).
        wanted: labels (N,), N <= M.

    Returns:
        indices of candidates, ascending, (N,).
    """
    near = np.argsort(distances, kind="stable")[: max(len(wanted), len(labels) // 2)]
    of = labels[near]
    by_label = np.argsort(of, kind="stable")
    turn = np.empty(len(near), np.int64)
    # A candidate's place among those of its label.
    turn[by_label] = np.arange(len(near)) - np.searchsorted(of[by_label], of[by_label])
    even = turn < (wanted[:, None] == of).sum(0)
    return np.sort(np.concatenate([near[even], near[~even]])[: len(wanted)])
