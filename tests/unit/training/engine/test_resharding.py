"""The state that a rank reads from shards is exact. `tests.unit.training.test_ranks` does it with several ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training.small import config_of, small_runtime
from training import checkpoint
from training.engine import resharding
from training.engine.deepspeed_private import destroy_engine, inner_optimizer
from training.engine.resharding import load_resharded
from training.loop import Callbacks, build_engine, train
from training.reports import Progress

ALIGNED = {"zero_optimization": {"parameter_alignment": True}}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_state_that_is_read_from_shards_continues_the_training_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int, method: str
) -> None:
    monkeypatch.setattr(resharding, "CHUNK", 500)  # most tensors are read in several chunks
    runtime = small_runtime(dropout=0.0)
    fields: dict[str, Any] = {"parameter_dtype": "bf16", "deepspeed": ALIGNED} if stage == 2 else {}
    config = config_of(zero_stage=stage, method=method, epochs=2, lora_dropout=0.0, checkpoint_interval_s=0, **fields)
    progress: list[Progress] = []

    def save(reached: Progress, engine: Any) -> None:
        if (reached.epoch, reached.step) == (0, 2):
            checkpoint.save(engine, config, folder=tmp_path, progress=reached)
            progress.append(checkpoint._PROGRESS.validate_json((tmp_path / "progress-0.json").read_bytes()))

    engine = build_engine(config, runtime)
    uninterrupted = train(engine, config, runtime=runtime, callbacks=Callbacks(on_save=save))
    destroy_engine(engine)
    engine = build_engine(config, runtime)
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    load_resharded(engine, uri=tmp_path.as_uri(), names=names, num_saved=1)
    steps = [state["step"] for state in inner_optimizer(engine).state.values()]
    assert [float(step) for step in steps] == [2.0] * len(steps)
    assert len({step.data_ptr() for step in steps}) == len(steps)
    assert engine.global_steps == 2
    resumed = train(engine, config, runtime=runtime, progress=progress[0])
    destroy_engine(engine)
    assert (resumed.loss, resumed.score) == (uninterrupted.loss, uninterrupted.score)


def test_torch_moves_steps_to_the_device_of_their_parameters() -> None:
    """Fused AdamW requires it. DeepSpeed loads the state with this method of torch; `meta` stands in for a GPU here."""
    parameter = torch.nn.Parameter(torch.empty(4, device="meta"))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    state = optimizer.state_dict() | {"state": {0: {"step": torch.zeros(()), "exp_avg": torch.zeros(4)}}}
    optimizer.load_state_dict(state)
    assert optimizer.state[parameter]["step"].device == torch.device("meta")
