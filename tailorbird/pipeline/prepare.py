"""The run's beginning: rows read and checked, base model and code on S3, and the question frozen."""

import getpass
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cluster.code_snapshot import CodeVersion, ship_code
from cluster.progress import Show
from tailorbird import PROJECT_ROOT, storage
from tailorbird.config.recipe import Recipe
from tailorbird.data.quality import take_training_rows
from tailorbird.data.rows import Splits
from tailorbird.data.sharding.loading import Gathered, held, streamed
from tailorbird.data.tokenize import labels_of
from tailorbird.data.tokenized import Encoding
from tailorbird.evaluation.verdict.protocol import TestProtocol, build_protocol, request_digest, run_name
from tailorbird.models.base_model import model_files, stage_base_model
from tailorbird.models.metadata import require_length
from tailorbird.registry.champion import Champion, champion_version, read_champion
from tailorbird.registry.versions import Prompting, now
from tailorbird.storage import s3
from training.chat_task import ChatTrainingTask
from training.classification_task import ClassificationTrainingTask
from training.task import TrainingTask


@dataclass(frozen=True)
class Prepared:
    """What every later stage starts from."""

    recipe: Recipe
    run: str
    """URI of the run, named by the hash of recipe, code and data."""
    data: Gathered
    classes: tuple[str, ...]
    base_model: str
    base_files: dict[str, str]
    """sha256 of each file of the base model, by name."""
    code: CodeVersion
    question: TestProtocol
    champion: str | None
    """URI of the version that served when the question was asked."""
    asked_by: str

    @property
    def splits(self) -> Splits:
        """Where training rows are streamed, train is a part of them."""
        return self.data.splits

    @property
    def hashes(self) -> dict[str, str]:
        """sha256 of each split."""
        return self.data.hashes

    @property
    def prompting(self) -> Prompting | None:
        """How the model of a chat task is asked, but for examples in the prompt; None of a classification."""
        config = self.recipe.data
        if self.recipe.task != "chat":
            return None
        return Prompting(system=config.system, max_new_tokens=config.max_new_tokens)

    @property
    def asked_of_training(self) -> dict[str, Any]:
        """What a training depends on besides its section and the rows."""
        prompting = self.prompting.model_dump(mode="json") if self.prompting else None
        asked = {"max_length": self.recipe.data.max_length, "metric": self.recipe.evaluation.metric}
        return asked | ({"prompting": prompting} if prompting else {})

    def key(self, **inputs: Any) -> dict[str, Any]:
        """The inputs of a stage: the code, the data it may read, and its own."""
        known = {name: self.hashes[name] for name in ("train", "validation")}
        if self.data.held_sha256 is not None:  # rungs and reference learn from these, not from all of train
            known["train_in_memory"] = self.data.held_sha256
        base_model = {"uri": self.base_model, "files": self.base_files}  # a folder of the user's may be written anew
        return {"code": self.code.sha256, "base_model": base_model, "data": known, **inputs}

    def task(self, *, num_train_rows: int | None = None) -> TrainingTask:
        """Training and validation rows; test is not in it."""
        seed = self.recipe.training.seed
        part = take_training_rows(self.splits, size=num_train_rows, seed=seed).train
        common: dict[str, Any] = {
            "base_model": self.base_model,
            "train": part if num_train_rows is not None or self.data.shards is None else self.data.shards,
            "validation": self.splits.validation,
            "max_length": self.recipe.data.max_length,
            "metric": self.recipe.evaluation.metric,
        }
        if self.prompting is None:
            return ClassificationTrainingTask(classes=self.classes, **common)
        return ChatTrainingTask(prompting=self.prompting, **common)


@dataclass(frozen=True)
class Material:
    """What a recipe names, as it lies on S3."""

    data: Gathered
    base_model: str
    base_files: dict[str, str]
    code: CodeVersion


def gather(recipe: Recipe) -> Material:
    """Reads and checks the recipe's rows, and stages base model and code."""
    chat = recipe.task == "chat"
    data = held(recipe.data, chat=chat, seed=recipe.training.seed)  # first: what is wrong with it costs nothing yet
    base_model = stage_base_model(recipe.base_model, registry=recipe.registry)
    require_length(base_model, max_length=recipe.data.max_length, chat=chat)
    base_files = model_files(base_model)
    code = ship_code(recipe.task_uri, PROJECT_ROOT)
    data = data or streamed(
        recipe.data,
        Encoding(recipe.data.max_length, chat=chat, system=recipe.data.system if chat else None),
        base_model=base_model,
        task_uri=recipe.task_uri,
        inputs={"code": code.sha256, "base_model": {"uri": base_model, "files": base_files}},
    )
    return Material(data, base_model, base_files, code)


def prepare(recipe: Recipe, *, show: Show) -> Prepared:
    """Reads and checks the data, stages base model and code, and freezes the question before anything is trained."""
    show({"event": "stage", "text": "data: reading and checking"})
    material = gather(recipe)
    gathered, base_model, base_files, code = material.data, material.base_model, material.base_files, material.code
    splits, report, hashes = gathered.splits, gathered.report, gathered.hashes
    sizes = {name: len(rows) for name, rows in splits.items()} | {"train": gathered.num_train}
    counts = ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    told = "classes" if recipe.task == "classification" else "different answers"
    show({"event": "note", "text": f"{counts} rows, {report.num_classes} {told}"})
    if gathered.shards is not None:
        text = f"training rows are streamed; rungs and some checks see a random {len(splits.train):,} of them"
        show({"event": "note", "text": text})
    champion = read_champion(recipe.task_uri)
    if champion is not None:
        champion_version(champion[0])  # refused here, before anything is judged against what was tampered with
    named = {
        "recipe": recipe.model_dump(mode="json"),
        "code": code.sha256,
        "data": hashes,
        "base_model": {"uri": base_model, "files": base_files},
    }
    asked = request_digest(named)
    uri = _run_uri(recipe.task_uri, asked, champion=champion[0] if champion else None)
    question = build_protocol(recipe.evaluation, test_sha256=hashes["test"], num_test_rows=len(splits.test))
    frozen = freeze(
        f"{uri}/question.json",
        {
            "question": question.to_dict(),
            "asked": asked,
            **named,
            "champion": champion[0].uri if champion else None,
            "asked_by": current_user(),
            "asked_at": now(),
        },
    )
    return Prepared(
        recipe=recipe,
        run=uri,
        data=gathered,
        classes=() if recipe.task == "chat" else labels_of(splits.train.labels),
        base_model=base_model,
        base_files=base_files,
        code=code,
        question=TestProtocol.from_dict(frozen["question"]),
        champion=frozen["champion"],
        asked_by=frozen["asked_by"],
    )


def freeze(uri: str, value: dict[str, Any]) -> dict[str, Any]:
    """JSON that is written once: what was written first stands, whoever comes later."""
    if not storage.exists(uri):
        with suppress(s3.PreconditionFailed):  # somebody runs the same: theirs stands
            storage.write_if_match(uri, json.dumps(value, indent=2).encode(), etag=None)
    return dict(storage.read_json(uri))


def current_user() -> str:
    """Name of the user whose process this is; in a container whose user has no name, its number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        return f"uid {os.getuid()}"


def _run_uri(task_uri: str, asked: str, *, champion: Champion | None) -> str:
    """The run's place: by what is asked and who serves; the run that made today's champion is found again as it was."""
    if champion is not None and champion.run:
        question = f"{champion.run}/question.json"
        if storage.exists(question) and storage.read_json(question)["asked"] == asked:
            return champion.run
    return f"{task_uri}/runs/{run_name(asked, champion=champion.uri if champion else None)}"
