"""A server of `ray.serve.llm`, and vLLM's offline engine, that have token ids as input and output.

This is the only file that uses private parts of vLLM, directly or through Ray. If another version
of vLLM or Ray lacks one of them, tests/unit/serving/engines/test_vllm_private.py fails with its
name.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from serving.engines.language_model import Likelihood

VLLM_VERSION = "0.29"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # possible values of vLLM's `max_lora_rank`
# size of the KV cache without a GPU, instead of a share of the machine's memory
CACHE_BYTES = 1 << 30
STREAM_INTERVAL_S = 0.02  # tokens that are generated within this time are streamed together
HEALTH_CHECK_S = 1.0  # time between two health checks of the server
LlmConfig = dict[str, Any]  # fields of Ray's `LLMConfig`, which needs vLLM to be installed
IMPOSSIBLE = -9999.0  # vLLM's log-probability of a token that the grammar does not allow
FINISH_REASONS = ("stop", "length")  # finish reasons of complete answers
EXCLUDED = -100.0  # smallest logit bias of vLLM
GUARD = """
import contextlib, signal, sys
sys.stdin.read()
for process in sys.argv[1:]:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(int(process), signal.SIGKILL)
"""
"""A program that waits for the end of its input, which comes when its parent dies, and then kills
processes by file descriptor."""


class TokenDelta(NamedTuple):
    """The new tokens of an answer."""

    tokens: list[int]
    ended: bool
    likelihoods: list[Likelihood]
    """Of the tokens; empty if the request has no `logprobs`."""


class EngineStopped(RuntimeError):
    """The server of an engine has stopped."""


@dataclass(frozen=True)
class TokenRequest:
    """The fields of a `CompletionRequest` that this engine sets."""

    model: str
    """The served name of the base model, or the name of an adapter."""
    prompt: list[int]
    stream: bool
    temperature: float
    top_p: float
    seed: int | None
    max_tokens: int
    stop_token_ids: list[int]
    logprobs: int | None
    """Number of most likely tokens whose log-probabilities are returned, with that of each token;
    None for none."""
    structured_outputs: dict[str, str] | None = None
    """Grammar of the answer, as `{"grammar": ...}` in EBNF; None for any text."""


@dataclass(frozen=True)
class ServerOptions:
    """The model and the hardware of an engine."""

    name: str
    """Served name of the model, which is a label of vLLM's metrics."""
    folder: str
    """Folder with the model in the format of the Hugging Face Hub."""
    dtype: str
    max_batch_size: int
    max_lora_rank: int = 0
    """Maximum rank of adapters; 0 for an engine without adapters."""
    max_loras: int = 1
    """Maximum number of adapters in a batch, and in memory."""
    num_gpus: float = 0
    gpu_share: float = 0.0
    """Share of each GPU's memory that the engine uses."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """`serving.engine_options` of the recipe."""

    def engine_kwargs(self) -> dict[str, Any]:
        """Return the fields of vLLM's `EngineArgs`, except the model and its folder."""
        kwargs: dict[str, Any] = {
            "dtype": self.dtype,
            "max_num_seqs": self.max_batch_size,
            "generation_config": "vllm",  # ignore generation defaults in the model's files
            "load_format": "safetensors",  # never unpickle weights
        }
        if self.num_gpus:
            kwargs["gpu_memory_utilization"] = self.gpu_share
            kwargs["tensor_parallel_size"] = max(1, int(self.num_gpus))
        else:
            kwargs["kv_cache_memory_bytes"] = CACHE_BYTES
        if self.max_lora_rank:
            rank = next((rank for rank in LORA_RANKS if rank >= self.max_lora_rank), None)
            if rank is None:
                raise ValueError(
                    f"vLLM serves adapters of rank up to {LORA_RANKS[-1]}, not "
                    f"{self.max_lora_rank}; train with a lower training.lora_r"
                )
            kwargs |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": self.max_loras}
        return kwargs | dict(self.options)


