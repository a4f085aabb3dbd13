"""The memory estimate of a worker, its comparison with real trainings, and the changes that it proposes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.training.memory import Case, measure
from tailorbird.config.training import TrainingConfig
from tailorbird.models.shape import ModelShape
from training.engine.memory_alternatives import smaller_alternatives
from training.engine.memory_estimate import (
    activation_bytes,
    answered_rows,
    export_bytes,
    held_bytes,
    start_bytes,
    step_bytes,
    validation_bytes,
    worker_memory,
)
from training.engine.worker_memory import Batch, WorkerMemory

MINILM = ModelShape(
    num_parameters=22_565_376,
    num_linear=10_616_832,
    num_linear_ends=41_472,
    hidden=384,
    intermediate=1536,
    num_layers=6,
    num_heads=12,
    vocabulary=30_522,
    attention_dropout=0.1,
)
GIB = 1 << 30
LONG = Batch(4096, packed=True, autocast=True)


def llama(*, hidden: int, intermediate: int, layers: int, vocabulary: int = 128_256, kv: int = 1024) -> ModelShape:
    """Return the shape of a Llama 3 model."""
    per_layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * intermediate
    linear = layers * per_layer + vocabulary * hidden
    ends = layers * (4 * hidden + 2 * (hidden + kv) + 3 * (hidden + intermediate))
    return ModelShape(
        num_parameters=linear + vocabulary * hidden + (2 * layers + 1) * hidden,
        num_linear=linear,
        num_linear_ends=ends,
        hidden=hidden,
        intermediate=intermediate,
        num_layers=layers,
        num_heads=hidden // 128,
        vocabulary=vocabulary,
        gated=True,
        kv_width=kv,
        stored_bf16=True,
    )


LLAMA_8B = llama(hidden=4096, intermediate=14_336, layers=32)
LLAMA_70B = llama(hidden=8192, intermediate=28_672, layers=80)


def config_of(**fields: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"num_workers": 4, "zero_stage": 0} | fields)


def held(**fields: Any) -> dict[str, int]:
    return held_bytes(config_of(**fields), shape=MINILM, batch=Batch(64), num_workers=4)


def on_gpus(num_workers: int, shape: ModelShape, **fields: Any) -> WorkerMemory:
    values = {"num_workers": num_workers, "batch_size": num_workers, "gpus_per_worker": 1}
    config = TrainingConfig.model_validate(values | {"gradient_checkpointing": True, "zero_stage": 3} | fields)
    return worker_memory(config, shape=shape, batch=LONG, num_workers=num_workers)


def test_each_stage_shards_one_more_state() -> None:
    number = MINILM.num_parameters
    none, states, gradients, weights = (held(zero_stage=stage) for stage in range(4))
    assert none == {"weights": 4 * number, "optimizer states": 8 * number}
    assert states == {
        "weights": 4 * number,
        "optimizer states": 8 * number // 4,
        "weights of the optimizer": 4 * number // 4,
    }
    assert gradients == states  # gradients exist only within a step
    assert (weights["weights"], weights["gradients"]) == (4 * number // 4, 4 * number // 4)


def test_an_8b_model_is_fully_trained_on_32_gpus() -> None:
    memory = on_gpus(32, LLAMA_8B)
    assert LLAMA_8B.num_parameters == pytest.approx(8.03e9, rel=0.001)
    states = sum(memory.device[name] for name in ("weights", "optimizer states", "gradients"))
    assert states == pytest.approx(16 * LLAMA_8B.num_parameters / 32, rel=0.001)
    assert 15 < memory.device_bytes / GIB < 25


def test_a_70b_model_with_lora_fits_8_gpus_of_80_gib() -> None:
    memory = on_gpus(8, LLAMA_70B, method="lora")
    assert memory.device["weights"] / GIB == pytest.approx(17, rel=0.03)
    assert memory.device_bytes / GIB < 75


def test_the_worker_that_exports_holds_one_weight_or_the_adapter() -> None:
    full, lora = on_gpus(8, LLAMA_8B), on_gpus(8, LLAMA_70B, method="lora", lora_r=16)
    assert full.exporting_bytes - full.host_bytes == 4 * LLAMA_8B.vocabulary * LLAMA_8B.hidden
    assert full.node_bytes(16, num_groups=2) == 14 * full.host_bytes + 2 * full.exporting_bytes
    assert lora.exporting["export"] == 2 * 4 * 16 * LLAMA_70B.num_linear_ends  # once trained, once from the file
    assert lora.node_bytes(8, num_groups=1) < 9 * GIB
    config = config_of(method="lora", num_workers=8, zero_stage=3, gpus_per_worker=1)
    _, device = export_bytes(config, shape=LLAMA_70B, batch=LONG)
    assert sum(device.values()) < 0.06 * 4 * LLAMA_70B.num_parameters  # a layer and the embeddings


def test_a_second_partition_in_a_node_and_bf16_parameters_are_counted() -> None:
    number = MINILM.num_parameters
    assert held(zero_stage=3, zero_hpz_partition_size=2)["weights for the node"] == 4 * number // 2
    for stage, shards in ((0, 1), (1, 4)):
        bf16 = held(zero_stage=stage, parameter_dtype="bf16")
        assert bf16["weights"] == 2 * number
        assert bf16["weights of the optimizer"] == 4 * number // shards
    assert held(zero_stage=3, parameter_dtype="bf16")["gradients"] == 2 * number // 4
    in_fp32 = {"data_types": {"grad_accum_dtype": "fp32"}}
    assert held(zero_stage=3, parameter_dtype="bf16", deepspeed=in_fp32)["gradients"] == 4 * number // 4


def test_only_the_adapter_has_gradients_and_optimizer_states() -> None:
    full, lora = held(), held(method="lora", lora_r=16)
    trained = 16 * MINILM.num_linear_ends
    assert lora["optimizer states"] == 8 * trained
    assert lora["weights"] == full["weights"] + 4 * trained


def test_smaller_micro_batches_and_checkpointing_need_less_memory() -> None:
    def activations(num_workers: int = 4, length: int = 64, **fields: Any) -> int:
        config = config_of(num_workers=num_workers, **fields)
        return activation_bytes(config, shape=MINILM, batch=Batch(length), num_workers=num_workers)

    full_batch = activations(batch_size=64)
    assert activations(batch_size=64, gradient_accumulation_steps=4) == full_batch // 4
    assert activations(batch_size=64, batch_tokens=4 * 64 + 63) == full_batch // 4
    assert activations(batch_size=64, batch_tokens=100 * 64) == full_batch
    assert activations(batch_size=64, batch_tokens=63) == full_batch // 16  # a row is never split
    assert activations(batch_size=64, num_workers=2) == 2 * full_batch
    elastic = config_of(batch_size=64, num_workers={"min": 2, "max": 4})  # two workers accumulate micro-batches
    assert activation_bytes(elastic, shape=MINILM, batch=Batch(64), num_workers=2) == full_batch
    assert activations(batch_size=64, gradient_checkpointing=True) < full_batch / 2
    assert activations(batch_size=64, length=128) > 2 * full_batch  # attention weights grow quadratically
    assert activations(batch_size=64, length=128, attention_dropout=0.0) < activations(batch_size=64, length=128)


def test_logits_of_a_long_context_are_counted_in_chunks() -> None:
    def activations(length: int, shape: ModelShape = LLAMA_8B, **fields: Any) -> int:
        config = config_of(num_workers=1, batch_size=1, gpus_per_worker=1, gradient_checkpointing=True, **fields)
        return activation_bytes(config, shape=shape, batch=replace(LONG, max_length=length), num_workers=1)

    kept = 4 * LLAMA_8B.num_layers * LLAMA_8B.hidden  # bytes for a token
    short, long = activations(1024), activations(8192)
    assert short == 1024 * kept + 14 * 1024 * 128_256
    layer = 8192 * (34 * LLAMA_8B.hidden + 8 * LLAMA_8B.intermediate)
    assert long == 8192 * kept + layer + 6 * 128_256 * LLAMA_8B.hidden
    assert activations(8192, replace(LLAMA_8B, needs_all_logits=True)) == 8192 * kept + 14 * 8192 * 128_256
    assert activations(8192, method="lora") < long
    assert 20 < activations(32_768, method="lora") / GIB < 32  # the logits alone would take 55 GiB


def test_long_prompts_are_answered_in_smaller_batches() -> None:
    assert [answered_rows(tokens) for tokens in (1, 512, 513, 4096, 32_768, 100_000)] == [64, 64, 63, 8, 1, 1]


def test_a_validation_at_stage_3_counts_the_cache_and_the_forward_pass_of_the_prompts() -> None:
    def validation(length: int, **fields: Any) -> dict[str, int]:
        batch = Batch(length, max_new_tokens=128, packed=True, autocast=True)
        return validation_bytes(config_of(zero_stage=3, **fields), shape=LLAMA_8B, batch=batch)

    assert validation(256)["cache"] == 64 * 256 * 32 * 1024 * (4 + 2)  # keys are fp32, values are bf16
    assert validation(256, parameter_dtype="bf16")["cache"] == 64 * 256 * 32 * 1024 * (2 + 2)
    totals = [sum(validation(length).values()) for length in (64, 128, 256, 4096)]
    assert totals == sorted(totals)
    assert totals[-1] < 3 * totals[-2]  # 16 times the tokens in an eighth of the rows
    assert "cache" not in validation_bytes(config_of(zero_stage=3), shape=MINILM, batch=Batch(64))


def test_trained_weights_are_held_twice_while_stages_1_and_2_start() -> None:
    number = LLAMA_8B.num_parameters
    plain, small = (
        worker_memory(
            config_of(num_workers=32, batch_size=32, gpus_per_worker=1, gradient_checkpointing=True, zero_stage=2),
            shape=LLAMA_8B,
            batch=Batch(64, packed=True, autocast=True),
            num_workers=32,
            gpu_bytes=size,
        )
        for size in (None, 60 * GIB)
    )
    assert plain.device == {"process": 1 * GIB, "weights": 4 * number, "flattened weights": 4 * number}
    assert "flattened weights" not in plain.host
    assert small.device_bytes < 60 * GIB  # DeepSpeed flattens in host memory, where it also copies the weights
    assert small.host["flattened weights"] == 2 * 4 * number
    assert start_bytes(config_of(zero_stage=3), shape=LLAMA_8B, batch=LONG) == {}
    lora = start_bytes(config_of(zero_stage=1, method="lora", lora_r=16), shape=LLAMA_8B, batch=LONG)
    assert lora["flattened weights"] == 4 * 16 * LLAMA_8B.num_linear_ends


@pytest.mark.long
def test_the_estimate_of_the_start_is_the_memory_of_its_tensors(tmp_path: Path) -> None:
    case = Case("1M", 32, {"zero_stage": 2, "gradient_checkpointing": True})
    figures = measure([case], folder=tmp_path)[case.name]
    assert figures["measured start"] > 1.5 * 32 * figures["model / ranks"]
    assert figures["estimated start"] == pytest.approx(figures["measured start"], rel=0.1)


def test_offloaded_states_and_their_gradients_are_in_host_memory() -> None:
    number, shards = LLAMA_8B.num_parameters, 6
    plain, states, all_of_them = (
        on_gpus(shards, LLAMA_8B, offload=offload) for offload in ("none", "optimizer", "parameters")
    )
    assert "fp32 gradients" not in plain.host
    page_locked = 1 << (4 * number // shards).bit_length()  # torch rounds it up to a power of two
    assert {name: size for name, size in states.host.items() if name not in ("process", "export")} == {
        "optimizer states": 8 * number // shards,
        "weights of the optimizer": 4 * number // shards,
        "fp32 gradients": page_locked,
        "gradients": page_locked,
    }
    for name in ("optimizer states", "weights of the optimizer", "gradients", "flat gradients"):
        assert name not in states.device
    assert states.device["weights"] == plain.device["weights"]
    assert all_of_them.host["weights"] == page_locked
    assert all_of_them.host["weights before flattening"] == plain.device["weights"]
    assert "weights" not in all_of_them.device
    assert all_of_them.device["gathered weights"] == plain.device["gathered weights"]


@pytest.mark.parametrize(("stage", "steps", "accumulated"), [(1, 1, False), (1, 2, False), (2, 1, False), (2, 2, True)])
def test_stages_1_and_2_offload_gradients_through_buffers(stage: int, steps: int, accumulated: bool) -> None:
    fields = {"zero_stage": stage, "batch_size": 64, "gradient_accumulation_steps": steps}
    plain, offloaded = held(**fields), held(**fields, offload="optimizer")
    own, largest = 4 * MINILM.num_parameters // 4, 4 * MINILM.vocabulary * MINILM.hidden
    buffers = {"largest gradient": largest, "largest gradient on the device": largest}
    added = {"fp32 gradients": own, "updated weights": own} | ({"accumulated gradients": own} if accumulated else {})
    assert offloaded == plain | added | buffers
    adapter = held(**fields, offload="optimizer", method="lora", lora_r=16)
    assert adapter["fp32 gradients"] == 4 * 16 * MINILM.num_linear_ends // 4
    assert not buffers.keys() & adapter.keys()  # the largest weight of an adapter is small


@pytest.mark.parametrize(("stage", "on_device"), [(1, True), (2, False)])
def test_gradients_stay_on_the_device_until_the_update_only_at_stage_1(stage: int, on_device: bool) -> None:
    fields: dict[str, Any] = {"zero_stage": stage, "offload": "optimizer", "gradient_checkpointing": True}
    step = step_bytes(config_of(**fields), shape=MINILM, batch=Batch(8), num_workers=4)
    assert ("gradients" in step) is on_device
    assert "flat gradients" not in step


def test_proposed_changes_lower_the_memory_and_a_model_that_cannot_fit_has_none() -> None:
    config = config_of(num_workers=8, batch_size=64, gpus_per_worker=1)
    now = worker_memory(config, shape=LLAMA_8B, batch=LONG, num_workers=8)
    proposed = dict(smaller_alternatives(config, shape=LLAMA_8B, batch=LONG, num_workers=8))
    for name, memory in proposed.items():
        assert memory.device_bytes < now.device_bytes, name
    assert {name for name, memory in proposed.items() if memory.device_bytes < 80 * GIB} == {
        list(proposed)[-1],
        list(proposed)[-2],
    }
    assert next(iter(proposed)) == "training.zero_stage: 1"
    assert list(proposed)[-2].startswith("training.zero_stage: 3 with training.gradient_checkpointing: true with")


def test_smaller_batch_tokens_are_proposed_if_they_split_the_rows_of_a_step() -> None:
    fields: dict[str, Any] = {"num_workers": 8, "batch_size": 64, "gpus_per_worker": 1}
    known: dict[str, Any] = {"shape": LLAMA_8B, "batch": LONG, "num_workers": 8}
    proposed = dict(smaller_alternatives(config_of(**fields, batch_tokens=5 * LONG.max_length), **known))
    smaller = {f"training.batch_tokens: {rows * LONG.max_length}": rows * LONG.max_length for rows in (2, 1)}
    assert {name for name in proposed if name.startswith("training.batch_tokens")} == smaller.keys()
    for name, num_tokens in smaller.items():
        assert proposed[name] == worker_memory(config_of(**fields, batch_tokens=num_tokens), **known)
    assert not [name for name in proposed if "gradient_accumulation_steps" in name]  # not allowed with batch_tokens
    assert f"with training.batch_tokens: {LONG.max_length} with" in list(proposed)[-2]


@pytest.mark.long
def test_the_estimate_is_within_15_percent_of_real_trainings(tmp_path: Path) -> None:
    lora, less, bf16 = {"method": "lora"}, {"gradient_checkpointing": True}, {"parameter_dtype": "bf16"}
    options: list[dict[str, Any]] = [{}, less, lora, lora | less, bf16]
    cases = [Case("1M", 2, {"zero_stage": stage} | more) for stage in (1, 3) for more in options]
    cases += [Case("1M", 2, {"zero_stage": stage} | more) for stage, more in ((0, bf16), (0, {}), (2, {}))]
    cases += [Case("1M", 2, {"zero_stage": stage, "offload": "optimizer"}) for stage in (1, 2, 3)]
    for name, figures in measure(cases, folder=tmp_path).items():
        assert figures["estimate / peak"] == pytest.approx(1, abs=0.15), (name, figures)
