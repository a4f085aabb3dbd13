"""Answers of a chat version for a batch, by vLLM's offline engine in the worker's process."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from serving.engines.vllm_engine import (
    USABLE_SHARE,
    model_folder,
    require_installed,
    server_options,
    version_files,
)
from serving.engines.vllm_server import OfflineEngine
from tailorbird.config.serving import ServingConfig
from tailorbird.registry.versions import ModelVersion

if TYPE_CHECKING:
    from tailorbird.models.generation import Answer


class VllmModel:
    """A chat version on vLLM with the options of the service. It uses all GPUs of the worker."""

    def __init__(self, version: ModelVersion, *, config: ServingConfig) -> None:
        """Load a version. Raises the errors of `version_files`, EngineNotInstalled, and the errors
        of vLLM."""
        require_installed()
        files = version_files(version)
        self.loaded = files.loaded
        with model_folder(files) as folder:
            options = server_options(files, config=config, folder=folder)
            if options.num_gpus and "gpu_memory_utilization" not in config.engine_options:
                options = replace(options, gpu_share=USABLE_SHARE * min(options.num_gpus, 1))
            self._engine = OfflineEngine(replace(options, max_loras=1), adapter=files.adapter)
        self.max_length = self._engine.max_length

    def answer(self, prompts: Sequence[Sequence[int]]) -> "list[Answer]":
        """Return the greedy answers to prompts of token ids, in order."""
        from tailorbird.models.generation import Answer
        from tailorbird.models.grammar.compiler import grammar_of

        prompting = self.loaded.prompting
        end_id = int(self.loaded.tokenizer.eos_token_id)
        limit = prompting.max_new_tokens
        format = prompting.response_format
        grammar = None if format is None else str(grammar_of(format))
        answers = []
        for tokens, logprobs in self._engine.greedy(
            prompts, max_tokens=limit, end_id=end_id, grammar=grammar
        ):
            finished = tokens[-1:] == [end_id]
            confidence = math.exp(fmean(logprobs)) if logprobs else 0.0
            answers.append(
                Answer(
                    tokens=tokens[:-1] if finished else tokens,
                    finished=finished,
                    confidence=confidence,
                    logprobs=tuple(logprobs),
                )
            )
        return answers
