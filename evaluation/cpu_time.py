"""Beside evaluation.cost: measures the CPU time of both models' answers, on this machine, in alternating rounds."""

import time
from collections.abc import Mapping, Sequence

from data.encode import encode_texts
from evaluation.cost import LEAST_ROUNDS, CpuRounds
from models.classifier import logits_rows
from models.load import LoadedModel, load_artifact
from models.registry import VersionConfig

ROLES = ("incumbent", "candidate")


def measure(uris: Mapping[str, str], *, texts: Sequence[str], num_rounds: int = LEAST_ROUNDS) -> CpuRounds:
    """CPU-seconds per thousand rows of the artifacts at `uris` (`incumbent`, `candidate`), texts to logits.

    Both are loaded into this process, on CPU, and answer all texts once to warm up; then in each round one after the
    other, who begins taking turns. All threads of the process are counted. Raises ValueError for other keys, no text or
    too few rounds.
    """
    if sorted(uris) != sorted(ROLES) or not texts or num_rounds < LEAST_ROUNDS:
        raise ValueError(
            f"CPU time of {sorted(uris)} on {len(texts)} texts in {num_rounds} rounds; give the URIs of "
            f"{' and '.join(ROLES)}, some texts, and {LEAST_ROUNDS} rounds or more"
        )
    models = {role: load_artifact(uris[role], device="cpu") for role in ROLES}
    for model in models.values():
        _cpu_s(model, texts)
    seconds: dict[str, list[float]] = {role: [] for role in ROLES}
    for number in range(num_rounds):
        for role in ROLES if number % 2 == 0 else ROLES[::-1]:
            seconds[role].append(1000 * _cpu_s(models[role], texts) / len(texts))
    return CpuRounds(incumbent=tuple(seconds["incumbent"]), candidate=tuple(seconds["candidate"]))


def _cpu_s(loaded: LoadedModel[VersionConfig], texts: Sequence[str]) -> float:
    begun = time.process_time()
    tokens = encode_texts(texts, tokenizer=loaded.tokenizer, max_length=loaded.max_length)
    logits_rows(loaded.model, tokens, pad_id=int(loaded.tokenizer.pad_token_id))
    return time.process_time() - begun
