"""Baselines for chat tasks: the pretrained model without and with examples in the prompt."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tailorbird.config.evaluation import EvaluationConfig
from tailorbird.data.rows import Rows
from tailorbird.data.splits import subsample
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.inference.chat_answers import answer_rows, conversations
from tailorbird.evaluation.statistics.text_metrics import per_row
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.loading import default_device, inference_dtype, load_causal
from tailorbird.registry.versions import Prompting, VersionConfig, write_artifact_config
from tailorbird.storage.node_cache import local_copy


def fit_prompt_baselines(
    base_model: str, *, train: Rows, validation: Rows, prompting: Prompting, config: EvaluationConfig, seed: int
) -> tuple[tuple[Baseline, Prompting], ...]:
    """Score zero-shot and few-shot on validation; return each baseline, without a URI, with its prompting.

    Few-shot tries `config.prompt_draws` random sets of `config.prompt_shots` training examples and keeps the best set.
    """
    base = local_copy(base_model)
    tokenizer = load_tokenizer(base)
    model = ChatModel(load_causal(base, dtype=inference_dtype()).to(default_device()).eval())

    def score(prompting: Prompting) -> float:
        answers = answer_rows(model, validation, tokenizer=tokenizer, prompting=prompting)
        outputs = [answer.text for answer in answers]
        return float(np.mean(per_row(config.metric, outputs=outputs, references=validation.labels)))

    samples = [subsample(len(train), size=config.prompt_shots, seed=seed + draw) for draw in range(config.prompt_draws)]
    candidates = [replace_shots(prompting, train.take(sample)) for sample in samples]
    scores = [score(candidate) for candidate in candidates]
    best = int(np.argmax(scores))
    note = f"{config.prompt_shots} examples in the prompt, best of {config.prompt_draws} random sets"
    return (
        (Baseline("zero_shot", None, score(prompting), True, "no examples in the prompt"), prompting),
        (Baseline("few_shot", None, scores[best], True, note), candidates[best]),
    )


def store_prompt_baselines(
    uri: str, baselines: Sequence[tuple[Baseline, Prompting]], *, config: VersionConfig
) -> tuple[Baseline, ...]:
    """Write each baseline as a loadable artifact to `uri`/<kind>; return the baselines with their URIs.

    `config` supplies all fields except kind and prompting.
    """
    for baseline, prompting in baselines:
        named = config.model_copy(update={"kind": baseline.kind, "prompting": prompting})
        write_artifact_config(f"{uri}/{baseline.kind}", named)
    return tuple(replace(baseline, uri=f"{uri}/{baseline.kind}") for baseline, _ in baselines)


def replace_shots(prompting: Prompting, rows: Rows) -> Prompting:
    """Return the prompting with the rows as examples, without their system messages."""
    shots: list[tuple[str, str]] = []
    for turns, answer in zip(conversations(rows), rows.labels, strict=True):
        shots += [turn for turn in turns if turn[0] != "system"]
        shots.append(("assistant", answer))
    return prompting.model_copy(update={"shots": tuple(shots)})
