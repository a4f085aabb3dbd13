"""The forward pass of a classifier: padding has no effect, rows keep their order, and heads are
loaded correctly."""

from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tailorbird.data.tokenize import collate
from tailorbird.evaluation.baselines.linear_head import Head
from tailorbird.models.classifier import (
    GPU_TOKENS,
    Classifier,
    device_batches,
    embed_rows,
    logits_rows,
)
from tailorbird.models.loading import load_weights
from tailorbird.models.pretrained import without_pooler
from tests.unit.models.tiny_bert import tiny_bert


def tiny_encoder(seed: int = 0) -> torch.nn.Module:
    encoder: torch.nn.Module = without_pooler(tiny_bert(seed=seed)).eval()
    return encoder


def tiny_classifier(num_classes: int = 3) -> Classifier:
    model = Classifier(tiny_encoder(), torch.nn.Linear(16, num_classes))
    return model.eval()


MODEL = tiny_classifier()
token_lists = st.lists(
    st.lists(st.integers(1, 49), min_size=1, max_size=12), min_size=1, max_size=12
)


@settings(max_examples=20)
@given(rows=token_lists, batch_size=st.integers(1, 5))
def test_the_logits_of_a_row_do_not_depend_on_its_batch(
    rows: list[list[int]], batch_size: int
) -> None:
    together = logits_rows(MODEL, rows, pad_id=0, batch_size=batch_size)
    alone = np.concatenate([logits_rows(MODEL, [row], pad_id=0) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_embedding_is_the_mean_over_tokens_without_padding() -> None:
    ids, mask = collate([[5, 6, 7], [8]], pad_id=0)
    assert mask is not None
    filled = ids.masked_fill(mask == 0, 33)
    with torch.no_grad():
        embedded, refilled = MODEL.embed(ids, mask), MODEL.embed(filled, mask)
        hidden = MODEL.encoder(input_ids=ids[:1], attention_mask=mask[:1]).last_hidden_state
    torch.testing.assert_close(embedded, refilled, atol=1e-6, rtol=0)
    torch.testing.assert_close(embedded[0], hidden[0].mean(0), atol=1e-6, rtol=0)


def test_a_head_in_column_major_order_is_stored_and_loaded(tmp_path: Path) -> None:
    weight = np.asfortranarray(np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32))
    head = Head(weight, np.array([0.1, 0.2, 0.3], dtype=np.float32))
    (tmp_path / "head.safetensors").write_bytes(head.to_bytes())
    model = load_weights(tmp_path, encoder=tiny_encoder(), kind="probe")
    np.testing.assert_array_equal(model.head.weight.detach().numpy(), weight)
    np.testing.assert_array_equal(model.head.bias.detach().numpy(), head.bias)


def test_an_fp32_head_on_a_bf16_encoder_gives_the_logits_of_the_baseline() -> None:
    model = Classifier(tiny_encoder().to(torch.bfloat16), torch.nn.Linear(16, 3)).eval()
    rows = [[1, 2, 3], [4], [5, 6]]
    weight, bias = model.head.weight.detach().numpy(), model.head.bias.detach().numpy()
    expected = embed_rows(model, rows, pad_id=0) @ weight.T + bias
    np.testing.assert_allclose(logits_rows(model, rows, pad_id=0), expected, atol=1e-6)


def test_a_pass_on_a_gpu_has_a_maximum_of_rows_and_of_tokens() -> None:
    def sizes(lengths: list[int], batch_size: int | None = None) -> list[int]:
        batches = device_batches(lengths, device="cuda", batch_size=batch_size)
        assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
        return sorted(map(len, batches))

    assert sizes([16] * 300) == [300]
    assert sizes([16] * 300, batch_size=256) == [44, 256]
    assert sizes([GPU_TOKENS // 2] * 3, batch_size=256) == [1, 2]
    assert sizes([2 * GPU_TOKENS, 1], batch_size=256) == [1, 1]
    assert [len(batch) for batch in device_batches([GPU_TOKENS] * 65, device="cpu")] == [64, 1]
