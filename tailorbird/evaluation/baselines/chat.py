"""The ladder of a chat task: what the pretrained model answers untouched, plainly and with examples in its prompt."""

from dataclasses import dataclass

import numpy as np

from tailorbird.data.rows import Rows
from tailorbird.data.splits import subsample
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.evaluation.baselines.classification import Rung
from tailorbird.evaluation.inference.chat_answers import answer_rows, conversations
from tailorbird.evaluation.statistics.text_metrics import per_row
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.loading import default_device, inference_dtype, load_causal
from tailorbird.registry.versions import Prompting
from tailorbird.storage.node_cache import local_copy


@dataclass(frozen=True)
class Prompted:
    """A rung, and how the model was asked for it."""

    rung: Rung
    prompting: Prompting


def climb_chat(
    base_model: str, *, train: Rows, validation: Rows, prompting: Prompting, examples: dict[str, int], metric: str
) -> list[Prompted]:
    """Zero-shot, and few-shot with the set of training examples that scores best on the validation rows.

    `examples` holds `shots` a set, the `draws` of sets tried, and a `seed`.
    """
    base = local_copy(base_model)
    tokenizer = load_tokenizer(base)
    model = ChatModel(load_causal(base, dtype=inference_dtype()).to(default_device()).eval())

    def scored(asked: Prompting) -> float:
        answers = answer_rows(model, validation, tokenizer=tokenizer, prompting=asked)
        outputs = [answer.text for answer in answers]
        return float(np.mean(per_row(metric, outputs=outputs, references=validation.labels)))

    draws = [
        replace_shots(
            prompting, train.take(subsample(len(train), size=examples["shots"], seed=examples["seed"] + draw))
        )
        for draw in range(examples["draws"])
    ]
    scores = [scored(asked) for asked in draws]
    best = int(np.argmax(scores))
    note = f"{examples['shots']} examples in the prompt, the best of {len(draws)} sets"
    return [
        Prompted(Rung("zero_shot", scored(prompting), True, "the prompt alone"), prompting),
        Prompted(Rung("few_shot", scores[best], True, note), draws[best]),
    ]


def replace_shots(prompting: Prompting, rows: Rows) -> Prompting:
    """Asked with these rows' conversations and answers before each conversation, system messages left out."""
    shots: list[tuple[str, str]] = []
    for turns, answer in zip(conversations(rows), rows.labels, strict=True):
        shots += [turn for turn in turns if turn[0] != "system"]
        shots.append(("assistant", answer))
    return prompting.model_copy(update={"shots": tuple(shots)})
