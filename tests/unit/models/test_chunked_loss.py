"""The loss in chunks: the values and gradients of the plain loss, for the models that allow it."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch

from tailorbird.data.packing import pack
from tailorbird.models.attention.transformers_private import needs_all_logits
from tailorbird.models.causal_lm import ChatModel, as_tensors, linear_cross_entropy
from tailorbird.models.lora import add_adapter
from tests.small_chat import WORDS, language_model, model_of
from tests.tracked_memory import TrackedMemory
from tests.unit.models.test_causal_lm import SCALED
from tests.unit.models.test_causal_lm import rows as conversations

CHUNK = "tailorbird.models.shape.CHUNK_LOGITS"


def gradients(
    model: ChatModel, *, autocast: bool = False, **options: Any
) -> dict[str, torch.Tensor]:
    """Return the loss and the gradient of each trained parameter."""
    model.zero_grad()
    rows = pack(conversations(), pad_id=0)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(
            *as_tensors(rows, device="cpu"), targets=torch.from_numpy(rows.targets), **options
        )
    (3.0 * loss).backward()
    gradients = {
        name: value.grad.clone()
        for name, value in model.named_parameters()
        if value.grad is not None
    }
    return gradients | {"loss": loss.detach()}


def untied() -> Any:
    return model_of("llama", tie_word_embeddings=False)


def with_bias() -> Any:
    return model_of("phi")


def scaled(kind: str) -> Callable[[], Any]:
    return lambda: model_of(kind, **SCALED[kind])


ALL_LOGITS = ("gemma2", "granite", "cohere")
"""Models that scale their logits, and compute all of them."""
MODELS = {"untied": untied, "bias": with_bias} | {kind: scaled(kind) for kind in ALL_LOGITS}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["tied", "untied", "lora", *ALL_LOGITS])
def test_loss_and_gradients_are_those_of_the_plain_loss(kind: str, smoothing: float) -> None:
    lm = MODELS.get(kind, language_model)()
    assert needs_all_logits(lm) == (kind in ALL_LOGITS)
    if kind == "lora":
        lm = add_adapter(lm, r=2, alpha=4, dropout=0.0)
    model = ChatModel(lm)
    plain = gradients(model, label_smoothing=smoothing)
    for rows in (1, 5):
        with mock.patch(CHUNK, rows * len(WORDS)):
            chunked = gradients(model, label_smoothing=smoothing)
        assert chunked.keys() == plain.keys()
        for name, value in chunked.items():
            assert (value - plain[name]).norm() <= 1e-5 * plain[name].norm(), name
    assert any("lora_A" in name for name in plain) == (kind == "lora")


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["tied", "untied", "bias"])
def test_gradients_are_ready_in_the_order_of_the_plain_loss(kind: str, autocast: bool) -> None:
    """DeepSpeed reduces them in this order, which must be the same on a rank with few targets."""
    model, order, orders = ChatModel(MODELS.get(kind, language_model)()), list[str](), []
    for name, value in model.named_parameters():
        value.register_post_accumulate_grad_hook(lambda _, name=name: order.append(name))  # type: ignore[no-untyped-call]
    for rows in (1000, 3):
        with mock.patch(CHUNK, rows * len(WORDS)):
            gradients(model, autocast=autocast)
        orders.append(tuple(order))
        order.clear()
    assert orders[0] == orders[1]


def test_a_loss_in_chunks_holds_the_logits_of_one_chunk() -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 1000, bias=False).requires_grad_(False)
    hidden, targets = torch.randn(512, 8, requires_grad=True), torch.arange(512)
    peaks = []
    for rows in (32, 512):
        with mock.patch(CHUNK, rows * 1000), TrackedMemory(head) as memory:
            torch.autograd.backward(
                linear_cross_entropy(head, hidden, targets=targets, label_smoothing=0.0)
            )
        peaks.append(memory.peak)
    assert peaks[0] < 20 * 32 * 1000 < 8 * 512 * 1000 < peaks[1]
