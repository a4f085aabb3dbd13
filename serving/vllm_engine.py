"""Behind a chat replica where `serving.engine` is `vllm`: the server of `ray.serve.llm`, with the face of `ChatEngine`.

Each version has a server in an actor of its own, on the replica's node and in its resources. The server has no method
that ends it, and takes the GPU of its placement group, while a replica holds two versions as one replaces the other: so
the actor ends, and the server with it. Routes, keys, limits, log, metrics, canary, parity gate and changes of version
stay the replica's, and are the same for both engines.
"""

import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from serving.generate import ChatEngine, Sampling
from serving.protocol import RequestError
from serving.replica import require_digest

if TYPE_CHECKING:
    from models.load import LoadedChat
    from models.registry import ModelVersion

GPU_SHARE = 0.42
"""Of a GPU and its memory, for one version: while another replaces it, a replica holds both."""
CACHE_BYTES = 1 << 30
"""For keys and values where there is no GPU, instead of a share of the machine."""
START_S = 1800
"""A large model's kernels are compiled before its first answer."""
END_S = 30
STREAM_S = 0.02
"""What a stream says in this time comes in one piece."""
LOOK_S = 1.0
"""Between two looks at whether the server is well."""
UNSAID_LENGTH = 2048
"""Tokens of a prompt and its answer, where the model's configuration names no positions."""
MODEL_ID = "version"


class EngineMissing(RuntimeError):
    """vLLM is not installed where the replica runs."""


class Piece(NamedTuple):
    """What an answer grew by."""

    tokens: list[int]
    ended: bool


class Server:
    """The actor: a server of `ray.serve.llm`, asked in token ids."""

    def __init__(self, config: dict[str, Any]) -> None:
        from ray.serve.llm import LLMConfig
        from ray.serve.llm.deployment import LLMServer

        self._server = LLMServer.sync_init(LLMConfig(**config))

    async def start(self) -> None:
        await self._server.start()

    async def run(self) -> None:
        """Never returns; raises where the engine has stopped."""
        while True:
            await self._server.check_health()
            await asyncio.sleep(LOOK_S)

    async def answer(self, asked: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        """`asked` are fields of a `CompletionRequest`. Raises ValueError where the server refuses it."""
        from ray.serve.llm.openai_api_models import CompletionRequest

        request = CompletionRequest(model=MODEL_ID, return_token_ids=True, **asked)
        async for said in await self._server.completions(request):
            events = [_parsed(event) for event in said] if isinstance(said, list) else [said.model_dump()]
            tokens: list[int] = []
            ended = False
            for event in events:
                if event.get("error"):
                    raise ValueError(event["error"]["message"])
                for choice in event.get("choices", ()):
                    tokens += choice["token_ids"] or []
                    ended = ended or choice["finish_reason"] is not None
            if tokens or ended:
                yield Piece(tokens, ended)


def _parsed(event: Any) -> dict[str, Any]:
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
        self.max_length = max_length

    @property
    def running(self) -> bool:
        return not self._running.done()

    def end(self) -> None:
        ray.kill(self._server)
        self._running.exception(END_S)

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
            if not self.running:
                raise _stopped() from None
            raise RequestError(500, "engine_failed", f"the engine gave up on the request: {error.cause}") from None
        except RayActorError:
            raise _stopped() from None
        finally:
            if not ended:  # nobody waits any more
                ray.cancel(pieces)


def _stopped() -> RequestError:
    return RequestError(503, "engine_stopped", "the model's engine has stopped; the replica is being replaced")


def load_engine(uri: str, digest: str, *, max_batch_size: int, num_gpus: int) -> VllmEngine:
    """The version in a server, checked as everywhere; raises EngineMissing, or as `models.load.load_chat_version`."""
    from models.load import load_chat_version

    loaded = load_chat_version(uri, device="cpu")
    require_digest(loaded.version, digest=digest)
    return start(loaded, max_batch_size=max_batch_size, num_gpus=num_gpus)


def start(loaded: "LoadedChat[ModelVersion]", *, max_batch_size: int, num_gpus: int = 0) -> VllmEngine:
    """A server over a version of any kind: it reads a folder with an adapter's update merged, as it was evaluated."""
    try:
        import ray.serve.llm
    except ImportError as error:
        raise EngineMissing(
            f"serving.engine is vllm, which the cluster does not have ({error}): pip install --editable '.[gpu]' in "
            "the project's folder there, or leave serving.engine out"
        ) from None
    with tempfile.TemporaryDirectory(prefix="tailorbird-vllm-") as folder:
        lm: Any = loaded.model.lm
        lm.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        max_length = getattr(lm.config.get_text_config(), "max_position_embeddings", None) or UNSAID_LENGTH
        engine = {"dtype": loaded.version.dtype, "max_num_seqs": max_batch_size, "max_model_len": max_length}
        config, env_vars = _config(folder, engine=engine, num_gpus=num_gpus)
        actor = ray.remote(num_cpus=0, runtime_env={"env_vars": env_vars})(Server)
        server = actor.remote(config)
        try:
            ray.get(server.start.remote(), timeout=START_S)
        except RayError:
            ray.kill(server)
            raise
    return VllmEngine(loaded, server=server, max_length=max_length)


def _config(folder: str, *, engine: dict[str, Any], num_gpus: int) -> tuple[dict[str, Any], dict[str, str]]:
    """`LLMConfig`'s fields for the model in a folder, and the environment of the actor."""
    engine |= {
        "generation_config": "vllm",  # what is asked for, and nothing that a model's files would add
        "disable_log_stats": True,
    }
    env_vars = {"VLLM_NO_USAGE_STATS": "1"}  # nothing leaves the cluster
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
        "experimental_configs": {"stream_batching_interval_ms": 1000 * STREAM_S},
    }
    return config | placed, env_vars
