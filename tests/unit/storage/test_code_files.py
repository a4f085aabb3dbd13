"""The fingerprint of a stage changes with the code that the stage runs, and not with other code."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tailorbird import PACKAGES, PROJECT_ROOT
from tailorbird.evaluation.baselines import chat, classification
from tailorbird.evaluation.inference import perturbations, predict, serving_cost
from tailorbird.storage.code_files import code_sha256, source_files
from training.chat_task import ChatTrainingTask
from training.classification_task import ClassificationTrainingTask
from training.export import average_weights
from training.trainer import finetune
from tuning.sweep import sweep

STAGES: dict[str, tuple[Callable[..., object], ...]] = {
    "baselines": (classification.fit_baselines,),
    "chat baselines": (chat.fit_prompt_baselines,),
    "sweep": (sweep, ClassificationTrainingTask),
    "chat sweep": (sweep, ChatTrainingTask),
    "seed": (finetune, ClassificationTrainingTask),
    "average": (average_weights, predict.predict_rows),
    "decision": (predict.fit_decision,),
    "predictions": (predict.predict_rows,),
    "noise predictions": (predict.predict_rows, perturbations.add_typos),
    "cost": (serving_cost.measure_serving,),
}
UNREACHED = (
    "serving/",
    "cluster/local/",
    "tailorbird/cli/",
    "tailorbird/evaluation/report/",
    "tailorbird/evaluation/verdict/",
    "tailorbird/monitoring/",
    "tailorbird/operate/",
    "tailorbird/pipeline/",
    "tailorbird/release/",
)


@pytest.mark.parametrize("stage", STAGES)
def test_a_fingerprint_does_not_cover_reports_monitoring_serving_or_the_cli(stage: str) -> None:
    assert [name for name in source_files(*STAGES[stage]) if name.startswith(UNREACHED)] == []


def copy_packages(root: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(
            PROJECT_ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return root


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project's packages."""
    return copy_packages(tmp_path_factory.mktemp("tree"))


@pytest.mark.parametrize(
    ("edited", "changed"),
    [
        ("training/loop.py", {"sweep", "chat sweep", "seed"}),
        ("tailorbird/evaluation/baselines/linear_head.py", {"baselines"}),
        ("tailorbird/evaluation/inference/perturbations.py", {"noise predictions"}),
        ("tailorbird/storage/objects.py", set(STAGES)),
    ],
)
def test_an_edit_changes_the_fingerprints_of_the_stages_that_run_the_file(
    tree: Path, edited: str, changed: set[str]
) -> None:
    def fingerprints() -> dict[str, str]:
        return {name: code_sha256(source_files(*STAGES[name], root=tree)) for name in STAGES}

    before = fingerprints()
    content = (tree / edited).read_bytes()
    try:
        (tree / edited).write_bytes(content + b"\n# edited\n")
        after = fingerprints()
    finally:
        (tree / edited).write_bytes(content)
    assert {stage for stage in STAGES if before[stage] != after[stage]} == changed


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    """Packages with a re-export, an import inside a function and an import for type checkers."""
    sources = {
        "tuning/__init__.py": "from tuning.exported import value",
        "tuning/exported.py": "value = 1",
        "tuning/stage.py": (
            "import json\nimport training.plain\nfrom typing import TYPE_CHECKING\nfrom training "
            "import named\nif TYPE_CHECKING:\n    from serving.typed import T\nelse:\n    import "
            "serving.untyped\ndef run():\n    from tuning import value\n"
        ),
        "training/__init__.py": "from training.unused import x",
        **{f"training/{name}.py": "" for name in ("plain", "named", "unused")},
        **{f"serving/{name}.py": "" for name in ("typed", "untyped")},
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    return tmp_path


def test_imports_are_followed_to_the_modules_that_they_name(small_tree: Path) -> None:
    def stage() -> None: ...

    stage.__module__ = "tuning.stage"
    assert tuple(source_files(stage, root=small_tree)) == (
        "serving/untyped.py",
        "training/named.py",
        "training/plain.py",
        "tuning/__init__.py",
        "tuning/exported.py",
        "tuning/stage.py",
    )
