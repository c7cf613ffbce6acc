"""Which inputs of a matrix can go at the least cost, when those that stay make up for them.

For inputs x with moments H = sum of ``x x^T`` and a matrix W [K, N], removing the entries P and adjusting the
rows that stay costs ``tr(W_P^T ((H^-1)_PP)^-1 W_P)`` in the squared output. That is the cost of Optimal Brain
Surgeon (Hassibi and Stork 1992) for groups of entries, as Kurtic et al. 2023, ZipLM (2302.04089) use it.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

_ROUNDS: Final = 24
"""In how many rounds units are removed. Between rounds the costs of those that are left are computed anew:
two channels that say the same are both cheap only until one of them is gone."""
DAMPING: Final = 1e-3
"""Added to the diagonal of H, of its mean: channels that calibration hardly saw must not fit its noise."""


@dataclass(frozen=True, eq=False)
class Removal:
    """What was removed, in this order, and what it cost."""

    order: tuple[int, ...]
    """Units."""
    costs: tuple[float, ...]
    """float64: squared error of the output after each of them, summed over what H was summed over."""
    worth: float
    """The same for all that there is: the power of the whole output."""


def damped(moments: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """H as float64 [K, K], with ``damping`` times its mean power added to the diagonal."""
    wide = moments.astype(np.float64)
    power = float(np.diagonal(wide).mean())
    wide[np.diag_indices_from(wide)] += damping * power if power > 0 else 1.0
    return wide


def cheapest_removal(
    moments: np.ndarray, matrix: np.ndarray, labels: np.ndarray, count: int, classes: int = 1
) -> Removal:
    """The ``count`` units that a greedy search removes, cheapest first.

    ``moments`` [K, K], ``matrix`` [K, N], ``labels`` int64 [K]: the unit of each input, -1 for none. Of each
    of ``classes`` runs of neighbouring units equally many go, one of each at a time, up to ``count``
    in all.
    """
    inverse, rows = np.linalg.inv(damped(moments)), matrix.astype(np.float64)
    left, units = labels.copy(), int(labels.max()) + 1
    alive = np.ones(units, dtype=bool)
    order: list[int] = []
    costs: list[float] = []
    total, step = 0.0, max(1, count // classes // _ROUNDS)
    power = float(np.einsum("kn,kn->", rows, moments @ rows))
    while len(order) + classes <= count:
        worth = np.where(alive, _costs(inverse, rows, left, units), np.inf).reshape(classes, -1)
        many = min(step, (count - len(order)) // classes)
        chosen = np.argsort(worth, axis=1, kind="stable")[:, :many]
        gone = (chosen + np.arange(classes)[:, None] * (units // classes)).T.reshape(-1)
        out = np.isin(left, gone)
        gain = np.linalg.solve(inverse[np.ix_(out, out)], np.hstack([inverse[out], rows[out]]))
        spent = float(np.einsum("kn,kn->", rows[out], gain[:, len(left) :]))
        across = inverse[np.ix_(~out, out)]
        rows = rows[~out] - across @ gain[:, len(left) :]
        inverse = inverse[np.ix_(~out, ~out)] - across @ gain[:, : len(left)][:, ~out]
        left = left[~out]
        alive[gone] = False
        share = worth.reshape(-1)[gone]
        parts = np.cumsum(share) / max(float(share.sum()), np.finfo(float).tiny)
        order += [int(unit) for unit in gone]
        costs += [total + spent * float(part) for part in parts]
        total += spent
    return Removal(tuple(order), tuple(costs), power)


def refit(moments: np.ndarray, matrix: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """float32 [len(kept), N]: the matrix that answers ``x[kept]`` most nearly as ``matrix`` answers x.

    Least squares over what ``moments`` were summed over, drawn towards the rows as they were:
    argmin ||X_kept W' - X W||^2 + damping ||W' - W_kept||^2.
    """
    wide = matrix.astype(np.float64)
    plain = moments.astype(np.float64)
    stays = damped(moments)[np.ix_(kept, kept)]
    pull = stays - plain[np.ix_(kept, kept)]  # the diagonal that damping added
    fitted = np.linalg.solve(stays, plain[kept] @ wide + pull @ wide[kept])
    return fitted.astype(np.float32)


def _costs(inverse: np.ndarray, rows: np.ndarray, labels: np.ndarray, units: int) -> np.ndarray:
    """float64 [units]: what each unit would cost if it went alone, and next."""
    if len(np.unique(labels)) == len(labels):
        found = np.full(units, np.inf)
        mine = labels >= 0
        found[labels[mine]] = (np.square(rows).sum(axis=1) / np.diagonal(inverse))[mine]
        return found
    costs = np.full(units, np.inf)
    for unit in np.unique(labels[labels >= 0]):
        at = labels == unit
        costs[unit] = float(
            np.einsum("kn,kn->", rows[at], np.linalg.solve(inverse[np.ix_(at, at)], rows[at]))
        )
    return costs
