"""Prompts of an engine with retrieved examples."""

import pytest

from tailorbird.models.retrieval.index import RetrievalIndex, build_index
from tailorbird.registry.versions import Prompting, Retrieval
from tests.build import rows
from tests.unit.serving.replica.fake_engine import TOKENIZER, FakeEngine

QUESTIONS = ("blue sky", "green leaf", "green grass", "red rose")
FIRST = "<user>green grass</s><assistant>a2</s>"
NEAREST = "<user>green leaf</s><assistant>a1</s>"


def index_of(questions: tuple[str, ...] = QUESTIONS) -> RetrievalIndex:
    """Return an index whose answers are `a0`, `a1`, ..."""
    answers = [f"a{number}" for number in range(len(questions))]
    return build_index(rows(questions, answers, chat=True), seed=0)


@pytest.mark.parametrize(
    ("max_length", "max_new_tokens", "shown"),
    [(256, 8, FIRST + NEAREST), (50, 8, NEAREST), (64, 40, "")],
)
def test_the_nearest_training_rows_are_in_the_prompt_as_far_as_they_leave_room_for_the_answer(
    max_length: int, max_new_tokens: int, shown: str
) -> None:
    retrieval = Retrieval(num_examples=2, max_prompt_tokens=200, index_sha256="0" * 64)
    prompting = Prompting(system="s", max_new_tokens=8, retrieval=retrieval)
    engine = FakeEngine("", prompting=prompting, index=index_of())
    engine.max_length = max_length
    prompt = engine.chat_prompt((("user", "green leafs"),), max_new_tokens=max_new_tokens)
    text = "".join(TOKENIZER.convert_ids_to_tokens(prompt))
    assert text == f"<system>s</s>{shown}<user>green leafs</s><assistant>"
