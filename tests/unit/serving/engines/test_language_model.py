"""Prompts of an engine with retrieved examples."""

from serving.engines.language_model import LanguageModelEngine
from tailorbird.data.rows import Rows
from tailorbird.models.retrieval.index import RetrievalIndex, build_index
from tailorbird.registry.versions import Prompting, Retrieval
from tests.unit.serving.replica.fake_engine import TOKENIZER, FakeEngine

QUESTIONS = ("blue sky", "green leaf", "green grass", "red rose")
SHOWN = "<user>green grass</s><assistant>a2</s><user>green leaf</s><assistant>a1</s>"


def index_of(questions: tuple[str, ...] = QUESTIONS) -> RetrievalIndex:
    """Return an index whose answers are `a0`, `a1`, ..."""
    ids = tuple(str(number) for number in range(len(questions)))
    turns = tuple((("user", question),) for question in questions)
    rows = Rows(ids, questions, tuple(f"a{number}" for number in ids), conversations=turns)
    return build_index(rows, seed=0)


def engine_of(*, max_prompt_tokens: int = 200, max_length: int = 256) -> FakeEngine:
    retrieval = Retrieval(num_examples=2, max_prompt_tokens=max_prompt_tokens, index_sha256="0" * 64)
    prompting = Prompting(system="s", max_new_tokens=8, retrieval=retrieval)
    engine = FakeEngine("", prompting=prompting, index=index_of())
    engine.max_length = max_length
    return engine


def shown(engine: LanguageModelEngine, text: str, *, max_new_tokens: int = 8) -> str:
    prompt = engine.chat_prompt((("user", text),), max_new_tokens=max_new_tokens)
    return "".join(TOKENIZER.convert_ids_to_tokens(prompt))


def test_the_nearest_training_rows_are_in_the_prompt_and_the_nearest_is_last() -> None:
    assert shown(engine_of(), "green leafs") == f"<system>s</s>{SHOWN}<user>green leafs</s><assistant>"


def test_examples_that_leave_no_room_for_the_answer_are_omitted() -> None:
    plain = "<system>s</s><user>green leafs</s><assistant>"
    one = "<system>s</s><user>green leaf</s><assistant>a1</s><user>green leafs</s><assistant>"
    assert shown(engine_of(max_length=50), "green leafs") == one
    assert shown(engine_of(max_prompt_tokens=40), "green leafs") == one
    assert shown(engine_of(max_length=64), "green leafs", max_new_tokens=40) == plain
    assert (
        shown(engine_of(max_length=20), "green leafs", max_new_tokens=40) == plain
    )  # a later check rejects its length
