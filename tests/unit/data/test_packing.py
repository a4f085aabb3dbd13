"""Packed rows contain every token once, the assistant masks, and little padding."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.data.chat_template import Tokens
from tailorbird.data.packing import pack

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=40)


def rows_of(lengths: list[int]) -> list[Tokens]:
    rows, token = [], 1
    for length in lengths:
        mask = np.zeros(length, dtype=np.bool_)
        mask[length // 2 :] = True
        mask[0] = False  # the first token of a conversation has no preceding token that predicts it
        rows.append(Tokens(list(range(token, token + length)), mask))
        token += length
    return rows


@given(LENGTHS)
def test_packed_rows_contain_every_token_once_target_the_assistant_and_have_little_padding(
    lengths: list[int],
) -> None:
    rows = rows_of(lengths)
    batch = pack(rows, pad_id=0)
    for index, row in enumerate(rows):
        mine = batch.conversation_ids == index
        assert batch.input_ids[mine].tolist() == row.ids  # in one row, in order
        assert batch.position_ids[mine].tolist() == list(range(len(row)))
        targets = batch.targets[batch.target_conversation_ids == index]
        assert sorted(targets.tolist()) == np.array(row.ids)[row.assistant_mask].tolist()
    is_padding = batch.conversation_ids == -1
    assert (batch.input_ids[is_padding] == 0).all()
    assert is_padding.mean() <= 0.03
    assert int((batch.conversation_ids >= 0).sum()) == sum(lengths)
    assert len(batch.targets) == sum(int(row.assistant_mask.sum()) for row in rows)
    spans = np.split(batch.conversation_ids.reshape(-1), batch.bounds[1:-1])
    assert all(len(set(span.tolist())) == 1 for span in spans)


def test_long_conversations_are_not_packed_into_rows_of_twice_their_length() -> None:
    rows = rows_of([4096, 3600, 3300, 2790])
    assert pack(rows, pad_id=0).input_ids.shape == (2, 6900)
    assert pack(rows, pad_id=0, max_width=4096).input_ids.shape == (4, 4096)


@given(LENGTHS)
def test_one_row_has_no_padding(lengths: list[int]) -> None:
    batch = pack(rows_of(lengths), pad_id=0, one_row=True)
    assert batch.input_ids.shape == (1, sum(lengths))
    assert sorted(np.diff(batch.bounds)) == sorted(lengths)
    assert batch.longest == max(lengths)
