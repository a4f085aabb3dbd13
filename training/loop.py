"""One training, inside a Ray Train worker: steps, validation at each epoch's end, and a word on whether to go on."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from cluster.fetch import local_copy
from data.encode import collate, encode_texts, label_indices, labels_of, length_batches, load_tokenizer
from data.read import Rows
from evaluation.metrics import score_of
from models.classifier import AuxiliaryClassifier, Classifier, zero_head
from models.load import add_adapter, default_device, inference_dtype, load_encoder
from recipes.schema import TrainingSection
from training.order import epoch_batches, micro_batches, num_steps, rank_rows
from training.zero import start_engine

NAMED = 5


@dataclass(frozen=True)
class TrainingTask:
    """What is trained on what; it travels to every worker. There is no test split in it."""

    base_model: str
    """URI of the staged base model."""
    train: Rows
    validation: Rows
    classes: tuple[str, ...]
    max_length: int
    metric: str = "accuracy"
    """What validation is scored by: `accuracy` or `macro_f1`."""


@dataclass(frozen=True)
class Material:
    """A task loaded into a worker once, for as many trainings as follow."""

    encoder: torch.nn.Module
    task: TrainingTask
    train_tokens: list[list[int]]
    train_labels: NDArray[np.int64]
    train_auxiliary: NDArray[np.int64] | None
    """A second label of the training rows, by number; it is learned beside the label and scored by nobody."""
    validation_tokens: list[list[int]]
    validation_labels: NDArray[np.int64]
    pad_id: int


@dataclass(frozen=True)
class StepReport:
    """Sent about once a second by rank 0; `rows_per_second` counts all ranks."""

    epoch: int
    step: int
    num_steps: int
    loss: float
    rows_per_second: float


@dataclass(frozen=True)
class EpochReport:
    """After an epoch; the same on every rank."""

    epoch: int
    score: float
    """On the validation rows, by the task's metric."""
    loss: float
    """Mean training loss of the epoch, an auxiliary label's share included."""
    rows_per_second: float
    step_seconds: float
    """Seconds inside training steps in this epoch."""
    padding_share: float
    """Padding among the tokens computed."""


@dataclass
class Progress:
    """How far this rank is, between two steps: what it takes, beside weights and random state, to go on there."""

    epoch: int = 0
    step: int = 0
    """Steps done of the epoch."""
    losses: float = 0.0
    """Sum of these steps' losses."""
    tokens: int = 0
    padded: int = 0
    """Tokens of this rank's rows, and those computed with their padding."""
    seconds: float = 0.0
    """Inside these steps."""
    last: EpochReport | None = None
    """Of the epoch before."""


class Diverged(ValueError):
    """A loss or an answer that is no finite number; the message names epoch, step and rows. The same on every rank."""


OnStep = Callable[[StepReport], None]
OnEpoch = Callable[[EpochReport, Any], bool]
"""Gets the report and the engine, on every rank; False ends the training."""
OnSave = Callable[[Progress, Any], None]
"""Gets how far this rank is and the engine, on every rank, between two steps."""


def load_material(task: TrainingTask, *, attention_dropout: float | None = None) -> Material:
    """Downloads the base model (once a node) and encodes the rows; `attention_dropout` as in `load_encoder`."""
    folder = local_copy(task.base_model)
    tokenizer = load_tokenizer(folder)

    def encoded(rows: Rows) -> list[list[int]]:
        return encode_texts(rows.texts, tokenizer=tokenizer, max_length=task.max_length)

    return Material(
        encoder=load_encoder(folder, attention_dropout=attention_dropout),
        task=task,
        train_tokens=encoded(task.train),
        train_labels=label_indices(task.train.labels, classes=task.classes),
        train_auxiliary=_numbered(task.train.auxiliary),
        validation_tokens=encoded(task.validation),
        validation_labels=label_indices(task.validation.labels, classes=task.classes),
        pad_id=int(tokenizer.pad_token_id or 0),
    )


