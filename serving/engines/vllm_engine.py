"""Behind a chat replica where `serving.engine` is `vllm`: the server of `ray.serve.llm`, with the face of `ChatEngine`.

Each version has a server in an actor of its own, on the replica's node and in its resources. The server has no method
that ends it, and takes the GPU of its placement group, while a replica holds two versions as one replaces the other: so
the actor ends, and the server with it. Routes, keys, limits, log, metrics, canary, parity gate and changes of version
stay the replica's, and are the same for both engines.
"""

import asyncio
import importlib.util
import json
import tempfile
import time
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from serving.engines.base_chat import ChatEngine, Sampling
from serving.http.schemas import RequestError
from serving.version_checks import require_digest

if TYPE_CHECKING:
    from tailorbird.models.loading import LoadedChat
    from tailorbird.registry.versions import ModelVersion

GPU_SHARE = 0.42
"""Of a GPU and its memory, for one version: while another replaces it, a replica holds both."""
MAX_SERVERS_PER_GPU = 2
CACHE_BYTES = 1 << 30
"""For keys and values where there is no GPU, instead of a share of the machine."""
START_S = 1800
"""A large model's kernels are compiled before its first answer."""
SHUTDOWN_S = 30
STREAM_INTERVAL_S = 0.02
"""What a stream says in this time comes in one piece."""
HEALTH_CHECK_S = 1.0
"""Between two looks at whether the server is well."""
MODEL_ID = "version"
FINISH_REASONS = ("stop", "length")
"""Why a whole answer ends."""

_servers: set[Any] = set()
"""This process's servers."""


class EngineNotInstalled(RuntimeError):
    """vLLM is not installed where the replica runs."""


class TokenDelta(NamedTuple):
    """What an answer grew by."""

    tokens: list[int]
    ended: bool


class EngineStopped(RuntimeError):
    """The server's engine has stopped."""


class VllmServer:
    """The actor: a server of `ray.serve.llm`, asked in token ids."""

    def __init__(self, config: dict[str, Any]) -> None:
        from ray.serve.llm import LLMConfig
        from ray.serve.llm.deployment import LLMServer

        class Quiet(LLMServer):  # type: ignore[misc]
            """Without an actor that outlives all servers to tell Ray's usage statistics of the model."""

            async def _start_engine(self) -> None:
                await self.engine.start()

        self._server = Quiet.sync_init(LLMConfig(**config))

    async def start(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        await self._server.start()
        return int(self._client.model_config.max_model_len)

    @property
    def _client(self) -> Any:
        """vLLM's, of which the server has no public word."""
        return self._server.engine._engine_client

    async def run(self) -> None:
        """Never returns; raises where the engine has stopped."""
        while True:
            await self._server.check_health()
            await asyncio.sleep(HEALTH_CHECK_S)

    async def stop(self) -> None:
        """Ends the engine's processes, which then give back their shared memory."""
        await asyncio.to_thread(self._client.shutdown)

    async def answer(self, asked: dict[str, Any]) -> AsyncGenerator[TokenDelta, None]:
        """`asked` are fields of a `CompletionRequest`. Raises EngineGone, and ValueError where the server refuses."""
        from ray.serve.llm.openai_api_models import CompletionRequest

        request = CompletionRequest(model=MODEL_ID, return_token_ids=True, **asked)
        try:
            async for said in await self._server.completions(request):
                piece = _token_delta(said)
                if piece is not None:
                    yield piece
                    if not piece.ended:
                        await asyncio.sleep(STREAM_INTERVAL_S)
        except Exception:
            try:
                await self._server.check_health()
            except Exception as error:
                raise EngineStopped(str(error)) from None
            raise


def _token_delta(said: Any) -> TokenDelta | None:
    """Of a whole answer, or of a stream's events; None where no token came. ValueError for an error."""
    events = [_event_fields(event) for event in said] if isinstance(said, list) else [said.model_dump()]
    tokens: list[int] = []
    ended = False
    for event in events:
        if event.get("error"):
            raise ValueError(event["error"]["message"])
        for choice in event.get("choices", ()):
            tokens += choice["token_ids"] or []
            reason = choice["finish_reason"]
            if reason not in (None, *FINISH_REASONS):
                raise ValueError(f"the answer broke off ({reason})")
            ended = ended or reason is not None
    return TokenDelta(tokens, ended) if tokens else None


def _event_fields(event: Any) -> dict[str, Any]:
    """One of a stream's, which is a text `data: {...}`, or an error as it is."""
    if not isinstance(event, str):
        return dict(event.model_dump())
    data = event.removeprefix("data: ").strip()
    return {} if data == "[DONE]" else dict(json.loads(data))


class VllmEngine(ChatEngine):
    """A version in a server of its own, which batches all requests in flight."""

    def __init__(self, loaded: "LoadedChat[ModelVersion]", *, server: Any, max_length: int) -> None:
        super().__init__(version=loaded.version, tokenizer=loaded.tokenizer, prompting=loaded.prompting)
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
        self, prompt: list[int], *, max_new_tokens: int, sampling: Sampling, streaming: bool
    ) -> AsyncGenerator[tuple[list[int], bool], None]:
        asked = {
            "prompt": prompt,
            "stream": streaming,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed % 2**63 if sampling.temperature else None,
            "max_tokens": max_new_tokens,
            "stop_token_ids": [self.end_id],
        }
        tokens: list[int] = []
        ended = False
        pieces = self._server.answer.remote(asked)
        try:
            async for piece in pieces:
                new, ended = await piece
                tokens += new
                yield list(tokens), ended
        except RayTaskError as error:
            if isinstance(error.cause, EngineStopped) or not self.running:
                raise _stopped_error() from None
            raise RequestError(500, "engine_failed", f"the engine gave up on the request: {error.cause}") from None
        except RayActorError:
            raise _stopped_error() from None
        finally:
            if not ended:  # nobody waits any more
                ray.cancel(pieces)


