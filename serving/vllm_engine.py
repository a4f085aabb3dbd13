"""Behind a chat replica where `serving.engine` is `vllm`: vLLM's engine with the face of transformers' batching.

vLLM brings an HTTP server, and so does `ray.serve.llm` around it. Here its engine alone is taken, in the replica that
serves any version: the keys, limits, log, metrics, parity gate and changes without a gap are the same for both engines.
"""

import tempfile
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from serving.generate import ChatEngine, Sampling
from serving.protocol import RequestError
from serving.replica import require_digest

if TYPE_CHECKING:
    from models.load import LoadedChat
    from models.registry import ModelVersion

GPU_SHARE = 0.42
"""Of a GPU's memory, for one version: while another replaces it, a replica holds both."""
CACHE_BYTES = 1 << 30
"""For keys and values where there is no GPU, instead of a share of the machine."""


class EngineMissing(RuntimeError):
    """vLLM is not installed where the replica runs."""


class VllmEngine(ChatEngine):
    """A version in vLLM: a process of its own that batches all requests in flight."""

    def __init__(self, loaded: "LoadedChat[ModelVersion]", *, engine: Any) -> None:
        super().__init__(version=loaded.version, tokenizer=loaded.tokenizer, prompting=loaded.prompting)
        self._engine = engine
        self.max_length = int(engine.model_config.max_model_len)

    @property
    def running(self) -> bool:
        return not self._engine.errored

    def end(self) -> None:
        self._engine.shutdown()

    async def generate(
        self, prompt: list[int], *, max_new_tokens: int, sampling: Sampling, streaming: bool
    ) -> AsyncGenerator[tuple[list[int], bool], None]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed % 2**63 if sampling.temperature else None,
            max_tokens=max_new_tokens,
            stop_token_ids=[self.end_id],
            detokenize=False,
            output_kind=RequestOutputKind.CUMULATIVE if streaming else RequestOutputKind.FINAL_ONLY,
        )
        outputs = self._engine.generate({"prompt_token_ids": prompt}, params, uuid.uuid4().hex)
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    yield list(output.outputs[0].token_ids), bool(output.finished)
        except EngineDeadError:
            raise RequestError(
                503, "engine_stopped", "the model's engine has stopped; the replica is being replaced"
            ) from None
        except EngineGenerateError as error:
            raise RequestError(500, "engine_failed", f"the engine gave up on the request: {error}") from None


def load_engine(uri: str, digest: str, *, max_batch_size: int) -> VllmEngine:
    """The version in vLLM, checked as everywhere; raises EngineMissing, or as `models.load.load_chat_version`."""
    from models.load import load_chat_version

    loaded = load_chat_version(uri, device="cpu")
    require_digest(loaded.version, digest=digest)
    return start(loaded, max_batch_size=max_batch_size)


def start(loaded: "LoadedChat[ModelVersion]", *, max_batch_size: int) -> VllmEngine:
    """vLLM over a version of any kind: it reads a folder with an adapter's update merged, as it was evaluated."""
    import torch

    try:
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise EngineMissing(
            f"serving.engine is vllm, which the cluster does not have ({error}): pip install --editable '.[gpu]' in "
            "the project's folder there, or leave serving.engine out"
        ) from None
    memory: dict[str, Any] = {"gpu_memory_utilization": GPU_SHARE}
    if not torch.cuda.is_available():
        memory = {"kv_cache_memory_bytes": CACHE_BYTES}
    with tempfile.TemporaryDirectory(prefix="tailorbird-vllm-") as folder:
        lm: Any = loaded.model.lm
        lm.save_pretrained(folder)
        loaded.tokenizer.save_pretrained(folder)
        args = AsyncEngineArgs(
            model=folder,
            dtype=loaded.version.dtype,
            max_num_seqs=max_batch_size,
            generation_config="vllm",  # what is asked for, and nothing that a model's files would add
            enable_log_requests=False,
            disable_log_stats=True,
            **memory,
        )
        engine = AsyncLLM.from_engine_args(args)
    return VllmEngine(loaded, engine=engine)