def _numbered(labels: tuple[str, ...] | None) -> NDArray[np.int64] | None:
    return None if labels is None else label_indices(labels, classes=labels_of(labels))


def build_model(section: TrainingSection, material: Material) -> Classifier:
    """A fresh model to train: the pristine encoder, with an adapter for `lora`, and a head of zeros.

    A probe's head to start from was tried and ended 1.6 points lower on ICD-10-CM's validation rows.
    """
    encoder = copy.deepcopy(material.encoder)
    num_features = int(encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]
    if section.method == "lora":
        encoder = add_adapter(encoder, r=section.lora_r, alpha=section.lora_alpha, dropout=section.lora_dropout)
    if section.gradient_checkpointing:
        kwargs = {"use_reentrant": False}  # the other kind asks for inputs with gradients, which LoRA has not
        encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)  # type: ignore[operator]
    head, second = zero_head(num_features, len(material.task.classes)), material.train_auxiliary
    if second is None:
        return Classifier(encoder, head).to(default_device())
    auxiliary_head = zero_head(num_features, int(second.max()) + 1)
    return AuxiliaryClassifier(encoder, head, auxiliary_head=auxiliary_head).to(default_device())


def new_engine(section: TrainingSection, material: Material) -> Any:
    """Seeds this process and starts an engine on a fresh model."""
    torch.manual_seed(section.seed * 1000 + dist.get_rank())
    steps = num_steps(len(material.train_tokens), batch_size=section.batch_size, epochs=section.epochs)
    autocast = inference_dtype() == torch.bfloat16
    return start_engine(build_model(section, material), section, num_steps=steps, autocast=autocast)


def train(
    engine: Any,
    section: TrainingSection,
    *,
    material: Material,
    on_step: OnStep,
    on_epoch: OnEpoch,
    on_save: OnSave | None = None,
    progress: Progress | None = None,
) -> EpochReport:
    """Runs what is left after `progress` (None: all of it); returns the last epoch's report.

    `on_save` is called each `section.checkpoint_interval_s` within an epoch. Raises Diverged.
    """
    progress = progress or Progress()
    while progress.epoch < section.epochs:
        report = _epoch(engine, section, material=material, progress=progress, on_step=on_step, on_save=on_save)
        progress = Progress(epoch=progress.epoch + 1, last=report)
        if not on_epoch(report, engine):
            break
    assert progress.last is not None  # epochs >= 1
    return progress.last


def _epoch(
    engine: Any,
    section: TrainingSection,
    *,
    material: Material,
    progress: Progress,
    on_step: OnStep,
    on_save: OnSave | None,
) -> EpochReport:
    """The steps of an epoch that `progress`, which it moves on, has not done."""
    lengths, epoch = np.array([len(tokens) for tokens in material.train_tokens]), progress.epoch
    batches = epoch_batches(lengths, batch_size=section.batch_size, seed=section.seed, epoch=epoch)
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    said = saved = time.perf_counter()
    seen, seconds = 0, 0.0
    for step, batch in enumerate(batches[progress.step :], start=progress.step):
        begun = time.perf_counter()
        mine = rank_rows(batch, rank=rank, num_ranks=num_ranks)
        step_loss = 0.0
        for rows in micro_batches(mine, num=section.gradient_accumulation_steps):
            loss, size = _loss(engine, section, material=material, rows=rows, share=len(batch) / num_ranks)
            engine.backward(loss * section.gradient_accumulation_steps)  # DeepSpeed takes the mean of the parts
            engine.step()  # counts the parts; weights move after the last
            step_loss += float(loss.detach())
            progress.padded += size
        now = time.perf_counter()
        due = rank == 0 and now - saved > section.checkpoint_interval_s
        step_loss, save_now = _means_over_ranks(step_loss, float(due))
        if not math.isfinite(step_loss):
            raise Diverged(
                _told(f"the loss is {step_loss}", epoch=epoch, step=step, rows=material.task.train.take(batch))
            )
        progress.step, progress.losses = step + 1, progress.losses + step_loss
        progress.tokens += int(lengths[mine].sum())
        progress.seconds, seconds, seen = progress.seconds + now - begun, seconds + now - begun, seen + len(batch)
        if rank == 0 and (now - said > 1.0 or step + 1 == len(batches)):
            said = now
            on_step(StepReport(epoch, step + 1, len(batches), progress.losses / (step + 1), seen / seconds))
        if on_save is not None and save_now and step + 1 < len(batches):  # an epoch's end is kept with its report
            on_save(progress, engine)
            saved = time.perf_counter()
    score = _validation_score(engine, material, epoch=epoch)
    return EpochReport(
        epoch=epoch,
        score=score,
        loss=progress.losses / len(batches),
        rows_per_second=len(lengths) / progress.seconds,
        step_seconds=progress.seconds,
        padding_share=_means_over_ranks(1 - progress.tokens / progress.padded)[0],
    )


