"""Inside a batch: which rows go through the model together, so that little of a pass is padding."""

import numpy as np

# What a forward pass costs before its first token, in tokens of work: about 5 ms against 0.13 ms a token for a
# six-layer encoder on one core. Only the order of magnitude matters.
PASS_TOKENS = 50


def cut_by_length(lengths: np.ndarray, *, max_rows: int) -> list[np.ndarray]:
    """Row indices in passes of like length, each row once, at most `max_rows` a pass, longest first.

    The cuts minimise sum(PASS_TOKENS + rows * longest) over the passes of the sorted rows: dynamic programming.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order].astype(np.int64)
    num_rows = len(ordered)
    cost = np.zeros(num_rows + 1, dtype=np.int64)
    start = np.zeros(num_rows + 1, dtype=np.int64)
    for end in range(1, num_rows + 1):
        first = max(0, end - max_rows)
        costs = cost[first:end] + PASS_TOKENS + np.arange(end - first, 0, -1) * ordered[first:end]
        best = int(costs.argmin())
        cost[end], start[end] = costs[best], first + best
    passes: list[np.ndarray] = []
    end = num_rows
    while end > 0:
        passes.append(order[start[end] : end])
        end = int(start[end])
    return passes[::-1]
