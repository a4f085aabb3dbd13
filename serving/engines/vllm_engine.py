"""Chat engine on vLLM, for `serving.engine: vllm`: the server of `ray.serve.llm` as a chat engine.

Each version has a server in a separate actor, in the placement group of the replica. The server has no method that ends
it, so its actor is killed. A replica keeps two versions on its GPU while one replaces the other.

This is the only file that uses private parts of vLLM, directly or through Ray. If another version of vLLM or Ray lacks
one of them, tests/unit/serving/engines/test_vllm_private.py fails with its name.
"""

import asyncio
import importlib.util
import json
import tempfile
import time
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from serving.engines.base_chat import Sampling
from serving.engines.language_model import LanguageModelEngine, Likelihood, Likelihoods
from serving.http.schemas import RequestError
from serving.version_checks import require_digest

if TYPE_CHECKING:
    from tailorbird.models.loading import LoadedChat
    from tailorbird.registry.versions import ModelVersion

VLLM_VERSION = "0.29"
GPU_SHARE = 0.42  # share of a GPU and its memory per version; two versions are loaded during a replacement
MAX_SERVERS_PER_GPU = 2
CACHE_BYTES = 1 << 30  # size of the KV cache without a GPU, instead of a share of the machine's memory
START_S = 1800  # timeout of the start, during which a large model's kernels are compiled
SHUTDOWN_S = 30
STREAM_INTERVAL_S = 0.02  # tokens that are generated within this time are streamed together
HEALTH_CHECK_S = 1.0  # time between two health checks of the server
MODEL_ID = "version"
LlmConfig = dict[str, Any]  # fields of Ray's `LLMConfig`, which needs vLLM to be installed
FINISH_REASONS = ("stop", "length")  # finish reasons of complete answers

_servers: set[Any] = set()  # running servers that this process started


class EngineNotInstalled(RuntimeError):
    """vLLM is not installed on the replica's node."""


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

    prompt: list[int]
    stream: bool
    temperature: float
    top_p: float
    seed: int | None
    max_tokens: int
    stop_token_ids: list[int]
    logprobs: int | None
    """Number of most likely tokens whose log-probabilities are returned, with that of each token; None for none."""


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

    async def start(self) -> int:
        """Start the engine, and return the maximum number of tokens of a prompt and its answer."""
        await self._server.start()
        return int(self._client.model_config.max_model_len)

    @property
    def _client(self) -> Any:
        """Return vLLM's engine client, for which the server has no public attribute."""
        return self._server.engine._engine_client

    async def run(self) -> None:
        """Check the engine's health periodically; raise an error when it has stopped."""
        while True:
            await self._server.check_health()
            await asyncio.sleep(HEALTH_CHECK_S)

    async def stop(self) -> None:
        """Stop the engine's processes, which release their shared memory."""
        await asyncio.to_thread(self._client.shutdown)

    async def answer(self, request: TokenRequest) -> AsyncGenerator[TokenDelta, None]:
        """Yield the answer's tokens. Raises EngineStopped, and ValueError if the server rejects the request."""
        from ray.serve.llm.openai_api_models import CompletionRequest

        options = {"return_token_ids": True, "return_tokens_as_token_ids": True}
        completion = CompletionRequest(model=MODEL_ID, **options, **asdict(request))
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


