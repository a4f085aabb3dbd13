"""Contract tests of the private parts of vLLM and of Ray's server that
serving/engines/vllm_server.py uses.

A failure names the part that moved. Ray's part is read from its source, because it cannot be
imported without vLLM.
"""

import ast
import dataclasses
import importlib.util
import inspect
from pathlib import Path
from typing import Any, get_args

import pytest
import ray

from serving.engines.vllm_server import LORA_RANKS, VLLM_VERSION, TokenRequest
from tailorbird.config.vllm_options import VLLM_OPTIONS

RAY_LLM = Path(ray.__file__).parent / "llm" / "_internal" / "serve"
RAY_PARTS = {
    "core/server/llm_server.py": (
        "class LLMServer",
        "def sync_init(",
        "def start(",
        "def _start_engine(",
        "def check_health(",
        "def completions(",
        "self.engine =",
    ),
    "engines/vllm/vllm_engine.py": (
        "class VLLMEngine",
        "def start(",
        "self._engine_client",
        "self._oai_models",
        "self.llm_config.log_engine_metrics",
    ),
    "engines/vllm/vllm_models.py": ("VLLM_RAY_PER_WORKER_GPUS",),
}
needs_vllm = pytest.mark.skipif(
    not importlib.util.find_spec("vllm"),
    reason=f"vLLM is not installed; the engine was written for vLLM {VLLM_VERSION}",
)


def require(source: str, *parts: str) -> None:
    assert [part for part in parts if part not in source] == []


@pytest.mark.parametrize("file", RAY_PARTS)
def test_rays_server_has_the_parts_that_the_engine_uses(file: str) -> None:
    source = ast.unparse(ast.parse((RAY_LLM / file).read_text()))
    require(source, *RAY_PARTS[file])


@needs_vllm
def test_vllm_has_the_version_of_the_engine_and_the_options_that_a_recipe_can_set() -> None:
    # the package of the CPU build has another name, so its metadata cannot be read as that of vLLM
    import vllm
    from vllm.engine.arg_utils import AsyncEngineArgs

    assert vllm.__version__.startswith(f"{VLLM_VERSION}."), (
        "check serving/engines/vllm_server.py against the installed vLLM, then set VLLM_VERSION "
        f"({VLLM_VERSION})"
    )
    arguments: Any = AsyncEngineArgs
    assert {field.name for field in dataclasses.fields(arguments)} >= set(VLLM_OPTIONS)


@needs_vllm
def test_vllm_loads_and_removes_adapters_of_the_known_ranks() -> None:
    from vllm.config.lora import MaxLoRARanks
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.serve.lora.protocol import (
        LoadLoRAAdapterRequest,
        UnloadLoRAAdapterRequest,
    )

    assert get_args(MaxLoRARanks) == LORA_RANKS
    source = inspect.getsource(OpenAIServingModels)
    require(source, "load_lora_adapter", "unload_lora_adapter", "lora_requests")
    assert {"lora_name", "lora_path"} <= set(LoadLoRAAdapterRequest.model_fields)
    assert "lora_name" in UnloadLoRAAdapterRequest.model_fields


@needs_vllm
def test_vllms_client_has_the_parts_that_the_engine_uses() -> None:
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessor

    source = inspect.getsource(AsyncLLM)
    require(source, "self.model_config", "self.output_processor", "def remove_lora", "def shutdown")
    require(inspect.getsource(OutputProcessor), "def has_unfinished_requests")
    grammar = 'root ::= "a"'
    sampling = SamplingParams(structured_outputs=StructuredOutputsParams(grammar=grammar))
    assert sampling.structured_outputs.grammar == grammar


@needs_vllm
def test_a_completion_request_has_the_fields_that_the_engine_sets() -> None:
    from ray.serve.llm.openai_api_models import CompletionRequest

    fields = {"return_token_ids", "return_tokens_as_token_ids", *TokenRequest.__dataclass_fields__}
    assert fields <= set(CompletionRequest.model_fields)
