"""The prompts that are tried on validation: without examples, with fixed examples and with
retrieved examples."""

from dataclasses import dataclass
from itertools import chain

from tailorbird.config.evaluation import RETRIEVED_EXAMPLES, EvaluationConfig
from tailorbird.data.chat_template import examples_of
from tailorbird.data.rows import Rows
from tailorbird.data.splits import subsample
from tailorbird.registry.versions import Prompting, Retrieval


@dataclass(frozen=True)
class TriedPrompt:
    """A prompting of a baseline."""

    kind: str  # `zero_shot`, `few_shot` or `retrieved`
    prompting: Prompting
    name: str  # of this setting in the progress
    note: str  # description for reports


def tried_prompts(
    prompting: Prompting,
    *,
    retrieval: Retrieval,
    examples: Rows,
    num_indexed: int,
    config: EvaluationConfig,
    seed: int,
) -> tuple[list[TriedPrompt], ...]:
    """Return the settings of `zero_shot`, `few_shot` and `retrieved`, from a prompting without
    examples.

    `few_shot` has `config.prompt_draws` random sets of `config.prompt_shots` examples, and
    `retrieved` the numbers of nearest training rows in `RETRIEVED_EXAMPLES`, of which
    `num_indexed` are in the index.
    """
    random_sets = []
    for draw in range(config.prompt_draws):
        sample = examples.take(subsample(len(examples), size=config.prompt_shots, seed=seed + draw))
        shots = tuple(chain.from_iterable(examples_of(sample)))
        random_sets.append(
            TriedPrompt(
                "few_shot",
                prompting.model_copy(update={"shots": shots}),
                name=f"few_shot, set {draw + 1} of {config.prompt_draws}",
                note=f"{config.prompt_shots} examples in the prompt, best of "
                f"{config.prompt_draws} random sets",
            )
        )

    numbers = sorted({min(number, num_indexed) for number in RETRIEVED_EXAMPLES})
    retrieved = []
    for number in numbers:
        nearest = retrieval.model_copy(update={"num_examples": number})
        retrieved.append(
            TriedPrompt(
                "retrieved",
                prompting.model_copy(update={"retrieval": nearest}),
                name=f"retrieved, {number} in the prompt",
                note=f"nearest training rows in the prompt: {number}, best of "
                f"{', '.join(map(str, numbers))}",
            )
        )

    zero_shot = TriedPrompt(
        "zero_shot", prompting, name="zero_shot", note="no examples in the prompt"
    )
    return [zero_shot], random_sets, retrieved
