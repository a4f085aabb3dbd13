"""Chat engines on vLLM, for `serving.engine: vllm`.

A server is a separate actor in the placement group of the replica. It holds one base model, on
which adapters and baselines with this base model are served together, or the weights of one
version. The server has no method that ends it, so its actor is killed.
"""

import importlib.util
import json
import logging
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from serving.engines.language_model import (
    Generation,
    LanguageModelEngine,
    engine_failed,
    engine_stopped,
    refused_format,
)
from serving.engines.vllm_server import (
    EngineStopped,
    ServerOptions,
    TokenRequest,
    VllmServer,
    llm_config,
)
from serving.limits import FairSlots
from tailorbird.config.serving import ServingConfig
from tailorbird.models.grammar.compiler import FormatError, GrammarCompiler
from tailorbird.registry.shared_base import MAX_SELECTABLE

if TYPE_CHECKING:
    from tailorbird.models.loading import LoadedChat
    from tailorbird.registry.versions import ModelVersion

# share of a replica's part of a GPU per server; two servers run during a replacement
GPU_SHARE = 0.42
USABLE_SHARE = 0.9  # share of a GPU's memory that servers can use together
NOT_GENERATED = (
    "vLLM cannot generate an answer in it: the model's tokenizer lacks characters of the format, "
    "no grammar can be compiled, or the model's scores are not numbers"
)
START_S = 1800  # timeout of the start, during which a large model's kernels are compiled
ADAPTER_S = 300  # timeout of loading or removing an adapter
SHUTDOWN_S = 30
# in addition to the champion and the selectable versions: a challenger, a version in promotion
STAGED_ADAPTERS = 2
WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".gguf")

_log = logging.getLogger("ray.serve")


class EngineNotInstalled(RuntimeError):
    """vLLM is not installed on the replica's node."""


@dataclass(eq=False)
class _Server:
    """A running server and the number of engines that use it."""

    actor: Any
    options: ServerOptions
    base: str | None
    """Base model that adapters and baselines share; None for a server with the weights of one
    version."""
    max_length: int
    run: Future[None]
    slots: FairSlots
    """Slots of the answers of all engines on the server."""
    num_engines: int = 1

    @property
    def running(self) -> bool:
        return not self.run.done()

    def can_serve(self, version: "ModelVersion", *, lora_rank: int) -> bool:
        """Return True if a version whose adapter has this rank (0 without one) can share the
        server's base model."""
        return (
            self.running
            and self.base == version.base_model
            and self.options.dtype == version.dtype
            and lora_rank <= self.options.max_lora_rank
        )


