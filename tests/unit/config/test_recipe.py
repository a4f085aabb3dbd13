"""A recipe is read as it is written or refused in a line a fault."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tailorbird.config.base import RecipeError, digest
from tailorbird.config.loader import load_recipe
from tailorbird.config.recipe import Recipe
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import Distribution

SHIPPED = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))


def minimal() -> dict[str, Any]:
    return {
        "name": "toy",
        "base_model": "pypi://some-model",
        "data": {"train": "s3://lake/toy/train"},
        "registry": "s3://models",
    }


def written(folder: Path, content: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_is_read_and_named_by_its_file(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem.replace("_", "-")
    assert recipe.task_uri == f"s3://models/{recipe.name}"


def test_the_demo_is_judged_on_the_same_rows_and_question_as_the_default() -> None:
    demo, default = (load_recipe(SHIPPED[0].parent / f"icd10_{name}.yaml") for name in ("demo", "chapters"))
    assert (demo.data.test, demo.data.validation) == (default.data.test, default.data.validation)
    assert demo.evaluation == default.evaluation


def test_what_is_left_out_takes_its_default(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, minimal()))
    assert recipe.training == TrainingConfig()
    assert recipe.data.validation is None
    assert recipe.task == "classification"


def chat(**evaluation: Any) -> dict[str, Any]:
    return minimal() | {"task": "chat", "evaluation": {"metric": "token_f1"} | evaluation}


def test_gates_that_read_classes_are_not_asked_of_chat_by_default() -> None:
    gates = Recipe.model_validate(chat()).evaluation.gates
    assert gates.groups is not None
    assert (gates.calibration, gates.counterfactual, gates.robustness) == (None, None, None)
    assert Recipe.model_validate(minimal()).evaluation.gates.calibration is not None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (
            chat(metric="accuracy"),
            "evaluation.metric 'accuracy' is not for chat tasks; allowed: exact_match, token_f1, rouge_l",
        ),
        (
            minimal() | {"evaluation": {"metric": "rouge_l"}},
            "'rouge_l' is not for classification tasks; allowed: accuracy",
        ),
        (chat(gates={"calibration": {}}), "evaluation.gates.calibration is not for chat"),
        (chat(hybrid={"by": "confidence"}), "evaluation.hybrid is not for chat"),
        (minimal() | {"serving": {"engine": "vllm"}}, "serving.engine is not for classification"),
    ],
)
def test_what_the_other_task_alone_has_is_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Recipe.model_validate(given)


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, minimal()))
    with pytest.raises(ValidationError, match="frozen"):
        recipe.training.epochs = 9


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("trainning", {}, "trainning: no such field; remove it or correct its name"),
        ("training.epoch", 3, "training.epoch: no such field"),
        ("training.epochs", "many", "training.epochs: .*valid integer.*given: 'many'"),
        ("training.epochs", 0, r"training.epochs: .*greater than or equal to 1 \(given: 0\)"),
        ("training.zero_stage", 4, r"training.zero_stage: .*0, 1, 2 or 3 \(given: 4\)"),
        ("training.method", "prefix", "training.method: .*'lora' or 'full'.*given: 'prefix'"),
        ("training.batch_size", 33, "training: batch_size 33 must be a multiple of num_workers 2"),
        (
            "training.gradient_accumulation_steps",
            3,
            "training: batch_size 32 must be a multiple of num_workers 2 times gradient_accumulation_steps 3",
        ),
        ("training.num_workers", {"min": 2, "max": 1}, "training.num_workers.range: max 1 is under min 2"),
        ("training.num_workers", {"min": 1, "max": 3}, "training: batch_size 32 must be a multiple of num_workers 3"),
        ("training.offload", "parameters", "training: offload 'parameters' takes zero_stage 3 or more, not 1"),
        (
            "training.deepspeed",
            {"zero_optimization": {"stage": 2}},
            "training.deepspeed: zero_optimization.stage is set by training.zero_stage; change it there",
        ),
        ("training.gpus_per_worker", 2, "training.gpus_per_worker: "),
        ("training.seed", -1, r"training.seed: .*greater than or equal to 0 \(given: -1\)"),
        ("name", "Has Spaces", "name: .*pattern.*given: 'Has Spaces'"),
        ("task", "regression", "task: .*'classification'.*given: 'regression'"),
        ("base_model", "bert-base", "base_model: 'bert-base' must begin with s3:// or file:// or hf:// or pypi://"),
        ("registry", "/models", "registry: '/models' must begin with s3://"),
        ("registry", "file:///models", "registry: 'file:///models' must begin with s3://"),
        ("data.train", "lake/train", "data.train: 'lake/train' must begin with s3:// or file://"),
        ("data.validation", "s3://lake/rows", "data: give `test` beside `validation`, or neither"),
        ("data.train", [], "data.train: give at least one URI"),
        ("data.train", ["s3://lake/a", "lake/b"], "data.train: 'lake/b' must begin with s3:// or file://"),
        ("data.max_length", 2, "data.max_length: "),
        (
            "tuning.space",
            {"epohs": {"choice": [1]}},
            "tuning.space: 'epohs' cannot be tuned; allowed: batch_size, ",
        ),
        ("tuning.space", {"zero_stage": {"choice": [1]}}, "tuning.space: 'zero_stage' cannot be tuned"),
        ("tuning.space", {"epochs": {}}, "tuning.space.epochs: give exactly one of choice, uniform, log_uniform"),
        (
            "tuning.space",
            {"epochs": {"choice": [1], "uniform": [1, 2]}},
            "tuning.space.epochs: give exactly one of choice, uniform, log_uniform",
        ),
        ("tuning.space", {"learning_rate": {"log_uniform": [0, 1]}}, "low < high and low > 0"),
        ("tuning.space", {"lora_dropout": {"uniform": [1, 0]}}, r"uniform takes \[low, high\] with low < high"),
        ("tuning.search", "grid", "tuning.search: .*'optuna' or 'random'"),
        ("evaluation.alpha", 0.5, "evaluation.alpha: "),
        ("evaluation.minimum_gain", 0.0, "evaluation: minimum_gain is 0, .*: give expected_gain too"),
        ("evaluation.metric", "f1", "evaluation.metric: "),
        ("evaluation.regulated", True, "data.groups names none, so nothing could ever pass"),
        ("serving", {"min_replicas": 3, "max_replicas": 2}, "serving: max_replicas 2 is under min_replicas 3"),
    ],
)
def test_a_fault_is_one_line_that_names_field_given_and_allowed(
    tmp_path: Path, path: str, value: Any, message: str
) -> None:
    content = minimal()
    *sections, last = path.split(".")
    inner = content
    for config in sections:
        inner = inner.setdefault(config, {})
    inner[last] = value
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(written(tmp_path, content))
    head, *lines = str(caught.value).splitlines()
    assert head == f"recipe {tmp_path / 'recipe.yaml'}:"
    assert len(lines) == 1
    assert "pydantic" not in lines[0]


def test_values_of_a_space_are_tried_together_where_they_bear_on_each_other() -> None:
    def recipe(**choices: list[Any]) -> Recipe:
        space = {name: {"choice": values} for name, values in choices.items()}
        training = {"batch_size": 32, "gradient_accumulation_steps": 16, "zero_stage": 0}
        return Recipe.model_validate(minimal() | {"training": training, "tuning": {"space": space}})

    recipe(batch_size=[16, 64], gradient_accumulation_steps=[1, 8])  # 16 would not do with the section's own 16
    with pytest.raises(ValidationError, match=r"tuning.space: batch_size 16 with gradient_accumulation_steps 16 is no"):
        recipe(batch_size=[16, 64], gradient_accumulation_steps=[1, 16])
    with pytest.raises(ValidationError, match=r"tuning.space: batch_size 16 is not allowed: .* must be a multiple of"):
        recipe(batch_size=[16])
    with pytest.raises(ValidationError, match=r"tuning.space: epochs 0 is not allowed"):
        recipe(epochs=[0])


def test_every_fault_is_said_at_once(tmp_path: Path) -> None:
    content = minimal() | {"nmae": "x", "training": {"epochs": "many", "seeed": 1}}
    del content["registry"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, content))
    places = {line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]}
    assert places == {"nmae", "training.epochs", "training.seeed", "registry"}
    assert "registry: this field is required" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "must be a mapping"), ("- a\n- b", "must be a mapping of sections, not list"), ("a: [", "is not YAML")],
)
def test_a_file_that_is_no_recipe_is_said_to_be_none(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(written(tmp_path, content))


def test_a_file_that_is_not_there_or_not_text_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml: No such file.*give the path of a YAML file"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"binary\.yaml is not YAML"):
        load_recipe(tmp_path / "binary.yaml")


def test_overrides_change_a_field_typed_as_in_yaml_and_make_sections_that_are_missing(tmp_path: Path) -> None:
    overrides = ("training.epochs=7", "name=other", "data.groups=[a, b]", "tuning.space={epochs: {choice: [1, 2]}}")
    recipe = load_recipe(written(tmp_path, minimal()), overrides=overrides)
    assert (recipe.training.epochs, recipe.name, recipe.data.groups) == (7, "other", ("a", "b"))
    assert recipe.tuning.space == {"epochs": Distribution(choice=(1, 2))}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "is not of the form section.key=value"),
        ("=3", "is not of the form section.key=value"),
        ("name.first=3", "'name' is not a section"),
        ("training.epochs=[1", "the value is not YAML"),
        ("training.epochs=many", "training.epochs: .*given: 'many'"),
        ("training.epoch=3", "training.epoch: no such field"),
    ],
)
def test_an_override_that_cannot_be_is_refused(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(written(tmp_path, minimal()), overrides=(override,))


def test_every_field_has_a_docstring_for_the_reference_page() -> None:
    pending: list[Any] = [Recipe, Distribution]
    while pending:
        config = pending.pop()
        for name, field in config.model_fields.items():
            assert field.description, f"{config.__name__}.{name}"
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                pending.append(field.annotation)


def test_a_digest_depends_on_the_content_alone(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, minimal()))
    assert digest(recipe) == digest(Recipe.model_validate(dict(reversed(list(minimal().items())))))
    assert digest(recipe) != digest(load_recipe(written(tmp_path, minimal()), overrides=("training.seed=1",)))
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"version": "candidate"}, "give exactly one of both"),
        ({"version": "candidate", "canary": 0.1, "shadow": 0.1}, "give exactly one of both"),
        ({"version": "candidate", "canary": 0}, "greater than 0"),
        ({"version": "candidate", "canary": 1.5}, "less than or equal to 1"),
        ({"version": "", "canary": 0.1}, "at least 1 character"),
        ({"canary": 0.1}, "version"),
        ({"version": "candidate", "shadow": 1.0}, "challenger.shadow needs request_log"),
    ],
)
def test_a_trial_is_one_version_and_one_share(tmp_path: Path, given: dict[str, Any], fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        load_recipe(written(tmp_path, minimal() | {"serving": {"challenger": given}}))


def test_a_chat_model_may_be_a_canary_and_no_shadow(tmp_path: Path) -> None:
    chat = minimal() | {"task": "chat", "evaluation": {"metric": "exact_match"}}
    trial: dict[str, Any] = {"version": "candidate", "canary": 0.1}
    assert load_recipe(written(tmp_path, chat | {"serving": {"challenger": trial}})).serving.challenger is not None
    serving = {"request_log": "s3://lake/log", "challenger": {"version": "candidate", "shadow": 0.1}}
    with pytest.raises(RecipeError, match=r"serving\.challenger\.shadow is not for chat"):
        load_recipe(written(tmp_path, chat | {"serving": serving}))


def test_a_trial_is_switched_on_and_off_on_the_command_line(tmp_path: Path) -> None:
    path = written(tmp_path, minimal())
    on = load_recipe(path, overrides=("serving.challenger={version: full-1, canary: 0.1}",)).serving.challenger
    assert on is not None
    assert (on.version, on.canary, on.shadow) == ("full-1", 0.1, None)
    path = written(tmp_path, minimal() | {"serving": {"challenger": on.model_dump()}})
    assert load_recipe(path, overrides=("serving.challenger=null",)).serving.challenger is None
    assert load_recipe(path, overrides=("serving.challenger.canary=0.5",)).serving.challenger == on.model_copy(
        update={"canary": 0.5}
    )
