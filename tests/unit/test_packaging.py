"""The command works from a checkout and from an installed wheel, in any folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHADOWS = {"config.py": "raise ImportError('config of the user')\n", "training.csv": "text,label\n"}
FOLDERS = ("data", "models", "evaluation", "registry", "storage")


def test_every_package_is_installed_and_no_module_is_at_the_root() -> None:
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(hatch["build"]["targets"]["wheel"]["packages"]) == packages - {"tests", "benchmarks"}
    assert not list(ROOT.glob("*.py"))
    for package in packages:
        folders = {path.parent for path in (ROOT / package).rglob("*.py")}
        assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_no_text_mentions_a_package_on_pypi() -> None:
    paths = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "k8s" / "README.md"]
    paths += [
        path for package in ROOT.glob("*/__init__.py") for path in package.parent.rglob("*.py")
    ]
    outside = [path for path in paths if "tests" not in path.relative_to(ROOT).parts]
    assert len(outside) > 100
    texts = {path: path.read_text(encoding="utf-8") for path in outside}
    assert [path.name for path, text in texts.items() if "pip install tailorbird" in text] == []


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with the built wheel and the dependencies of this
    environment."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
    ]
    subprocess.run([*build, str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    (packages,) = environment.glob("lib/*/site-packages")
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, str(wheel)], check=True)
    # Python does not process .pth files in such a folder, so the editable installation is not
    # found.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    for name, text in SHADOWS.items():
        (tmp_path / name).write_text(text)
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('{name} of the user')\n")
    return tmp_path


def run(command: list[str], *, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


RENDER = "import sys; from tailorbird.cli.app import main; sys.argv[0] = 'tailorbird'; main()"


@pytest.mark.parametrize("start", [("-m", "tailorbird"), ("-c", RENDER)], ids=["module", "command"])
def test_a_checkout_works_in_a_folder_with_shadowing_names(
    start: tuple[str, ...], user_folder: Path
) -> None:
    recipe = ROOT / "recipes" / "icd10_demo.yaml"
    rendered = run(
        [sys.executable, *start, "render", str(recipe), "--to", "rayjob"], folder=user_folder
    )
    assert "python -m tailorbird run" in rendered


def test_a_wheel_works_in_a_folder_with_shadowing_names_and_contains_recipes_and_templates(
    installed: Path, user_folder: Path
) -> None:
    program = (
        "import tailorbird, serving; from tailorbird import resource_folder as folder\n"
        "print(tailorbird.__file__); print(folder('recipes') / 'icd10_demo.yaml'); "
        "print(folder('k8s'))\nfrom pathlib import Path\n"
        "print(sum(len(list(Path(p.__file__).parent.rglob('templates/*'))) for p in (tailorbird, "
        "serving)))"
    )
    module, recipe, k8s, templates = run(
        [str(installed), "-c", program], folder=user_folder
    ).splitlines()
    assert all(Path(path).is_relative_to(installed.parents[1]) for path in (module, recipe, k8s))
    assert int(templates) == sum(
        len(list((ROOT / name).rglob("templates/*"))) for name in ("tailorbird", "serving")
    )
    command = installed.parent / "tailorbird"
    assert run([str(command), "--version"], folder=user_folder).startswith("tailorbird ")
    shutil.copy(recipe, user_folder / "recipe.yaml")
    rayjob = run([str(command), "render", "recipe.yaml", "--to", "rayjob"], folder=user_folder)
    assert "kind: RayJob" in rayjob
    assert "entrypoint: python -m tailorbird run" in rayjob
