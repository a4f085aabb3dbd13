"""Each attention of packed rows gives the logits of the dense mask; kernels that need a GPU are
replaced on CPUs."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tailorbird.data.packing import PackedRows, pack
from tailorbird.models.attention import packed_attention
from tailorbird.models.attention.packed_attention import choose_attention
from tailorbird.models.causal_lm import ChatModel, as_tensors
from tests.small_chat import language_model, model_of
from tests.unit.models.attention.reference_attention import reference_varlen_attn
from tests.unit.models.test_causal_lm import rows

Gradients = dict[str, Tensor]


@pytest.fixture
def varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_attention, "_varlen_kernel", lambda: reference_varlen_attn)


def packed(**options: Any) -> PackedRows:
    return pack([*rows(), *rows()[:2]], pad_id=0, **{"max_width": 64} | options)


def logits_and_gradients(model: ChatModel, batch: PackedRows) -> tuple[Tensor, Gradients]:
    model.zero_grad()
    logits = model(*as_tensors(batch, device="cpu"))
    cross_entropy(logits, torch.from_numpy(batch.targets)).backward()  # type: ignore[no-untyped-call]
    return logits.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def by_conversation(batch: PackedRows, logits: Tensor) -> Tensor:
    return logits[torch.from_numpy(batch.target_conversation_ids.argsort(kind="stable"))]


@pytest.mark.usefixtures("varlen")
@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize(
    ("kind", "fields"), [("llama", {}), ("qwen3", {}), ("granite", {"logits_scaling": 8.0})]
)
def test_flash_attention_gets_the_bounds_of_the_conversations(
    kind: str, fields: dict[str, Any], one_row: bool
) -> None:
    model, batch = ChatModel(model_of(kind, **fields)), packed()
    logits, gradients = logits_and_gradients(model, batch)
    assert len(batch.input_ids) > 1
    assert (batch.conversation_ids == -1).any()  # padding has bounds of its own
    model.set_attention("flash")
    flash_batch = packed(one_row=one_row)
    assert one_row == (len(flash_batch.input_ids) == 1)
    flash_logits, flash_gradients = logits_and_gradients(model, flash_batch)
    torch.testing.assert_close(
        by_conversation(flash_batch, flash_logits),
        by_conversation(batch, logits),
        atol=1e-5,
        rtol=1e-4,
    )
    torch.testing.assert_close(flash_gradients, gradients, atol=1e-5, rtol=1e-3)


@pytest.mark.usefixtures("varlen")
@pytest.mark.parametrize(
    ("lm", "dtype", "expected"),
    [
        (language_model(), torch.bfloat16, "flash"),
        (language_model(), torch.float32, "dense"),
        (language_model(dropout=0.1), torch.bfloat16, "dense"),
        (model_of("gemma2"), torch.bfloat16, "dense"),  # caps the attention scores
        (model_of("gpt_oss", num_local_experts=4), torch.bfloat16, "dense"),  # attention sinks
        (model_of("qwen3"), torch.bfloat16, "flash"),
    ],
    ids=lambda value: value.config.model_type if hasattr(value, "config") else str(value),
)
def test_models_on_gpus_use_flash_attention_if_they_support_it(
    lm: Any, dtype: torch.dtype, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert choose_attention(lm, device="cuda", dtype=dtype) == expected
    assert choose_attention(lm, device="cpu", dtype=dtype) == "dense"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert choose_attention(lm, device="cuda", dtype=dtype) == "dense"


def test_torch_has_the_arguments_of_the_kernel() -> None:
    kernel = packed_attention._varlen_kernel()
    parameters = inspect.signature(kernel).parameters
    expected = inspect.signature(reference_varlen_attn).parameters
    assert [(p.name, p.kind) for p in expected.values()] == [
        (name, parameters[name].kind) for name in expected
    ]
