"""Which language models can be divided among ranks."""

import math
from typing import Any


def rank_divisor(model: Any) -> int:
    """Return the number that the number of ranks must divide; 1 if a transformers model cannot be
    divided.

    Attention is divided by key-value heads. Only plans are accepted in which each rank has the keys
    and values of its own heads, because the cache of continuous batching expects that.
    """
    config = model.config.get_text_config()
    keys = [
        style
        for name, style in (model.tp_plan or {}).items()
        if name.endswith((".k_proj", ".v_proj"))
    ]
    if len(keys) < 2 or set(keys) != {"colwise"}:
        return 1
    num_heads = int(config.num_attention_heads)
    return math.gcd(num_heads, int(getattr(config, "num_key_value_heads", None) or num_heads))


def division_fault(divisor: int, *, num_ranks: int) -> str | None:
    """Return why a model with this `rank_divisor` cannot be divided among the ranks, or None."""
    if divisor % num_ranks == 0:
        return None
    if divisor == 1:
        return (
            f"the evaluation cannot divide this model among {num_ranks} GPUs, because of its type "
            "or its heads"
        )
    return (
        f"the evaluation cannot divide this model's heads among {num_ranks} GPUs, only among a "
        f"divisor of {divisor}"
    )
