"""Section `serving`: GPUs, and options of vLLM."""

from typing import Any

import pytest
from pydantic import ValidationError

from tailorbird.config.serving import ServingConfig


@pytest.mark.parametrize(
    "fields",
    [
        {"gpus_per_replica": 0.25},
        {
            "engine": "vllm",
            "gpus_per_replica": 0.5,
            "engine_options": {"gpu_memory_utilization": 0.5},
        },
        {
            "engine": "vllm",
            "gpus_per_replica": 2,
            "engine_options": {"gpu_memory_utilization": 0.9},
        },
    ],
)
def test_gpus_and_options_that_an_engine_supports_are_accepted(fields: dict[str, Any]) -> None:
    config = ServingConfig(**fields)
    assert all(getattr(config, name) == value for name, value in fields.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpus_per_replica": -1}, "greater than or equal to 0"),
        (
            {"engine": "vllm", "gpus_per_replica": 1.5},
            "a fraction of one GPU or a whole number of GPUs, not 1.5",
        ),
        ({"gpus_per_replica": 2}, "gpus_per_replica 2 requires engine: vllm"),
        (
            {"engine_options": {"max_model_len": 4096}},
            "engine_options applies to engine: vllm only",
        ),
        (
            {"engine": "vllm", "autoscaling": {"max_replicas_per_node": 1}},
            "max_replicas_per_node does not apply to engine: vllm",
        ),
        *(
            (
                {"engine": "vllm", "engine_options": {name: 1}},
                f"engine_options: {name} cannot be set; allowed: async",
            )
            for name in ("max_num_seqs", "tensor_parallel_size", "trust_remote_code", "hf_token")
        ),
        (
            {"engine": "vllm", "engine_options": {"gpu_memory_utilization": 1.2}},
            "gpu_memory_utilization 1.2 must be a share of a whole GPU, above 0 and at most 1 ",
        ),
        (
            {
                "engine": "vllm",
                "gpus_per_replica": 0.5,
                "engine_options": {"gpu_memory_utilization": 0.9},
            },
            "at most 0.5 with gpus_per_replica 0.5",
        ),
        ({"examples": ["a text", " "]}, "1 to 500 characters"),
        ({"examples": ["x"] * 13}, "at most 12 items"),
    ],
)
def test_other_gpus_and_options_are_refused_with_what_to_do(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        ServingConfig(**fields)


def test_only_passes_of_texts_are_larger_on_a_gpu_by_default() -> None:
    on_gpu = ServingConfig(gpus_per_replica=0.5)
    assert (on_gpu.batch_size("classification"), on_gpu.batch_size("chat")) == (256, 64)
    assert ServingConfig().batch_size("classification") == 64
    assert ServingConfig(gpus_per_replica=1, max_batch_size=8).batch_size("classification") == 8
