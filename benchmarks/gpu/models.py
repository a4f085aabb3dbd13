"""Models with random weights, training tasks for them, and a process group of one rank."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, BertConfig, BertModel, LlamaConfig

from benchmarks.gpu.rows import CLASSES, PROMPT_LETTERS, chat_rows, labelled_rows
from benchmarks.training.trainer import RANK_VARIABLES
from tailorbird.models.pretrained import default_device
from tailorbird.registry.versions import Prompting
from tests.small_chat import WORDS, tokenizer
from training.chat_task import ChatTrainingTask
from training.classification_task import ClassificationTrainingTask

Size = Mapping[str, int]

LLAMA_8B: Size = {
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}
LLAMA_1B: Size = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "tie_word_embeddings": True,
}
LLAMA_SMALL: Size = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32_000,
}
LLAMA_TINY: Size = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}
BERT_400M: Size = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "vocab_size": 50_368,
}
BERT_SMALL: Size = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "vocab_size": 32_000,
}
BERT_TINY: Size = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
}
TURN_TOKENS = 4  # of the template around a prompt and its answer
MAX_POSITIONS = 16_384
NUM_SPECIAL = sum(word.startswith("<") for word in WORDS)


def save_chat_model(folder: Path, size: Size) -> str:
    """Save a Llama with random weights in bf16, and a tokenizer with a token for each letter;
    return its URI.

    The output weights of tokens that are not letters are 0, so the model never ends an answer.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        **size,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    with torch.device(default_device()), torch.no_grad():
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        weight = lm.get_output_embeddings().weight
        weight[:NUM_SPECIAL] = 0
        weight[len(WORDS) :] = 0
    lm.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder.as_uri()


def save_encoder(folder: Path, size: Size) -> str:
    """Save a BERT with random weights in fp32 and the same tokenizer; return its URI."""
    torch.manual_seed(0)
    config = BertConfig(**size, max_position_embeddings=512, attention_probs_dropout_prob=0.0)
    with torch.device(default_device()):
        encoder = BertModel(config)
    encoder.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder.as_uri()


def saved_model(folder: Path, task: str, size: Size) -> str:
    """Save a model of this size for the task, `chat` or `classification`, unless `folder` has it;
    return its URI."""
    own = folder / "-".join((task, *map(str, size.values())))
    if not own.exists():
        (save_chat_model if task == "chat" else save_encoder)(own, size)
    return own.as_uri()


def training_task(
    base_model: str,
    task: str,
    *,
    num_rows: int,
    num_tokens: int,
    num_validation: int = 2,
    max_new_tokens: int = 8,
) -> ChatTrainingTask | ClassificationTrainingTask:
    """Return a task with rows of exactly `num_tokens` tokens each."""
    if task == "chat":
        return ChatTrainingTask(
            base_model=base_model,
            train=chat_rows(num_rows, answer_letters=num_tokens - PROMPT_LETTERS - TURN_TOKENS),
            validation=chat_rows(num_validation, answer_letters=4),
            max_length=num_tokens,
            metric="token_f1",
            prompting=Prompting(system=None, max_new_tokens=max_new_tokens),
        )
    return ClassificationTrainingTask(
        base_model=base_model,
        train=labelled_rows(num_rows, num_letters=num_tokens),
        validation=labelled_rows(num_validation, num_letters=num_tokens),
        classes=CLASSES,
        max_length=num_tokens,
    )


@contextmanager
def process_group() -> Iterator[None]:
    """Join a process group with one rank, on NCCL if there is a GPU and on gloo otherwise."""
    os.environ.update(RANK_VARIABLES)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    with tempfile.TemporaryDirectory(prefix="tailorbird-") as folder:
        dist.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()
            for name in (
                RANK_VARIABLES
            ):  # with them, transformers.Trainer would start a distributed training
                del os.environ[name]