def _token_delta(response: Any) -> TokenDelta | None:
    """Return the tokens of a complete answer or of a list of stream events, or None if there are none.

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
    return TokenDelta(tokens, ended, likelihoods) if tokens or ended else None


def _likelihoods(logprobs: Any) -> list[Likelihood]:
    """Return the log-probabilities of a choice, whose tokens have the form `token_id:7`."""

    def id_of(token: str) -> int:
        return int(token.rpartition(":")[2])

    if not logprobs:
        return []
    columns = (logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
    return [
        Likelihood(
            id_of(token),
            logprob,
            tuple(sorted(((id_of(name), value) for name, value in likely.items()), key=lambda pair: -pair[1])),
        )
        for token, logprob, likely in zip(*columns, strict=True)
    ]


def _event_fields(event: Any) -> Any:
    if not isinstance(event, str):
        return event.model_dump()
    data = event.removeprefix("data: ").strip()
    return {} if data == "[DONE]" else json.loads(data)


class VllmEngine(LanguageModelEngine):
    """An engine whose version runs in a separate server, which batches all active requests."""

    def __init__(self, loaded: "LoadedChat[ModelVersion]", *, server: Any, max_length: int) -> None:
        super().__init__(loaded)
        self._server = server
        self._running: Future[None] = server.run.remote().future()
        self._running.add_done_callback(lambda _: _servers.discard(server))
        self.max_length = max_length

    @property
    def running(self) -> bool:
        return not self._running.done()

    def end(self) -> None:
        _stop_server(self._server)
        self._running.exception(SHUTDOWN_S)

    async def generate(
        self,
        prompt: list[int],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        streaming: bool,
        likelihoods: Likelihoods | None = None,
    ) -> AsyncGenerator[tuple[list[int], bool], None]:
        request = TokenRequest(
            prompt,
            stream=streaming,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed % 2**63 if sampling.temperature else None,
            max_tokens=max_new_tokens,
            stop_token_ids=[self.end_id],
            logprobs=None if likelihoods is None else likelihoods.num_likely,
        )
        tokens: list[int] = []
        ended = False
        deltas = self._server.answer.remote(request)
        try:
            async for delta in deltas:
                new_tokens, ended, new_likelihoods = await delta
                if likelihoods is not None:
                    likelihoods.add(new_likelihoods)
                tokens += new_tokens
                yield list(tokens), ended
        except RayTaskError as error:
            if isinstance(error.cause, EngineStopped) or not self.running:
                raise _stopped_error() from None
            message = f"the engine failed to answer the request: {error.cause}"
            raise RequestError(500, "engine_failed", message) from None
        except RayActorError:
            raise _stopped_error() from None
        finally:
            if not ended:  # the client has disconnected
                ray.cancel(deltas)


def _stopped_error() -> RequestError:
    return RequestError(503, "engine_stopped", "the model's engine has stopped; the replica is being replaced")


def load_engine(uri: str, digest: str, *, max_batch_size: int, num_gpus: int) -> VllmEngine:
    """Load a version, check its digest and start its server. Raises the errors of `load_model` and `start_engine`."""
    from tailorbird.models.loading import LoadedChat, load_model

    loaded = load_model(uri, LoadedChat, device="cpu")
    require_digest(loaded.version, digest=digest)
    return start_engine(loaded, max_batch_size=max_batch_size, num_gpus=num_gpus)


def start_engine(loaded: "LoadedChat[ModelVersion]", *, max_batch_size: int, num_gpus: int = 0) -> VllmEngine:
    """Start a server for a version. An adapter is merged into the weights, as in the evaluation.

    Raises EngineNotInstalled, and RuntimeError if the server does not start or the GPU has no room for the version.
    """
    if importlib.util.find_spec("vllm") is None:
        raise EngineNotInstalled(
            "serving.engine is vllm, but vLLM is not installed on the replica's node; run pip install --editable "
            "'.[gpu]' in the project's folder on the node, or omit serving.engine"
        )
    if num_gpus:
        _wait_for_capacity()
    with tempfile.TemporaryDirectory(prefix="tailorbird-vllm-") as folder:
        lm: Any = loaded.model.lm
        lm.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        engine_kwargs = {"dtype": loaded.version.dtype, "max_num_seqs": max_batch_size}
        config, env_vars = _llm_config(folder, engine_kwargs=engine_kwargs, num_gpus=num_gpus)
        actor = ray.remote(num_cpus=0, runtime_env={"env_vars": env_vars})(VllmServer)
        server = actor.remote(config)
        _servers.add(server)
        try:
            max_length = ray.get(server.start.remote(), timeout=START_S)
        except RayError as error:
            _stop_server(server)
            cause = error.cause if isinstance(error, RayTaskError) else error
            raise RuntimeError(f"vLLM cannot start version {loaded.version.version}: {cause}") from None
    return VllmEngine(loaded, server=server, max_length=max_length)


def _wait_for_capacity() -> None:
    """If the GPU is full, wait until a server ends; raise RuntimeError if none ends in time."""
    started = time.monotonic()
    while len(_servers) >= MAX_SERVERS_PER_GPU:
        if time.monotonic() - started > SHUTDOWN_S:
            raise RuntimeError(
                f"the GPU already has {MAX_SERVERS_PER_GPU} versions, the maximum; remove the challenger first"
            )
        time.sleep(0.2)


def _stop_server(server: Any) -> None:
    with suppress(RayError):
        ray.get(server.stop.remote(), timeout=SHUTDOWN_S)
    ray.kill(server)
    _servers.discard(server)


def _llm_config(folder: str, *, engine_kwargs: LlmConfig, num_gpus: int) -> tuple[LlmConfig, dict[str, str]]:
    """Return the server's config for the model in a folder, and the environment of its actor."""
    engine_kwargs |= {
        "generation_config": "vllm",  # ignore generation defaults in the model's files
        "disable_log_stats": True,
    }
    env_vars = {"VLLM_NO_USAGE_STATS": "1"}  # vLLM must not send usage statistics
    if num_gpus:
        hardware: LlmConfig = {"placement_group_config": {"bundles": [{"GPU": GPU_SHARE}]}}
        engine_kwargs["gpu_memory_utilization"] = GPU_SHARE
        env_vars["VLLM_RAY_PER_WORKER_GPUS"] = str(GPU_SHARE)
    else:
        hardware = {"accelerator_config": {"kind": "cpu"}}
        engine_kwargs["kv_cache_memory_bytes"] = CACHE_BYTES
    config = {
        "model_loading_config": {"model_id": MODEL_ID, "model_source": folder},
        "engine_kwargs": engine_kwargs,
        "log_engine_metrics": False,
        "experimental_configs": {"stream_batching_interval_ms": 0},  # `VllmServer.answer` batches without a timer
    }
    return config | hardware, env_vars
