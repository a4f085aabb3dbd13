"""Optional kernels: torch.compile gives the same training."""

from typing import Any

import pytest
from torch import nn

from tests.unit.training.small import reports_of, small_runtime


@pytest.mark.long
@pytest.mark.parametrize(
    "fields", [{"zero_stage": 1}, {"zero_stage": 2, "method": "lora", "parameter_dtype": "bf16"}]
)
def test_compiled_layers_train_like_uncompiled_ones(
    fields: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Inductor, torch.compile traces the layers and their backward pass, and needs no
    minute to compile C++."""
    compile_layer, num_compiled = nn.Module.compile, []

    def compile_without_inductor(self: nn.Module, **options: Any) -> None:
        num_compiled.append(self)
        compile_layer(self, backend="aot_eager", **options)

    monkeypatch.setattr(nn.Module, "compile", compile_without_inductor)
    options: dict[str, Any] = {
        "gradient_checkpointing": True,
        "learning_rate": 1e-3,
        "epochs": 1,
        "lora_dropout": 0.0,
        **fields,
    }
    plain, compiled = (
        reports_of(small_runtime(dropout=0.0), torch_compile=torch_compile, **options)
        for torch_compile in (False, True)
    )
    assert len(num_compiled) == 2
    tolerance = 0.02 if "parameter_dtype" in fields else 1e-3
    assert [report.loss for report in compiled] == pytest.approx(
        [report.loss for report in plain], rel=tolerance
    )
