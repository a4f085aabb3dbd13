"""Models with random weights and rows for them. A token is a letter, so the lengths of rows are
exact."""

import random
import string
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BertConfig, BertModel, LlamaConfig

from tailorbird.data.rows import Rows
from tailorbird.models.pretrained import default_device
from tailorbird.registry.versions import Prompting
from tests import build
from tests.small_chat import WORDS, tokenizer
from training.chat_task import ChatTrainingTask
from training.classification_task import ClassificationTrainingTask

# width, width of the feed-forward layers, layers, heads, heads of keys and values, vocabulary
LLAMAS = {
    "8b": (4096, 14_336, 32, 32, 8, 128_256),
    "1b": (2048, 8192, 16, 32, 8, 128_256),
    "small": (1024, 2816, 4, 16, 8, 32_000),
    "30m": (384, 1024, 8, 8, 4, 20_000),
    "1m": (128, 384, 4, 8, 4, 2000),
    "tiny": (128, 256, 2, 4, 2, 256),
}
# width, width of the feed-forward layers, layers, heads, vocabulary
BERTS = {
    "400m": (1024, 4096, 28, 16, 50_368),
    "small": (512, 2048, 4, 8, 32_000),
    "tiny": (64, 128, 2, 4, 256),
}
CLASSES = ("a", "b", "c", "d")
PROMPT_LETTERS = 12
TURN_TOKENS = 4  # of the template around a prompt and its answer
NUM_SPECIAL = sum(word.startswith("<") for word in WORDS)

Task = ChatTrainingTask | ClassificationTrainingTask


def saved_model(folder: Path, task: str, size: str) -> str:
    """Save a model and a tokenizer with a token for each letter, unless `folder` has them; return
    the URI.

    A chat model is a Llama in bf16. The output weights of its tokens that are not letters are 0, so
    it never ends an answer. A classifier is a BERT in fp32.
    """
    saved = folder / f"{task}-{size}"
    if not saved.exists():
        torch.manual_seed(0)
        build_model = _llama if task == "chat" else _bert
        with torch.device(default_device()), torch.no_grad():
            model = build_model(size)
        model.save_pretrained(saved)
        tokenizer().save_pretrained(saved)
    return saved.as_uri()


def _llama(size: str) -> Any:
    width, feed_forward, layers, heads, key_value_heads, vocabulary = LLAMAS[size]
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=size == "1b",
        max_position_embeddings=16_384,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    weight = lm.get_output_embeddings().weight
    weight[:NUM_SPECIAL] = 0
    weight[len(WORDS) :] = 0
    return lm


def _bert(size: str) -> Any:
    width, feed_forward, layers, heads, vocabulary = BERTS[size]
    config = BertConfig(
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=512,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config)


def training_task(
    base_model: str,
    task: str,
    *,
    num_rows: int,
    num_tokens: int,
    num_validation: int = 2,
    max_new_tokens: int = 8,
) -> Task:
    """Return a task with rows of exactly `num_tokens` tokens each."""
    if task == "chat":
        return ChatTrainingTask(
            base_model=base_model,
            train=_chat_rows(num_rows, answer_letters=num_tokens - PROMPT_LETTERS - TURN_TOKENS),
            validation=_chat_rows(num_validation, answer_letters=4),
            max_length=num_tokens,
            metric="token_f1",
            prompting=Prompting(system=None, max_new_tokens=max_new_tokens),
        )
    return ClassificationTrainingTask(
        base_model=base_model,
        train=_labelled_rows(num_rows, num_letters=num_tokens),
        validation=_labelled_rows(num_validation, num_letters=num_tokens),
        classes=CLASSES,
        max_length=num_tokens,
    )


def letters(generator: random.Random, num: int, *, alphabet: str = string.ascii_lowercase) -> str:
    """Return a text of random letters."""
    return "".join(generator.choices(alphabet, k=num))


def _chat_rows(num: int, *, answer_letters: int) -> Rows:
    generator = random.Random(num)
    prompts = [letters(generator, PROMPT_LETTERS) for _ in range(num)]
    answers = [letters(generator, answer_letters) for _ in range(num)]
    return build.rows(prompts, answers, chat=True)


def _labelled_rows(num: int, *, num_letters: int) -> Rows:
    generator = random.Random(num)
    texts = [letters(generator, num_letters) for _ in range(num)]
    return build.rows(texts, [generator.choice(CLASSES) for _ in range(num)])
