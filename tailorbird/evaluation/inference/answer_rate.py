"""Measure how many answers per second a pretrained chat model generates, to estimate how long a run takes."""

import time

from tailorbird.data.rows import Rows
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.evaluation.inference.chat_answers import answer_rows
from tailorbird.models.loading import load_pretrained_chat
from tailorbird.registry.versions import Prompting
from tailorbird.storage.node_cache import local_copy

NUM_ANSWERS = 16  # rows that are answered in one batch; fewer underestimate the rate of larger batches
NUM_TOKENS = 16  # maximum tokens of an answer


def measure_answers(base_model: str, *, rows: Rows, prompting: Prompting) -> float:
    """Return the answers per second if every answer has `prompting.max_new_tokens` tokens, from shorter ones."""
    base = local_copy(base_model)
    model = load_pretrained_chat(base)
    num_tokens = min(NUM_TOKENS, prompting.max_new_tokens)
    short = prompting.model_copy(update={"max_new_tokens": num_tokens})
    tokenizer = load_tokenizer(base)
    warm_up = prompting.model_copy(update={"max_new_tokens": 1})
    answer_rows(model, rows, tokenizer=tokenizer, prompting=warm_up)
    started = time.perf_counter()
    answer_rows(model, rows, tokenizer=tokenizer, prompting=short)
    seconds = time.perf_counter() - started
    return len(rows) * num_tokens / (seconds * prompting.max_new_tokens)
