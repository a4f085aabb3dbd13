"""Beside evaluation.cost: measures the CPU time of both models' answers, on this machine, in alternating rounds."""

import time
from collections.abc import Callable, Mapping

from tailorbird.data.rows import Rows
from tailorbird.data.tokenize import encode_texts
from tailorbird.evaluation.gates.cost import LEAST_ROUNDS, CpuRounds
from tailorbird.evaluation.inference.chat_answers import answer_rows
from tailorbird.models.classifier import logits_rows
from tailorbird.models.loading import load_artifact, load_chat
from tailorbird.storage import read_json

ROLES = ("incumbent", "candidate")


def measure(uris: Mapping[str, str], *, rows: Rows, num_rounds: int = LEAST_ROUNDS) -> CpuRounds:
    """CPU-seconds per thousand rows of the artifacts at `uris` (`incumbent`, `candidate`), from texts to answers.

    Both are loaded into this process, on CPU, and answer all rows once to warm up; then in each round one after the
    other, who begins taking turns. All threads of the process are counted. Raises ValueError for other keys, no row or
    too few rounds.
    """
    if sorted(uris) != sorted(ROLES) or not len(rows) or num_rounds < LEAST_ROUNDS:
        raise ValueError(
            f"CPU time of {sorted(uris)} on {len(rows)} texts in {num_rounds} rounds; give the URIs of "
            f"{' and '.join(ROLES)}, some texts, and {LEAST_ROUNDS} rounds or more"
        )
    models = {role: _answerer(uris[role]) for role in ROLES}
    for answer in models.values():
        _cpu_s(answer, rows)
    seconds: dict[str, list[float]] = {role: [] for role in ROLES}
    for number in range(num_rounds):
        for role in ROLES if number % 2 == 0 else ROLES[::-1]:
            seconds[role].append(1000 * _cpu_s(models[role], rows) / len(rows))
    return CpuRounds(incumbent=tuple(seconds["incumbent"]), candidate=tuple(seconds["candidate"]))


def _cpu_s(answer: Callable[[Rows], object], rows: Rows) -> float:
    begun = time.process_time()
    answer(rows)
    return time.process_time() - begun


def _answerer(uri: str) -> Callable[[Rows], object]:
    """The artifact loaded, as a function that answers rows."""
    if read_json(f"{uri}/config.json").get("prompting") is not None:
        chat = load_chat(uri, device="cpu")
        return lambda rows: answer_rows(chat.model, rows, tokenizer=chat.tokenizer, prompting=chat.prompting)
    loaded = load_artifact(uri, device="cpu")

    def classify(rows: Rows) -> object:
        tokens = encode_texts(rows.texts, tokenizer=loaded.tokenizer, max_length=loaded.max_length)
        return logits_rows(loaded.model, tokens, pad_id=int(loaded.tokenizer.pad_token_id))

    return classify
