"""The messages of a request, and the label that an answer names."""

import pytest

from tailorbird.data.rows import Rows
from tailorbird.models.endpoint.prompts import (
    endpoint_messages,
    label_answer,
    label_conversations,
    label_of,
    label_prompting,
)
from tailorbird.models.retrieval.index import build_index
from tailorbird.registry.versions import Prompting, Retrieval

CLASSES = ("Card arrival", "card not working", "top up", "TOP UP", "3")
PAIRS = (("blue sky", "sky"), ("green leaf", "leaf"), ("red rose", "rose"))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ('{"label": "Card arrival"}', "Card arrival"),
        ('{"label": " card  ARRIVAL. "}', "Card arrival"),
        ('```json\n{"label": "card not working"}\n```', "card not working"),
        ("Card not working.", "card not working"),
        ('{"label": 3}', "3"),
        ("top up", "top up"),  # exact, although two classes differ only in case
        ("Top up", None),  # either of two classes
        ("", None),
        ('{"label": "unknown"}', None),
        ('{"label": ["3"]}', None),
        ("[" * 100_000, None),
        ("true", None),
    ],
)
def test_an_answer_names_a_label_or_none(text: str, label: str | None) -> None:
    assert label_of(text, classes=CLASSES) == label


def test_every_label_of_many_is_recognised_and_fits() -> None:
    classes = (*(f'intent {number}: "say {number}"' for number in range(9)), "\u00fcber", "a\nb")
    assert all(label_of(label_answer(label), classes=classes) == label for label in classes)
    prompting = label_prompting(classes)
    assert (prompting.system or "").count("\n") == len(classes)  # one line per label
    assert prompting.max_new_tokens > max(len(label_answer(label).encode()) for label in classes)


@pytest.mark.parametrize(("tokens", "examples"), [(2048, ["sky", "leaf"]), (12, ["sky"])])
def test_the_nearest_rows_are_examples_as_long_as_they_fit(
    tokens: int, examples: list[str]
) -> None:
    texts, labels = (tuple(column) for column in zip(*PAIRS, strict=True))
    rows = label_conversations(Rows(("0", "1", "2"), texts, labels))
    retrieval = Retrieval(num_examples=2, max_prompt_tokens=tokens, index_sha256="")
    prompting = Prompting(system=None, max_new_tokens=8, retrieval=retrieval)
    messages = endpoint_messages(
        (("user", "a blue sky leaf"),), prompting=prompting, index=build_index(rows, seed=0)
    )
    answers = [
        label_of(content, classes=labels) for role, content in messages if role == "assistant"
    ]
    assert answers[::-1] == examples  # the nearest comes last
    assert messages[-1] == ("user", "a blue sky leaf")


def test_the_list_of_labels_is_where_the_prompt_names_it_or_requested_by_the_system_message() -> (
    None
):
    labels = '"a": "first"\n"b"'
    descriptions = {"a": "first"}
    default = label_prompting(("a", "b"), descriptions=descriptions)
    assert default.template == "{text}"
    given = label_prompting(("a", "b"), system="Be brief.", descriptions=descriptions)
    for prompting, start in ((default, "Classify the user's text. "), (given, "Be brief. ")):
        assert prompting.system is not None
        assert prompting.system.startswith(f"{start}Answer only with a JSON object")
        assert prompting.system.endswith(f":\n{labels}")
    in_system = label_prompting(("a", "b"), system="One of {labels}", descriptions=descriptions)
    assert in_system.system == f"One of {labels}"
    in_template = label_prompting(
        ("a", "b"), system="", template="{labels}: {text}", descriptions=descriptions
    )
    assert (in_template.system, in_template.template) == (None, f"{labels}: {{text}}")


def test_the_template_is_around_the_texts_of_row_and_examples_and_texts_have_no_placeholders() -> (
    None
):
    prompting = label_prompting(("a",), system="{labels}", template="Text: {text} ({text})")
    shots = (("user", "q"), ("assistant", "{text}"))
    messages = endpoint_messages(
        (("user", "{text}{labels}"),), prompting=prompting.model_copy(update={"shots": shots})
    )
    assert messages == (
        ("system", '"a"'),
        ("user", "Text: q (q)"),
        ("assistant", "{text}"),
        ("user", "Text: {text}{labels} ({text}{labels})"),
    )