def _stopped_error() -> RequestError:
    return RequestError(503, "engine_stopped", "the model's engine has stopped; the replica is being replaced")


def load_engine(uri: str, digest: str, *, max_batch_size: int, num_gpus: int) -> VllmEngine:
    """The version in a server, checked as everywhere; raises as `start_engine`, or as `models.load.load_chat_version`."""
    from tailorbird.models.loading import load_chat_version

    loaded = load_chat_version(uri, device="cpu")
    require_digest(loaded.version, digest=digest)
    return start_engine(loaded, max_batch_size=max_batch_size, num_gpus=num_gpus)


def start_engine(loaded: "LoadedChat[ModelVersion]", *, max_batch_size: int, num_gpus: int = 0) -> VllmEngine:
    """A server over a version of any kind: it reads a folder with an adapter's update merged, as it was evaluated.

    Raises EngineMissing, and RuntimeError where the server does not start, or a GPU holds as many as it can.
    """
    if importlib.util.find_spec("vllm") is None:
        raise EngineNotInstalled(
            "serving.engine is vllm, which the cluster does not have: pip install --editable '.[gpu]' in the project's "
            "folder there, or leave serving.engine out"
        )
    if num_gpus:
        _wait_for_capacity()
    with tempfile.TemporaryDirectory(prefix="tailorbird-vllm-") as folder:
        lm: Any = loaded.model.lm
        lm.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        engine = {"dtype": loaded.version.dtype, "max_num_seqs": max_batch_size}
        config, env_vars = _llm_config(folder, engine=engine, num_gpus=num_gpus)
        actor = ray.remote(num_cpus=0, runtime_env={"env_vars": env_vars})(VllmServer)
        server = actor.remote(config)
        _servers.add(server)
        try:
            max_length = ray.get(server.start.remote(), timeout=START_S)
        except RayError as error:
            _stop_server(server)
            why = error.cause if isinstance(error, RayTaskError) else error
            raise RuntimeError(f"vLLM does not start with {loaded.version.version}: {why}") from None
    return VllmEngine(loaded, server=server, max_length=max_length)


def _wait_for_capacity() -> None:
    """Waits for a server that is just ending; RuntimeError where none does."""
    begun = time.monotonic()
    while len(_servers) >= MAX_SERVERS_PER_GPU:
        if time.monotonic() - begun > SHUTDOWN_S:
            raise RuntimeError(f"a GPU holds {MAX_SERVERS_PER_GPU} versions at a time, and does: end the trial first")
        time.sleep(0.2)


def _stop_server(server: Any) -> None:
    with suppress(RayError):
        ray.get(server.stop.remote(), timeout=SHUTDOWN_S)
    ray.kill(server)
    _servers.discard(server)


def _llm_config(folder: str, *, engine: dict[str, Any], num_gpus: int) -> tuple[dict[str, Any], dict[str, str]]:
    """`LLMConfig`'s fields for the model in a folder, and the environment of the actor."""
    engine |= {
        "generation_config": "vllm",  # what is asked for, and nothing that a model's files would add
        "disable_log_stats": True,
    }
    env_vars = {"VLLM_NO_USAGE_STATS": "1"}  # else vLLM tells its makers of the model and the machine
    if num_gpus:
        placed: dict[str, Any] = {"placement_group_config": {"bundles": [{"GPU": GPU_SHARE}]}}
        engine["gpu_memory_utilization"] = GPU_SHARE
        env_vars["VLLM_RAY_PER_WORKER_GPUS"] = str(GPU_SHARE)
    else:
        placed = {"accelerator_config": {"kind": "cpu"}}
        engine["kv_cache_memory_bytes"] = CACHE_BYTES
    config = {
        "model_loading_config": {"model_id": MODEL_ID, "model_source": folder},
        "engine_kwargs": engine,
        "log_engine_metrics": False,
        "experimental_configs": {"stream_batching_interval_ms": 0},  # `Server.answer` gathers without a timer a stream
    }
    return config | placed, env_vars