def _loss(
    engine: Any, section: TrainingSection, *, material: Material, rows: NDArray[np.int64], share: float
) -> tuple[torch.Tensor, int]:
    """This rank's loss, scaled so that the ranks' mean is the batch's mean loss; and the tokens computed.

    `share` is the batch's rows per rank. A rank without a row in a last small batch computes one with weight 0.
    """
    used = rows if len(rows) else np.zeros(1, dtype=np.int64)
    input_ids, attention_mask = collate([material.train_tokens[row] for row in used], pad_id=material.pad_id)
    device, num_classes = engine.device, len(material.task.classes)
    logits = engine(input_ids.to(device), attention_mask.to(device))

    def summed(some: torch.Tensor, labels: NDArray[np.int64]) -> torch.Tensor:
        truth = torch.from_numpy(labels[used]).to(device)
        return cross_entropy(some, truth, reduction="sum", label_smoothing=section.label_smoothing)

    total = summed(logits[:, :num_classes], material.train_labels)
    if material.train_auxiliary is not None:
        total = total + section.auxiliary_weight * summed(logits[:, num_classes:], material.train_auxiliary)
    return total * (len(rows) / len(used) / share), input_ids.numel()


def _told(what: str, *, epoch: int, step: int, rows: Rows) -> str:
    named = ", ".join(rows.row_ids[:NAMED]) + (f" and {len(rows) - NAMED} more" if len(rows) > NAMED else "")
    return (
        f"training diverged: {what} in epoch {epoch + 1}, step {step + 1}, on training rows {named}; "
        "lower training.learning_rate, or look at these rows"
    )


def _validation_score(engine: Any, material: Material, *, epoch: int) -> float:
    """The metric on the validation rows; the ranks share the rows and make equally many forward passes."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    lengths = np.array([len(tokens) for tokens in material.validation_tokens])
    batches = length_batches(lengths, batch_size=64)
    answers = torch.zeros(len(lengths), dtype=torch.int64, device=default_device())
    finite = True
    engine.eval()
    with torch.no_grad():
        for at in range(0, len(batches), num_ranks):
            rows = batches[min(at + rank, len(batches) - 1)]
            input_ids, attention_mask = collate(
                [material.validation_tokens[row] for row in rows], pad_id=material.pad_id
            )
            logits = engine(input_ids.to(engine.device), attention_mask.to(engine.device))
            finite = finite and bool(torch.isfinite(logits).all())
            if at + rank < len(batches):
                answers[torch.from_numpy(rows).to(answers.device)] = logits.argmax(-1)
    engine.train()
    if _means_over_ranks(float(finite))[0] < 1:
        raise Diverged(f"training diverged in epoch {epoch + 1}: answers are no numbers; lower training.learning_rate")
    dist.all_reduce(answers)  # each row was answered by one rank and is 0 on the others
    return score_of(material.task.metric, labels=material.validation_labels, outputs=answers.cpu().numpy())


def _means_over_ranks(*values: float) -> list[float]:
    if dist.get_world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=default_device())
    dist.all_reduce(tensor)
    return [float(total) / dist.get_world_size() for total in tensor]
