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

import pytest
import ray

from serving.engines.vllm_server import LORA_RANKS, VLLM_VERSION, TokenRequest
from tailorbird.config.vllm_options import VLLM_OPTIONS

RAY_LLM = Path(ray.__file__).parent / "llm" / "_internal" / "serve"
needs_vllm = pytest.mark.skipif(
    not importlib.util.find_spec("vllm"),
    reason=f"vLLM is not installed; the engine was written for vLLM {VLLM_VERSION}",
)


def _class(file: str, name: str) -> ast.ClassDef:
    path = RAY_LLM / file
    assert path.is_file(), f"Ray {ray.__version__} has no {file}"
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    named = [node for node in classes if node.name == name]
    assert named, f"Ray {ray.__version__}: {file} has no class {name}"
    return named[0]


def _methods(node: ast.ClassDef) -> set[str]:
    return {
        item.name for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def _assigned(node: ast.ClassDef) -> set[str]:
    """Return the attributes of `self` that a class assigns."""
    targets = [
        target for item in ast.walk(node) if isinstance(item, ast.Assign) for target in item.targets
    ]
    return {
        target.attr
        for target in targets
        if isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
    }


@pytest.mark.parametrize(
    "method", ["sync_init", "start", "_start_engine", "check_health", "completions"]
)
def test_rays_server_has_the_methods_that_the_engine_uses(method: str) -> None:
    methods = _methods(_class("core/server/llm_server.py", "LLMServer"))
    assert method in methods, f"Ray {ray.__version__}: LLMServer.{method} moved"


def test_rays_server_has_its_engine_and_the_engine_its_vllm_client() -> None:
    assert "engine" in _assigned(_class("core/server/llm_server.py", "LLMServer")), (
        f"Ray {ray.__version__}: LLMServer.engine moved"
    )
    engine = _class("engines/vllm/vllm_engine.py", "VLLMEngine")
    assert "start" in _methods(engine), f"Ray {ray.__version__}: VLLMEngine.start moved"
    source = ast.unparse(engine)
    for name in ("_engine_client", "_oai_models"):
        assert f"self.{name}" in source, f"Ray {ray.__version__}: VLLMEngine.{name} moved"
    assert "self.llm_config.log_engine_metrics" in source, (
        f"Ray {ray.__version__}: LLMConfig.log_engine_metrics moved"
    )


def test_rays_server_accepts_a_share_of_a_gpu() -> None:
    source = (RAY_LLM / "engines/vllm/vllm_models.py").read_text()
    assert "VLLM_RAY_PER_WORKER_GPUS" in source, (
        f"Ray {ray.__version__}: VLLM_RAY_PER_WORKER_GPUS moved"
    )


@needs_vllm
def test_vllm_has_the_options_that_a_recipe_can_set() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    names = {
        field.name
        for field in dataclasses.fields(AsyncEngineArgs)
        if not field.name.startswith("_")
    }
    assert names >= set(VLLM_OPTIONS)


@needs_vllm
def test_vllm_loads_and_removes_adapters_of_the_known_ranks() -> None:
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.serve.lora.protocol import (
        LoadLoRAAdapterRequest,
        UnloadLoRAAdapterRequest,
    )
    from vllm.v1.engine.async_llm import AsyncLLM

    assert get_args(MaxLoRARanks) == LORA_RANKS
    assert hasattr(AsyncLLM, "remove_lora"), "vLLM: AsyncLLM.remove_lora moved"
    source = inspect.getsource(OpenAIServingModels)
    for name in ("load_lora_adapter", "unload_lora_adapter", "lora_requests"):
        assert name in source, f"vLLM: OpenAIServingModels.{name} moved"
    assert {"lora_name", "lora_path"} <= set(LoadLoRAAdapterRequest.model_fields)
    assert "lora_name" in UnloadLoRAAdapterRequest.model_fields


@needs_vllm
def test_vllm_has_the_version_of_the_engine() -> None:
    # the package of the CPU build has another name, so its metadata cannot be read as that of vLLM
    import vllm

    assert vllm.__version__.startswith(f"{VLLM_VERSION}."), (
        "check serving/engines/vllm_server.py against the installed vLLM, then set VLLM_VERSION "
        f"({VLLM_VERSION})"
    )


@needs_vllm
def test_vllms_client_has_the_parts_that_the_engine_uses() -> None:
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessor

    assert hasattr(AsyncLLM, "shutdown"), "vLLM: AsyncLLM.shutdown moved"
    source = inspect.getsource(AsyncLLM)
    for name in ("model_config", "output_processor"):
        assert f"self.{name}" in source, f"vLLM: AsyncLLM.{name} moved"
    assert hasattr(OutputProcessor, "has_unfinished_requests"), (
        "vLLM: OutputProcessor.has_unfinished_requests moved"
    )


@needs_vllm
def test_vllm_accepts_a_grammar() -> None:
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams

    grammar = 'root ::= "a"'
    sampling = SamplingParams(structured_outputs=StructuredOutputsParams(grammar=grammar))
    assert sampling.structured_outputs.grammar == grammar, (
        "vLLM: StructuredOutputsParams.grammar moved"
    )


@needs_vllm
def test_a_completion_request_has_the_fields_that_the_engine_sets() -> None:
    from ray.serve.llm.openai_api_models import CompletionRequest

    for name in (
        "model",
        "return_token_ids",
        "return_tokens_as_token_ids",
        *TokenRequest.__dataclass_fields__,
    ):
        assert name in CompletionRequest.model_fields, f"vLLM: CompletionRequest.{name} moved"
