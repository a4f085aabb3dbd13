"""A service of a chat model, for tests."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import torch
from safetensors.torch import save_file

from cluster import code_snapshot
from serving.deploy import rollout
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.config.serving import ServingConfig
from tailorbird.data.chat_template import prompt_tokens
from tailorbird.data.rows import Rows
from tailorbird.models import base_model, loading
from tailorbird.models.generation import answer_prompts
from tailorbird.models.retrieval.files import index_files, index_sha256
from tailorbird.models.retrieval.index import build_index, embed_index
from tailorbird.models.retrieval.text_encoder import load_text_encoder
from tailorbird.registry import versions as registry
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.hybrids import hybrid_config
from tailorbird.registry.kinds import KINDS, Kind
from tests import small_chat, small_encoder
from tests.build import rows, version_config
from tests.loaded import load_model

ROOT = Path(__file__).parents[3]
TASK_URI = "s3://models/chat-serving-test"
LIMIT = 24
QUESTIONS = ("abc", "what is a dog", "x", "zzzz zzzz zzzz", "one two three four five six")
WIDTH = 128  # heads of size 32, the smallest that vLLM supports
CONFIG = ServingConfig(
    engine="vllm" if importlib.util.find_spec("vllm") else "transformers",
    max_batch_size=4,
    max_queued_requests=8,
    max_new_tokens=200,
)


def rows_of(texts: Sequence[str]) -> Rows:
    return rows(texts, chat=True)


TRAINING_ROWS = rows_of(["abd", "what is a cat", "one two three four", "zzzz zzz zzzz 9"])


class Service:
    """Versions of a task, and a client of the deployed one."""

    def __init__(self, folder: Path) -> None:
        self.code = code_snapshot.ship_code(TASK_URI, ROOT)
        small_chat.save(folder / "base", small_chat.language_model(width=WIDTH))
        base = base_model.stage_base_model(
            parse_model_uri(f"file://{folder / 'base'}"), registry="s3://models"
        ).uri
        self.encoder = small_encoder.save(folder / "encoder")

        def register(name: str, **fields: Any) -> registry.ModelVersion:
            return self._register(folder / name, base=base, **fields)

        self.first = register("first")
        self.second = register("second", system="be kind", seed=1)
        self.retrieved = register("retrieved", kind="retrieved")
        self.nearest = register("nearest", kind="nearest")
        self.trained = register("trained", seed=2, with_index=True)
        self.url = ""

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=60, max_retries=0)

    def deploy(self, version: registry.ModelVersion, *, config: ServingConfig = CONFIG) -> None:
        self.url = rollout.deploy(config, task_uri=TASK_URI, version=version)

    def register_cascade(self, folder: Path, *, threshold: float) -> registry.ModelVersion:
        """Register a cascade of the stored answers and the language model of the first version."""
        routing = Routing(by="cascade", threshold=threshold)
        registry.write_config(
            folder, hybrid_config(self.nearest, second=self.first, routing=routing)
        )
        return registry.register(TASK_URI, folder)

    def ask(self, question: str, *, model: str = "champion", **options: Any) -> Any:
        return self.client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], **options
        )

    def expected(self, version: registry.ModelVersion, *, max_new_tokens: int = LIMIT) -> list[str]:
        """Return the version's answers to the questions in memory, as in an evaluation."""
        loaded = load_model(version.uri, loading.LoadedChat)
        tokenizer, system = loaded.tokenizer, loaded.prompting.system
        prompts = [
            prompt_tokens((("user", text),), tokenizer=tokenizer, system=system)
            for text in QUESTIONS
        ]
        end_id = int(tokenizer.eos_token_id)
        answers = answer_prompts(loaded.lm, prompts, max_new_tokens=max_new_tokens, end_id=end_id)
        return [
            tokenizer.decode(answer.tokens, skip_special_tokens=True).strip() for answer in answers
        ]

    def _register(
        self,
        folder: Path,
        *,
        base: str,
        system: str = "be brief",
        seed: int | None = None,
        kind: Kind = "zero_shot",
        with_index: bool = False,
    ) -> registry.ModelVersion:
        folder.mkdir()
        retrieval = None
        if with_index or KINDS[kind].has_index:
            index = build_index(TRAINING_ROWS, seed=0)
            embedded: dict[str, Any] = {}
            if KINDS[kind].has_index:
                index = embed_index(index, encoder=load_text_encoder(self.encoder), weight=0.75)
                embedded = {"encoder": self.encoder, "embedding_weight": 0.75}
            files = index_files(index)
            for name, content in files.items():
                (folder / name).write_bytes(content)
            sha256 = index_sha256(files)
            retrieval = registry.Retrieval(
                num_examples=2, max_prompt_tokens=200, index_sha256=sha256, **embedded
            )
        if seed is not None:
            torch.manual_seed(seed)
            lm = small_chat.language_model(width=WIDTH)
            state = {name: torch.randn_like(weight) * 0.3 for name, weight in lm.named_parameters()}
            save_file(state, folder / "model.safetensors")
        config = version_config(
            kind=kind if seed is None else "full",
            base_model=base,
            code=self.code.uri,
            created_at=registry.now(),
            prompting=registry.Prompting(system=system, max_new_tokens=LIMIT, retrieval=retrieval),
        )
        registry.write_config(folder, config)
        return registry.register(TASK_URI, folder)