class VllmPool:
    """The servers of a replica. Versions with the same base model and dtype share one."""

    def __init__(self, config: ServingConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._servers: list[_Server] = []
        self._num_adapters = 0

    def load(self, version: "ModelVersion") -> "VllmEngine":
        """Check the files of a version and return its engine. Make one call at a time.

        Raises the errors of `version_files`, EngineNotInstalled, and RuntimeError if no server
        starts or the GPU has no room for another one.
        """
        require_installed()
        files = version_files(version)
        if files.shares_base:
            server = self._acquire(version, lora_rank=files.lora_rank)
        else:
            server = None
        if server is None:
            with model_folder(files) as model:
                server = self._start(
                    files, options=server_options(files, config=self._config, folder=model)
                )
        try:
            adapter = self._add_adapter(server, version, files.adapter)
            return VllmEngine(files.loaded, pool=self, server=server, adapter=adapter)
        except BaseException:
            self.release(server)
            raise

    def _add_adapter(
        self, server: _Server, version: "ModelVersion", folder: Path | None
    ) -> str | None:
        """Load the adapter of a version, and return its name in the server; None without an
        adapter."""
        if folder is None:
            return None
        self._num_adapters += 1
        # a previous engine of the same version may still answer
        name = f"{version.version}-{self._num_adapters}"
        try:
            ray.get(server.actor.add_adapter.remote(name, str(folder)), timeout=ADAPTER_S)
        except RayError as error:
            raise RuntimeError(
                f"vLLM cannot load the adapter of version {version.version}: {_cause(error)}; if "
                "vLLM does not support it, train with method: full"
            ) from None
        return name

    def _acquire(self, version: "ModelVersion", *, lora_rank: int) -> _Server | None:
        """Return a running server on the version's base model for one more engine, or None."""
        with self._lock:
            for server in self._servers:
                if server.can_serve(version, lora_rank=lora_rank):
                    server.num_engines += 1
                    return server
        return None

    def _start(self, files: "VersionFiles", *, options: ServerOptions) -> _Server:
        """Return a new server for one engine."""
        version = files.loaded.version
        if options.num_gpus:
            self._wait_for_capacity(options)
        config, env_vars = llm_config(options)
        actor = ray.remote(num_cpus=0, runtime_env={"env_vars": env_vars})(VllmServer).remote(
            config
        )
        try:
            max_length = ray.get(actor.start.remote(), timeout=START_S)
        except RayError as error:
            _stop(actor)
            raise RuntimeError(
                f"vLLM cannot start version {version.version}: {_cause(error)}"
            ) from None
        server = _Server(
            actor=actor,
            options=options,
            base=version.base_model if files.shares_base else None,
            max_length=max_length,
            run=actor.run.remote().future(),
            slots=FairSlots(options.max_batch_size),
        )
        with self._lock:
            self._servers.append(server)
        return server

    def _wait_for_capacity(self, options: ServerOptions) -> None:
        """If the GPU is full, wait until a server ends; raise RuntimeError if none ends in time."""
        available = USABLE_SHARE * min(options.num_gpus, 1)
        most = max(1, int(available / options.gpu_share + 1e-6))
        started = time.monotonic()
        while self.num_running >= most:
            if time.monotonic() - started > SHUTDOWN_S:
                raise RuntimeError(
                    f"the replica's GPU memory holds {most} base model(s), each "
                    f"{options.gpu_share:.0%} of a GPU, and this version needs another one; remove "
                    "the challenger first, or lower serving.engine_options.gpu_memory_utilization"
                )
            time.sleep(0.2)

    @property
    def num_running(self) -> int:
        """Return the number of running servers."""
        with self._lock:
            self._servers = [server for server in self._servers if server.running]
            return len(self._servers)

    def release(self, server: _Server, *, adapter: str | None = None) -> None:
        """Remove an engine and its adapter from a server; stop the server after its last engine.
        This call blocks."""
        with self._lock:
            server.num_engines -= 1
            is_last = server.num_engines == 0
            if is_last and server in self._servers:
                self._servers.remove(server)
        if is_last:
            _stop(server.actor)
            with suppress(RayError):
                server.run.exception(SHUTDOWN_S)
        elif adapter is not None and server.running:
            with suppress(RayError):
                ray.get(server.actor.remove_adapter.remote(adapter), timeout=ADAPTER_S)


class VllmEngine(LanguageModelEngine):
    """An engine whose version runs in a separate server, which batches all active requests."""

    def __init__(
        self,
        loaded: "LoadedChat[ModelVersion]",
        *,
        pool: VllmPool,
        server: _Server,
        adapter: str | None,
    ) -> None:
        tokenizer = loaded.tokenizer
        end_id: Any = tokenizer.eos_token_id
        compiler = GrammarCompiler(tokenizer, vocab_size=len(tokenizer), end_id=end_id)
        super().__init__(loaded, compiler=compiler)
        self._pool = pool
        self._server = server
        self._adapter = adapter
        self.max_length = server.max_length
        self.slots = server.slots

    @property
    def running(self) -> bool:
        return self._server.running

    def end(self) -> None:
        self._pool.release(self._server, adapter=self._adapter)

    async def generate(
        self, generation: Generation
    ) -> AsyncGenerator[tuple[list[int], bool], None]:
        sampling = generation.sampling
        likelihoods = generation.likelihoods
        grammar = generation.grammar
        request = TokenRequest(
            model=self._adapter or self._server.options.name,
            prompt=generation.prompt,
            stream=generation.streaming,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed % 2**63 if sampling.temperature else None,
            max_tokens=generation.max_new_tokens,
            stop_token_ids=[self.end_id],
            logprobs=None if likelihoods is None else likelihoods.num_likely,
            structured_outputs=None if grammar is None else {"grammar": grammar.text},
        )
        ended = False
        deltas = self._server.actor.answer.remote(request)
        try:
            async for delta in deltas:
                tokens, ended, new_likelihoods = await delta
                if likelihoods is not None:
                    likelihoods.add(new_likelihoods)
                yield tokens, ended
        except RayTaskError as error:
            if isinstance(error.cause, EngineStopped) or not self.running:
                raise engine_stopped() from None
            if grammar is None or grammar.is_version_format:
                raise engine_failed() from error
            _log.warning("vLLM failed to generate an answer in a client's format: %s", error.cause)
            # vLLM does not report which one it is.
            raise refused_format(FormatError(NOT_GENERATED)) from error
        except RayActorError:
            raise engine_stopped() from None
        finally:
            if not ended:  # the client has disconnected
                ray.cancel(deltas)


def require_installed() -> None:
    """Raise EngineNotInstalled if vLLM cannot be imported."""
    if importlib.util.find_spec("vllm") is None:
        raise EngineNotInstalled(
            "serving.engine is vllm, but vLLM is not installed on the replica's node; run pip "
            "install --editable '.[gpu]' in the project's folder on the node, or omit "
            "serving.engine"
        )


@dataclass(frozen=True)
class VersionFiles:
    """The files of a chat version and of its base model on this node."""

    loaded: "LoadedChat[ModelVersion]"  # without weights
    folder: Path
    base: Path
    shares_base: bool
    """True if the engine loads the base model, and the adapter separately."""

    @property
    def adapter(self) -> Path | None:
        """Return the folder of an adapter that is applied to the base model; None without one."""
        if self.shares_base and self.loaded.version.spec.base == "adapter":
            return self.folder / "adapter"
        return None

    @property
    def lora_rank(self) -> int:
        """Return the rank of the adapter; 0 without one."""
        if self.adapter:
            return adapter_rank(self.adapter)
        return 0


def version_files(version: "ModelVersion") -> VersionFiles:
    """Download (once per node) and check a version and its base model, without loading weights.

    Raises the errors of `checked_copy` and `load_retrieval_index`.
    """
    from tailorbird.data.tokenize import load_tokenizer
    from tailorbird.models.loading import LoadedChat, checked_copy, load_retrieval_index
    from tailorbird.storage.node_cache import local_copy

    assert version.prompting is not None  # a chat version
    folder = checked_copy(version.pinned)
    base = local_copy(version.base_model)
    loaded = LoadedChat(
        model=None,
        tokenizer=load_tokenizer(base),
        prompting=version.prompting,
        version=version,
        index=load_retrieval_index(folder, retrieval=version.prompting.retrieval, device="cpu"),
    )
    return VersionFiles(
        loaded=loaded, folder=folder, base=base, shares_base=version.spec.shares_base
    )


def server_options(files: VersionFiles, *, config: ServingConfig, folder: Path) -> ServerOptions:
    """Return the options of the server for a version whose model is in `folder`."""
    gpus = config.gpus_per_replica
    version = files.loaded.version
    share = config.engine_options.get("gpu_memory_utilization", GPU_SHARE * min(gpus, 1))
    return ServerOptions(
        name=version.base_model.rstrip("/").rpartition("/")[2]
        if files.shares_base
        else version.version,
        folder=str(folder),
        dtype=version.dtype,
        max_batch_size=config.batch_size("chat"),
        max_lora_rank=files.lora_rank,
        max_loras=1 + MAX_SELECTABLE + STAGED_ADAPTERS,
        num_gpus=gpus,
        gpu_share=share if gpus else 0.0,
        options=config.engine_options,
    )


def adapter_rank(folder: Path) -> int:
    """Return the largest rank of a LoRA adapter in a folder."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return int(max([config["r"], *(config.get("rank_pattern") or {}).values()]))


@contextmanager
def model_folder(files: VersionFiles) -> Iterator[Path]:
    """Yield a folder with the model that a version's server loads, in the format of the Hugging
    Face Hub.

    It is the folder of a shared base model. Changed weights are linked, so that no other process
    loads them.
    """
    if files.shares_base:
        yield files.base
        return
    with tempfile.TemporaryDirectory(prefix="tailorbird-vllm-") as temporary:
        model = Path(temporary)
        for file in files.base.iterdir():
            if not file.name.endswith(WEIGHT_FILES):
                (model / file.name).symlink_to(file.resolve())
        (model / "model.safetensors").symlink_to((files.folder / "model.safetensors").resolve())
        yield model


def _stop(actor: Any) -> None:
    with suppress(RayError):
        ray.get(actor.stop.remote(), timeout=SHUTDOWN_S)
    ray.kill(actor)


def _cause(error: RayError) -> object:
    if isinstance(error, RayTaskError):
        return error.cause
    return error
