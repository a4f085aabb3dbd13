"""No file of the project unpickles, evaluates strings, loads code of models or opens a shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = [
    path
    for path in ROOT.iterdir()
    if path.is_dir() and path.name[0] != "." and path.name not in ("tests", "build")
]
OURS = sorted([*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in folder.rglob("*.py"))])
CALLS = (
    *(
        "pickle.load",
        "pickle.loads",
        "cloudpickle.load",
        "cloudpickle.loads",
        "joblib.load",
        "dill.load",
    ),
    *(
        "marshal.loads",
        "torch.load",
        "torch.jit.load",
        "torch.hub.load",
        "pd.read_pickle",
        "pandas.read_pickle",
    ),
    *(
        "yaml.load",
        "yaml.full_load",
        "yaml.unsafe_load",
        "eval",
        "exec",
        "os.system",
        "os.popen",
        "tempfile.mktemp",
    ),
)
"""Calls that may run code in their input."""
EXCEPT = {
    "tailorbird/monitoring/report_window.py": ["pickle.loads"],
}
"""Exceptions. The pickled value comes from a Ray task that the same process has started. The header
of a checkpoint is loaded with `weights_only`, after a check of the names in it."""
FORBIDDEN, REQUIRED = (
    ("shell", "trust_remote_code", "allow_pickle"),
    ("weights_only", "use_safetensors"),
)
SAFE = dict.fromkeys(FORBIDDEN, False) | dict.fromkeys(REQUIRED, True)
"""Keyword arguments with the only value that is allowed."""


def calls(source: str) -> Iterator[tuple[int, str, dict[str, object]]]:
    """Yield the line, name and keyword arguments of each call; an argument that is not a constant
    is a syntax node."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            given: dict[str, object] = {
                argument.arg: argument.value.value
                if isinstance(argument.value, ast.Constant)
                else argument.value
                for argument in node.keywords
                if argument.arg
            }
            yield node.lineno, ast.unparse(node.func), given


def faults(source: str) -> list[str]:
    problems = []
    for line, name, given in calls(source):
        if name in CALLS or name.rpartition(".")[2] == "extractall":
            problems.append(f"line {line}: {name}")
        problems += [
            f"line {line}: {option}"
            for option, safe in SAFE.items()
            if given.get(option, safe) is not safe
        ]
        if given.get("verify") is False:
            problems.append(f"line {line}: verify=False")
    return problems


def test_no_file_runs_code_from_its_input() -> None:
    problems = {
        path.relative_to(ROOT).as_posix(): faults(path.read_text(encoding="utf-8")) for path in OURS
    }
    calls_by_file = {
        name: [line.rpartition(": ")[2] for line in lines]
        for name, lines in problems.items()
        if lines
    }
    assert {name: lines for name, lines in calls_by_file.items() if lines != EXCEPT.get(name)} == {}


@pytest.mark.parametrize(
    "source",
    [
        "pickle.loads(b)",
        "torch.load(f)",
        "AutoModel.from_pretrained(f, trust_remote_code=True)",
        "AutoModel.from_pretrained(f, trust_remote_code=wanted)",
        "subprocess.run(c, shell=True)",
        "archive.extractall(f)",
        "yaml.load(s, Loader=yaml.Loader)",
        "requests.get(u, verify=False)",
        "np.load(f, allow_pickle=True)",
    ],
)
def test_an_unsafe_call_is_detected(source: str) -> None:
    assert len(faults(source)) >= 1


def test_models_and_tokenizers_are_loaded_without_their_code() -> None:
    loads = [
        (path.name, line, given.get("trust_remote_code"))
        for path in OURS
        if ROOT / "benchmarks" not in path.parents
        for line, name, given in calls(path.read_text(encoding="utf-8"))
        if name.endswith(".from_pretrained")
        and not name.startswith("Peft")  # PEFT has no such option
    ]
    assert len(loads) >= 5
    assert [load for load in loads if load[2] is not False] == []


def test_files_that_read_arrow_check_for_extension_types() -> None:
    """The values of a Ray Data extension type are pickles; see `tailorbird.data.arrow_safety`."""
    reading = (
        "read_table",
        "ParquetFile",
        "ParquetDataset",
        "open_file",
        "open_stream",
        "read_parquet",
    )
    for path in OURS:
        if ROOT / "benchmarks" in path.parents:
            continue
        named = {name for _, name, _ in calls(path.read_text(encoding="utf-8"))}
        reads = {
            name
            for name in named
            if name.startswith(("pq.", "pa.", "ray.data.")) and name.endswith(reading)
        }
        compares_schema = (
            "shards.py",
            "retrieval/files.py",
        )  # these compare the whole schema with their own
        assert (
            "extension_columns" in named or path.as_posix().endswith(compares_schema) or not reads
        ), path
