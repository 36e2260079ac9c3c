"""The best one-to-one matching of rows and columns."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def best_matching(gains: Tensor) -> Tensor:
    """Match every row to a column of its own so that the sum of gains is largest.

    Shortest augmenting paths; time O(n²m), memory O(m). For some thousand rows, not more.

    Args:
        gains: Finite, (n, m) with n ≤ m, on the CPU.

    Returns:
        The column of each row, (n,), int64.

    Source:
        Crouse, On implementing 2D rectangular assignment algorithms (2016), after Jonker & Volgenant (1987).
    """
    costs = -gains.double().numpy()
    rows, columns = costs.shape
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    row_of = np.full(columns, -1)
    column_of = np.full(rows, -1)
    for start in range(rows):
        shortest, before = np.full(columns, np.inf), np.full(columns, -1)
        seen_rows, seen = [], np.zeros(columns, dtype=bool)
        row, length, end = start, 0.0, -1
        while end < 0:
            seen_rows.append(row)
            through = length + costs[row] - row_price[row] - column_price
            better = ~seen & (through < shortest)
            shortest[better], before[better] = through[better], row
            nearest = int(np.where(seen, np.inf, shortest).argmin())
            length = float(shortest[nearest])
            seen[nearest] = True
            end = nearest if row_of[nearest] < 0 else -1
            row = int(row_of[nearest])
        row_price[start] += length
        others = np.array(seen_rows[1:], dtype=int)
        row_price[others] += length - shortest[column_of[others]]
        column_price[seen] -= length - shortest[seen]
        while True:
            row = int(before[end])
            row_of[end] = row
            column_of[row], end = end, int(column_of[row])
            if row == start:
                break
    return torch.from_numpy(column_of).long()
