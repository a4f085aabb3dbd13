"""What no file of the project does, by its own syntax: unpickle, run a string, fetch a model's code, open a shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = [
    path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in ("tests", "build")
]
OURS = sorted([*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in folder.rglob("*.py"))])
CALLS = (
    *("pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "joblib.load", "dill.load"),
    *("marshal.loads", "torch.load", "torch.jit.load", "torch.hub.load", "pd.read_pickle", "pandas.read_pickle"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "eval", "exec", "os.system", "os.popen", "tempfile.mktemp"),
)
"""Which would run what they are given, or something in it."""
EXCEPT = {"tailorbird/monitoring/report_window.py": ["pickle.loads"]}
"""What a task of Ray's hands to the process that started it, over Ray's own store of objects."""
REFUSED, ASKED_FOR = ("shell", "trust_remote_code", "allow_pickle"), ("weights_only", "use_safetensors")
SAFE = dict.fromkeys(REFUSED, False) | dict.fromkeys(ASKED_FOR, True)
"""Named arguments that stand nowhere with another value."""


def calls(source: str) -> Iterator[tuple[int, str, dict[str, object]]]:
    """Line, name as written, and the named arguments of each call; of a value that is no constant, its syntax."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            given: dict[str, object] = {
                argument.arg: argument.value.value if isinstance(argument.value, ast.Constant) else argument.value
                for argument in node.keywords
                if argument.arg
            }
            yield node.lineno, ast.unparse(node.func), given


def faults(source: str) -> list[str]:
    problems = []
    for line, name, given in calls(source):
        if name in CALLS or name.rpartition(".")[2] == "extractall":
            problems.append(f"line {line}: {name}")
        problems += [f"line {line}: {one}" for one, safe in SAFE.items() if given.get(one, safe) is not safe]
        if given.get("verify") is False:
            problems.append(f"line {line}: verify=False")
    return problems


def test_no_file_runs_what_it_reads() -> None:
    problems = {path.relative_to(ROOT).as_posix(): faults(path.read_text(encoding="utf-8")) for path in OURS}
    named = {name: [one.rpartition(": ")[2] for one in lines] for name, lines in problems.items() if lines}
    assert {name: lines for name, lines in named.items() if lines != EXCEPT.get(name)} == {}


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
def test_what_would_is_found(source: str) -> None:
    assert len(faults(source)) >= 1


def test_every_model_and_tokenizer_is_loaded_with_its_own_code_refused() -> None:
    loads = [
        (path.name, line, given.get("trust_remote_code"))
        for path in OURS
        if ROOT / "benchmarks" not in path.parents
        for line, name, given in calls(path.read_text(encoding="utf-8"))
        if name.endswith(".from_pretrained") and not name.startswith("Peft")  # which knows no such thing
    ]
    assert len(loads) >= 5
    assert [one for one in loads if one[2] is not False] == []


def test_who_reads_arrow_looks_at_the_types_first() -> None:
    """A file may name a type of Ray Data's whose values are pickles: `tailorbird.data.arrow_safety`."""
    reading = ("read_table", "ParquetFile", "ParquetDataset", "open_file", "open_stream", "read_parquet")
    for path in OURS:
        if ROOT / "benchmarks" in path.parents:
            continue
        named = {name for _, name, _ in calls(path.read_text(encoding="utf-8"))}
        reads = {name for name in named if name.startswith(("pq.", "pa.", "ray.data.")) and name.endswith(reading)}
        looks = "extension_columns" in named or path.name == "shards.py"  # which compares the whole schema
        assert looks or not reads, path