def llm_config(options: ServerOptions) -> tuple[LlmConfig, dict[str, str]]:
    """Return the server's `LLMConfig`, and the environment of its actor."""
    env_vars = {"VLLM_NO_USAGE_STATS": "1"}  # vLLM must not send usage statistics
    if options.num_gpus:
        worker_gpus = options.gpu_share
        bundles = [{"GPU": worker_gpus}] * max(1, int(options.num_gpus))
        hardware: LlmConfig = {
            "placement_group_config": {"bundles": bundles, "strategy": "STRICT_PACK"}
        }
        env_vars["VLLM_RAY_PER_WORKER_GPUS"] = str(worker_gpus)
    else:
        hardware = {"accelerator_config": {"kind": "cpu"}}
    config = {
        "model_loading_config": {"model_id": options.name, "model_source": options.folder},
        "engine_kwargs": options.engine_kwargs() | {"disable_log_stats": False},
        # vLLM's metrics are exported by Ray, with the prefix `ray_vllm_`
        "log_engine_metrics": True,
        "experimental_configs": {
            "stream_batching_interval_ms": 0
        },  # `VllmServer.answer` batches without a timer
    }
    return config | hardware, env_vars


class VllmServer:
    """An actor with a server of `ray.serve.llm` that has token ids as input and output."""

    def __init__(self, config: LlmConfig) -> None:
        from ray.serve.llm import LLMConfig
        from ray.serve.llm.deployment import LLMServer

        class ServerWithoutReports(LLMServer):  # type: ignore[misc]
            """A server without Ray's actor for usage statistics, which would outlive the server."""

            async def _start_engine(self) -> None:
                await self.engine.start()

        self._server = ServerWithoutReports.sync_init(LLMConfig(**config))
        self._excluded: dict[str, float] = {}
        self._guard: subprocess.Popen[bytes] | None = None

    async def start(self) -> int:
        """Start the engine, and return the maximum number of tokens of a prompt and its answer."""
        await self._server.start()
        self._guard = guard_children()
        self._excluded = {
            str(token): bias for token, bias in special_token_biases(self._client).items()
        }
        return int(self._client.model_config.max_model_len)

    @property
    def _client(self) -> Any:
        """Return vLLM's engine client, for which the server has no public attribute."""
        return self._server.engine._engine_client

    async def add_adapter(self, name: str, folder: str) -> None:
        """Load the LoRA adapter in a folder of this node. Raises ValueError if vLLM cannot use
        it."""
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        request = LoadLoRAAdapterRequest(lora_name=name, lora_path=folder)
        result = await self._models.load_lora_adapter(request)
        if not isinstance(result, str):  # an `ErrorResponse`
            raise ValueError(result.error.message)

    async def remove_adapter(self, name: str) -> None:
        """Unload an adapter. No request may use it."""
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        adapter_id = self._models.lora_requests[name].lora_int_id
        await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))
        await self._client.remove_lora(adapter_id)

    @property
    def _models(self) -> Any:
        """Return vLLM's registry of the base model and its adapters."""
        return self._server.engine._oai_models

    async def run(self) -> None:
        """Check the engine's health periodically; raise an error when it has stopped."""
        while True:
            await self._server.check_health()
            await asyncio.sleep(HEALTH_CHECK_S)

    async def stop(self) -> None:
        """Stop the engine's processes, which release their shared memory."""
        if self._guard is not None:
            self._guard.kill()
        await asyncio.to_thread(self._client.shutdown)

    async def answer(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        """Yield the answer's tokens. Raises EngineStopped, and ValueError if the server rejects the
        request."""
        from ray.serve.llm.openai_api_models import CompletionRequest

        options: dict[str, Any] = {"return_token_ids": True, "return_tokens_as_token_ids": True}
        if request.structured_outputs is not None and self._excluded:
            options["logit_bias"] = self._excluded
        completion = CompletionRequest(**options, **asdict(request))
        try:
            async for response in await self._server.completions(completion):
                delta = _token_delta(response)
                if delta is not None:
                    yield delta
                    if not delta.ended:
                        await asyncio.sleep(STREAM_INTERVAL_S)
        except Exception:
            try:
                await self._server.check_health()
            except Exception as error:
                raise EngineStopped(str(error)) from None
            raise


def guard_children() -> subprocess.Popen[bytes]:
    """Start a process that kills this process's current children when this process dies.

    Without it, vLLM's processes would keep running, and keep the GPU's memory, if their actor is
    killed.
    """
    children = list[int]()
    try:
        for child in psutil.Process().children(recursive=True):
            with suppress(ProcessLookupError):  # it has ended
                children.append(os.pidfd_open(child.pid))
        command = [sys.executable, "-S", "-c", GUARD, *map(str, children)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, pass_fds=children, start_new_session=True
        )
    finally:
        for descriptor in children:
            os.close(descriptor)


def special_token_biases(engine: Any) -> dict[int, float]:
    """Return the logit biases of an answer in a format, which exclude the special tokens of an
    engine's tokenizer.

    In vLLM's grammars, the text of a special token is its name, but in the answer it has none. The
    end token has no bias, because grammars allow it only at the end. There are no biases with
    speculative decoding, which does not support them, and with tokenizers of other libraries than
    transformers.
    """
    if engine.vllm_config.speculative_config is not None:
        return {}
    tokenizer = engine.renderer.tokenizer
    vocab_size = engine.model_config.get_vocab_size()
    return {
        token: EXCLUDED
        for token, added in getattr(tokenizer, "added_tokens_decoder", {}).items()
        if added.special and token != tokenizer.eos_token_id and token < vocab_size
    }


def _token_delta(response: Any) -> TokenDelta | None:
    """Return the tokens of a complete answer or of a list of stream events, or None if there are
    none.

    A stream event is a string `data: {...}` or an error object. Raises ValueError for an error.
    """
    tokens: list[int] = []
    likelihoods: list[Likelihood] = []
    ended = False
    for event in response if isinstance(response, list) else [response]:
        fields = _event_fields(event)
        if fields.get("error"):
            raise ValueError(fields["error"]["message"])
        for choice in fields.get("choices", ()):
            tokens += choice["token_ids"] or []
            likelihoods += _likelihoods(choice.get("logprobs"))
            reason = choice["finish_reason"]
            if reason not in (None, *FINISH_REASONS):
                raise ValueError(f"the generation failed ({reason})")
            ended = ended or reason is not None
    if tokens or ended:
        return TokenDelta(tokens, ended, likelihoods)
    return None


def _likelihoods(logprobs: Any) -> list[Likelihood]:
    """Return the log-probabilities of a choice, whose tokens have the form `token_id:7`."""

    def token_id(name: str) -> int:
        return int(name.rpartition(":")[2])

    if not logprobs:
        return []
    likelihoods = []
    columns = (logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
    for token, logprob, likely in zip(*columns, strict=True):
        possible = [(token_id(name), value) for name, value in likely.items() if value > IMPOSSIBLE]
        possible.sort(key=lambda pair: -pair[1])
        likelihoods.append(Likelihood(token_id(token), logprob, tuple(possible)))
    return likelihoods


def _event_fields(event: Any) -> Any:
    if not isinstance(event, str):
        return event.model_dump()
    data = event.removeprefix("data: ").strip()
    if data == "[DONE]":
        return {}
    return json.loads(data)


class OfflineEngine:
    """vLLM's offline engine in this process, for answers that nobody waits for."""

    def __init__(self, options: ServerOptions, *, adapter: Path | None) -> None:
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        # A process of its own would outlive a worker that is killed.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        kwargs = options.engine_kwargs() | {
            "logprobs_mode": "processed_logprobs"
        }  # without excluded tokens
        self._llm = LLM(model=options.folder, disable_log_stats=True, **kwargs)
        self._excluded = special_token_biases(self._llm.llm_engine)
        if adapter is None:
            self._adapter = None
        else:
            self._adapter = LoRARequest("adapter", 1, str(adapter))
        self.max_length = int(self._llm.model_config.max_model_len)

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        end_id: int,
        grammar: str | None = None,
    ) -> list[tuple[list[int], list[float]]]:
        """Return the tokens of each answer, with the end token, and the log-probability of each in
        nats.

        The answers follow `grammar`, in EBNF, if it is set.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            stop_token_ids=[end_id],
            logprobs=0,
            detokenize=False,
            structured_outputs=None
            if grammar is None
            else StructuredOutputsParams(grammar=grammar),
            logit_bias=None if grammar is None else self._excluded,
        )
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            sampling,
            lora_request=self._adapter,
            use_tqdm=False,
        )
        answers = []
        for output in outputs:
            [answer] = output.outputs
            tokens = list(answer.token_ids)
            logprobs = [
                float(by_token[token].logprob)
                for token, by_token in zip(tokens, answer.logprobs, strict=True)
            ]
            answers.append((tokens, logprobs))
        return answers
