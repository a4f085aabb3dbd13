"""A tiny chat model that can write any text: a byte-level tokenizer, and a language model with
random layers."""

import json
import random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tailorbird.models.grammar.matcher import AnswerMatcher
from tests.small_chat import TEMPLATE

SPECIAL = ("</s>", "<pad>", "<system>", "<user>", "<assistant>")
CORPUS = (
    '{"code": "yes", "age": 12, "ok": true}',
    '["a", "b"]',
    "naïve 日本語",
    "not sure, no, yes",
)
PADDED = 64  # logits in addition to the tokens of the tokenizer


def tokenizer() -> Any:
    """Return a byte-level BPE tokenizer with a token for each byte, and tokens of several
    characters of JSON."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [*CORPUS, json.dumps(CORPUS)],
        trainers.BpeTrainer(
            vocab_size=340,
            initial_alphabet=alphabet,
            special_tokens=list(SPECIAL),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>")
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL[2:])})
    fast.chat_template = TEMPLATE
    return fast


def language_model(*, seed: int = 0, scale: float = 0.1, width: int = 32) -> LlamaForCausalLM:
    """Return a model with random weights; a larger scale makes its choices more certain."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer()) + PADDED,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=scale,
        tie_word_embeddings=True,
        pad_token_id=1,
        bos_token_id=None,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def random_answer(
    grammar: Any, draw: random.Random, *, tokenizer: Any, max_tokens: int = 600
) -> str | None:
    """Return an answer of random tokens that the grammar allows, as it is decoded; None if it does
    not end in time.

    Tokens that close a text, a list or an object are preferred the more, the longer the answer is.
    """
    closing = torch.tensor(
        [tokenizer.decode([token])[:1] in ('"', "}", "]") for token in range(len(tokenizer))]
    )
    closing = torch.nn.functional.pad(closing, (0, PADDED))
    closing[tokenizer.eos_token_id] = True
    matcher, tokens = AnswerMatcher(grammar), list[int]()
    for step in range(max_tokens):
        scores = torch.zeros(len(closing))
        matcher.constrain(scores, tokens[matcher.next_position(0) :])
        matcher.require_usable()
        allowed = scores == 0
        ends = allowed & closing
        ids = (
            (ends if bool(ends.any()) and draw.random() < 0.1 + step / 100 else allowed)
            .nonzero()[:, 0]
            .tolist()
        )
        tokens.append(draw.choice(ids))
        if tokens[-1] == tokenizer.eos_token_id:
            return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
    return None
