"""Recipes are loaded, and each invalid field is reported in one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tailorbird.config.base import RecipeError, digest
from tailorbird.config.loader import load_recipe
from tailorbird.config.recipe import Recipe
from tailorbird.config.tuning import Distribution
from tests import build

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
    path.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8"
    )
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_recipe_loads_and_has_the_name_of_its_file(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem.replace("_", "-")
    registry = "s3://models/demo" if recipe.name == "icd10-demo" else "s3://models"
    assert recipe.task_uri == f"{registry}/{recipe.name}"


def chat(**evaluation: Any) -> dict[str, Any]:
    return minimal() | {"task": "chat", "evaluation": {"metric": "token_f1"} | evaluation}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            chat(metric="accuracy"),
            "evaluation.metric 'accuracy' is not available for chat tasks; allowed: exact_match, "
            "token_f1, rouge_l",
        ),
        (
            minimal() | {"evaluation": {"metric": "rouge_l"}},
            "'rouge_l' is not available for classification tasks; allowed: accuracy",
        ),
        (chat(gates={"calibration": {}}), "evaluation.gates.calibration is not available for chat"),
        (
            chat(hybrid="site"),
            "evaluation.hybrid 'site' is neither",
        ),
        (
            minimal() | {"serving": {"engine": "vllm"}},
            "serving.engine is not available for classification",
        ),
        (
            minimal()
            | {"data": {"train": "s3://data/train", "response_format": {"type": "json_object"}}},
            "data.response_format is not available for classification tasks; remove it",
        ),
        (
            minimal() | {"evaluation": {"retrieval_encoder": "pypi://encoder"}},
            "retrieval_encoder is not available for classification tasks",
        ),
    ],
)
def test_a_field_of_the_other_task_is_rejected(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(content)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("trainning", {}, "trainning: no such field; remove it or correct its name"),
        ("training.epochs", "many", "training.epochs: .*valid integer.*given: 'many'"),
        ("training.epochs", 0, r"training.epochs: .*greater than or equal to 1 \(given: 0\)"),
        ("training.method", "prefix", "training.method: .*'lora' or 'full'.*given: 'prefix'"),
        ("training.batch_size", 1, "training: batch_size 1 must be at least num_workers 2"),
        (
            "training.batch_tokens",
            50,
            "training.batch_tokens 50 must be at least data.max_length 64, because a micro-batch "
            "must hold the",
        ),
        ("training.num_workers", [2, 1], r"training: num_workers \[2, 1\] must be \[min, max\]"),
        (
            "training.num_workers",
            [1, 33],
            "training: batch_size 32 must be at least num_workers 33",
        ),
        (
            "training.offload",
            "parameters",
            "training: offload 'parameters' requires zero_stage 3 or higher, not 1",
        ),
        (
            "training.deepspeed",
            {"zero_optimization": {"stage": 2}},
            "training.deepspeed: zero_optimization.stage cannot be set here; set "
            "training.zero_stage",
        ),
        (
            "training.deepspeed",
            {"bf16": {"enabled": True}},
            "bf16 cannot be set here; set training.parameter_dtype",
        ),
        (
            "training.deepspeed",
            {"torch_autocast": {"enabled": False}},
            "torch_autocast cannot be set here",
        ),
        (
            "training.deepspeed",
            {"zero_optimization": {"round_robin_gradients": True}},
            "zero_optimization.round_robin_gradients is not supported; remove it",
        ),
        (
            "training",
            {"zero_stage": 3, "torch_compile": True},
            "training: torch_compile requires zero_stage",
        ),
        ("name", "Has Spaces", "name: .*pattern.*given: 'Has Spaces'"),
        (
            "base_model",
            "bert-base",
            "base_model: 'bert-base' is not a model URI; use pypi://package",
        ),
        ("registry", "/models", "registry: '/models' must start with s3:// or file://"),
        ("data.train", "lake/train", "data.train: 'lake/train' must start with s3:// or file://"),
        (
            "data.validation",
            "s3://lake/rows",
            "data: `validation` requires `test`; set both, or neither",
        ),
        ("data.train", [], "data.train: give at least one URI"),
        (
            "data.train",
            ["s3://lake/a", "lake/b"],
            "data.train: 'lake/b' must start with s3:// or file://",
        ),
        (
            "tuning.space",
            {"epohs": {"choice": [1]}},
            "tuning.space: 'epohs' cannot be tuned; allowed: batch_size, ",
        ),
        (
            "tuning.space",
            {"zero_stage": {"choice": [1]}},
            "tuning.space: 'zero_stage' cannot be tuned",
        ),
        ("tuning.space", {"epochs": {}}, "tuning.space.epochs: "),
        (
            "tuning.space",
            {"epochs": {"choice": [1], "log_uniform": [1, 2]}},
            "tuning.space.epochs: ",
        ),
        (
            "tuning.space",
            {"learning_rate": {"log_uniform": [0, 1]}},
            "tuning.space.learning_rate: ",
        ),
        (
            "tuning.space",
            {"learning_rate": {"log_uniform": [1, 1]}},
            "tuning.space.learning_rate: ",
        ),
        (
            "tuning.space",
            {"learning_rate": {"log_uniform": [1, float("inf")]}},
            "tuning.space.learning_rate: ",
        ),
        ("tuning.space", {"learning_rate": {"choice": []}}, "choice is empty"),
        (
            "evaluation.minimum_gain",
            0.0,
            "evaluation: minimum_gain 0 gives no default for expected_gain; set expected_gain",
        ),
        ("evaluation.regulated", True, "gates.groups never passes because data.groups is empty"),
        (
            "serving",
            {"autoscaling": {"min_replicas": 3, "max_replicas": 2}},
            "serving.autoscaling: max_replicas 2 must be at least min_replicas 3",
        ),
    ],
)
def test_an_error_is_one_line_with_the_field_its_value_and_the_allowed_values(
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


@pytest.mark.parametrize(("name", "value"), [("batch_size", 1), ("epochs", 0)])
def test_each_value_of_the_search_space_is_checked(name: str, value: int) -> None:
    content = minimal() | {"tuning": {"space": {name: {"choice": [16, value]}}}}
    with pytest.raises(ValidationError, match=f"{name} {value} is not allowed"):
        Recipe.model_validate(content)


def test_a_missing_or_binary_file_is_rejected_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"absent\.yaml: No such file.*give the path of a YAML file"
    ):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"binary\.yaml is not valid YAML"):
        load_recipe(tmp_path / "binary.yaml")


def test_overrides_are_parsed_as_yaml_and_create_missing_sections(tmp_path: Path) -> None:
    overrides = ("name=other", "tuning.space={epochs: {choice: [1, 2]}}")
    recipe = load_recipe(written(tmp_path, minimal()), overrides=overrides)
    assert recipe.name == "other"
    assert recipe.tuning.space == {"epochs": Distribution(choice=(1, 2))}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "must have the form section.key=value"),
        ("name.first=3", "'name' is not a section"),
    ],
)
def test_an_invalid_override_is_rejected(tmp_path: Path, override: str, message: str) -> None:
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


def test_a_digest_depends_only_on_the_content(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, minimal()))
    assert digest(recipe) == digest(Recipe.model_validate(dict(reversed(list(minimal().items())))))
    assert digest(recipe) != digest(
        load_recipe(written(tmp_path, minimal()), overrides=("training.seed=1",))
    )


@pytest.mark.parametrize(
    ("challenger", "message"),
    [
        ({"version": "candidate", "shadow": 1.5}, "less than or equal to 1"),
        ({"version": "candidate"}, "challenger requires request_log"),
    ],
)
def test_a_challenger_has_a_share_of_at_most_1_and_a_request_log(
    tmp_path: Path, challenger: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(written(tmp_path, minimal() | {"serving": {"challenger": challenger}}))


@pytest.mark.parametrize(
    ("sections", "without"),
    [
        (
            {"serving": {"gpus_per_replica": 1}},
            r"but training\.gpus_per_worker is 0; set the price",
        ),
        (
            {"training": {"gpus_per_worker": 1}},
            r"but serving\.gpus_per_replica is 0; set the price",
        ),
        (
            {},
            r"but serving\.gpus_per_replica is 0 and training\.gpus_per_worker is 0; set the price",
        ),
    ],
)
def test_cpu_cores_are_free_only_if_all_come_with_a_gpu(
    sections: dict[str, Any], without: str
) -> None:
    cost = {
        "value_of_correct": 0.5,
        "requests_per_month": 1000,
        "price_per_cpu_hour": 0,
        "price_per_gpu_hour": 2.5,
    }
    with pytest.raises(ValidationError, match=without):
        Recipe.model_validate(minimal() | sections | {"evaluation": {"cost": cost}})
    on_gpus = {"serving": {"gpus_per_replica": 1}, "training": {"gpus_per_worker": 1}}
    assert (
        Recipe.model_validate(minimal() | on_gpus | {"evaluation": {"cost": cost}}).evaluation.cost
        is not None
    )


def test_base_models_are_one_uri_or_a_list_of_different_uris() -> None:
    given = ["hf://a/b@main", "s3://lake/model"]
    several = build.recipe(base_model=given)
    assert list(map(str, several.base_models)) == given
    assert Recipe.model_validate_json(several.model_dump_json()) == several
    assert build.recipe(base_model=given[0]).model_dump(mode="json")["base_model"] == given[0]
    for wrong in ([], [given[0], given[0]], [1], {"a": 1}):
        with pytest.raises(ValidationError, match="base_model"):
            build.recipe(base_model=wrong)


def prompted(task: str, **data: Any) -> dict[str, Any]:
    content = chat() if task == "chat" else minimal()
    return content | {"data": content["data"] | data}


@pytest.mark.parametrize(
    ("task", "field", "value"),
    [
        ("classification", "template", "Which label?"),
        ("classification", "template", "{text} {label_list}"),
        ("classification", "template", "{ text }"),
        ("classification", "system", "Classify {text}"),
        ("classification", "label_descriptions", {"a": None}),
        ("chat", "template", "Q: {text}"),
        ("chat", "label_descriptions", {"a": "first"}),
    ],
)
def test_a_prompt_that_cannot_be_sent_is_rejected_by_its_field(
    task: str, field: str, value: Any
) -> None:
    with pytest.raises(ValidationError, match=field):
        Recipe.model_validate(prompted(task, **{field: value}))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"template": "Which label?"}, "template. must contain"),
        ({"system": "Classify {text}"}, "contenders.hosted.prompt.system has the placeholder"),
        ({"template": "{text}", "model": "m"}, "model"),
    ],
)
def test_a_prompt_of_an_endpoint_that_cannot_be_sent_is_rejected(
    prompt: dict[str, str], message: str
) -> None:
    endpoint = {"url": "https://host/v1", "model": "m"}
    contenders = {"hosted": {"endpoint": endpoint, "prompt": prompt}}
    with pytest.raises(ValidationError, match=message):
        build.recipe(evaluation={"contenders": contenders})


def test_a_prompt_without_an_endpoint_is_rejected() -> None:
    contenders = {"elsewhere": {"model": "s3://m/tuned", "prompt": {"system": "Be brief."}}}
    with pytest.raises(ValidationError, match="prompt is that of an endpoint"):
        build.recipe(evaluation={"contenders": contenders})


def test_words_in_braces_are_literal_in_chat_and_json_is_literal_in_every_prompt() -> None:
    assert Recipe.model_validate(prompted("chat", system="{name}")).data.system == "{name}"
    system = 'Answer {"label": "..."} with one of {labels}.'
    content = prompted("classification", system=system, label_descriptions={3: "third"})
    data = Recipe.model_validate(content).data
    assert data.system == system
    assert data.label_descriptions == {"3": "third"}  # YAML reads the label 3 as an integer
