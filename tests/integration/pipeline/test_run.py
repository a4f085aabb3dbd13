"""One small recipe from Parquet on S3 to an HTTP answer: what each part leaves fits what the next one says."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from cluster import connection
from serving.deploy.application import application_name
from serving.deploy.rollout import deploy, undeploy
from tailorbird import storage
from tailorbird.checks.verify import verify_evidence
from tailorbird.config.recipe import Recipe
from tailorbird.data.loader import read_rows
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.prediction_store import load_predictions, save_predictions
from tailorbird.evaluation.predictions import Predictions, ModelPredictions
from tailorbird.evaluation.report.evidence_files import MANIFEST, as_routing, case_of, load_all_predictions, prediction_table_names
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.protocol import NO_GATES, TestProtocol
from tailorbird.evaluation.verdict.rules import Outcome
from tailorbird.evaluation.verdict.types import Verdict
from tailorbird.models.loading import load_version
from tailorbird.pipeline import run as pipeline
from tailorbird.pipeline.artifacts import Model
from tailorbird.pipeline.evaluate import Done, conclude
from tailorbird.pipeline.prepare import Prepared, prepare
from tailorbird.registry.champion import read_champion
from tailorbird.registry.versions import list_versions, read_version
from tailorbird.release.parity import ParityRefused
from tailorbird.release.promotion import promote_version
from tailorbird.release.runs import PromotionRefused
from tailorbird.storage.node_cache import local_copy
from tests.integration.small import Heard, SmallRun, small_recipe, stages, written

ROLES = ("incumbent", "candidate", "reference")


@pytest.fixture(scope="module")
def champion_url(small_run: SmallRun) -> Iterator[str]:
    """Address of the run's winner, promoted and served."""
    task_uri = small_run.recipe.task_uri
    champion = promote_version(task_uri)
    version = read_version(champion.uri)
    yield deploy(small_run.recipe.serving, task_uri=task_uri, version=version)
    undeploy(application_name(task_uri))


def predictions(run: str) -> dict[str, Predictions]:
    return {role: load_predictions(f"{run}/predictions/{role}.parquet") for role in ROLES}


def test_the_verdict_is_what_the_stored_predictions_and_question_give_again(small_run: SmallRun) -> None:
    run = small_run.done.run
    frozen = storage.read_json(f"{run}/question.json")
    case = case_of(small_run.done.evidence, load_all_predictions(run))
    assert case.test_sha256 == frozen["data"]["test"]
    again = decide(case, question=TestProtocol.from_dict(frozen["question"]))
    assert again == small_run.done.verdict
    assert {gate.name for gate in again.gates} == {"calibration", "groups", "counterfactual", "robustness"}
    assert again.n == len(read_rows(small_run.recipe.data.test or "", config=small_run.recipe.data)) == 400


def test_stored_predictions_are_of_the_test_rows_in_their_order_without_their_text(small_run: SmallRun) -> None:
    rows = read_rows(small_run.recipe.data.test or "", config=small_run.recipe.data)
    for table in predictions(small_run.done.run).values():
        assert (table.row_ids, table.labels) == (rows.row_ids, rows.labels)
        assert table.groups["group"] == rows.groups["group"]
        assert not set(table.to_table().column_names) & {"text"}


def test_the_run_leaves_evidence_page_card_and_question(small_run: SmallRun) -> None:
    run = small_run.done.run
    names = {uri.removeprefix(f"{run}/") for uri in storage.list_files(run)}
    tables = {f"predictions/{name}.parquet" for name in prediction_table_names(changed=True)}
    assert names == {"question.json", "evidence.json", "report.html", "MODEL_CARD.md", MANIFEST} | tables
    evidence = storage.read_json(f"{run}/evidence.json")
    assert evidence["verdict"] == small_run.done.verdict.to_dict()
    assert evidence["data"]["num_train"] >= 300
    assert {rung["kind"] for rung in evidence["ladder"]} >= {"majority", "zero_shot", "centroid", "probe", "tf_idf"}


def test_the_sweeps_table_holds_the_rungs_beside_the_trials_best_first(small_run: SmallRun) -> None:
    table = small_run.done.evidence["sweep"]
    scores = [row["validation"] for row in table]
    assert scores == sorted(scores, reverse=True)
    trials = [row for row in table if row["status"] != "pretrained"]
    assert len(trials) == small_run.recipe.tuning.num_trials
    assert {row["trial"] for row in table} >= {"majority", "zero_shot", "centroid", "probe", "tf_idf"}
    assert all(row["seconds"] > 0 for row in trials if row["epochs"])


def test_what_was_asked_was_shown_on_the_way(small_run: SmallRun) -> None:
    trials = {event["trial"] for event in small_run.heard.of_kind("epoch")}
    assert len(trials) == small_run.recipe.tuning.num_trials
    assert all(0 <= event["score"] <= 1 and np.isfinite(event["loss"]) for event in small_run.heard.of_kind("epoch"))
    assert all(event["rows_per_second"] > 0 for event in small_run.heard.of_kind("step"))


def test_validation_scores_are_those_of_the_artifacts_that_the_test_rows_meet(small_run: SmallRun) -> None:
    prepared = prepare(small_run.recipe, show=Heard())
    rows = prepared.splits.validation
    with connection.connect():
        rungs, incumbent = pipeline.climb_ladder(prepared, show=Heard())
    for rung in rungs:
        if rung["servable"]:
            answers = predict_rows(rung["uri"], rows=rows)
            assert answers.model == rung["kind"]
            assert answers.scores.mean() == pytest.approx(rung["validation"], abs=1 / len(rows) + 1e-9), rung["kind"]
    assert incumbent.validation == max(rung["validation"] for rung in rungs if rung["servable"])
    candidate = small_run.done.evidence["seeds"][0]["validation"]
    trained = small_run.done.evidence["versions"]["candidate"]["uri"]
    assert predict_rows(trained, rows=rows).scores.mean() == pytest.approx(candidate, abs=3 / len(rows))


def test_the_winner_is_registered_whole_with_its_evidence(small_run: SmallRun) -> None:
    winner = read_version(small_run.done.winner)
    assert winner.uri in {version.uri for version in list_versions(small_run.recipe.task_uri)}
    manifest = storage.read_json(f"{winner.uri}/manifest.json")
    for name, entry in manifest.items():
        assert storage.sha256_file(local_copy(winner.uri) / name) == entry["sha256"]
    for name in ("evidence.json", "report.html", "MODEL_CARD.md", *(f"predictions/{role}.parquet" for role in ROLES)):
        assert storage.exists(f"{winner.uri}/{name}")
    role = "candidate" if small_run.done.verdict.outcome is Outcome.FINE_TUNE else "incumbent"
    assert small_run.done.evidence["versions"][role]["digest"] == winner.digest
    loaded = load_version(winner.uri)
    assert loaded.classes == prepare(small_run.recipe, show=Heard()).classes


def test_a_second_run_finds_the_first_and_writes_nothing_anew(small_run: SmallRun) -> None:
    before = written(small_run.recipe.task_uri), stages(small_run.recipe.task_uri)
    heard = Heard()
    with connection.connect():
        again = pipeline.run_pipeline(small_run.recipe, show=heard)
    assert (again.run, again.verdict, again.winner) == (
        small_run.done.run,
        small_run.done.verdict,
        small_run.done.winner,
    )
    assert (written(small_run.recipe.task_uri), stages(small_run.recipe.task_uri)) == before
    assert heard.of_kind("epoch") == []


def test_promote_makes_the_winner_the_champion_and_the_endpoint_answers_as_the_predictions_say(
    small_run: SmallRun, champion_url: str
) -> None:
    found = read_champion(small_run.recipe.task_uri)
    assert found is not None
    assert found[0].uri == small_run.done.winner
    rows = read_rows(small_run.recipe.data.test or "", config=small_run.recipe.data)
    role = "candidate" if small_run.done.verdict.outcome is Outcome.FINE_TUNE else "incumbent"
    stored = predictions(small_run.done.run)[role]
    asked = list(range(0, len(rows), 8))
    body = {"input": [rows.texts[row] for row in asked]}
    answer = requests.post(f"{champion_url}/v1/classify", json=body, timeout=60).json()
    same = [result["label"] == stored.outputs[row] for result, row in zip(answer["results"], asked, strict=True)]
    assert sum(same) >= len(asked) - 1  # in bf16 another batch may turn a tie
    scores = [result["score"] for result in answer["results"]]
    assert scores == pytest.approx([stored.calibrated[row] for row in asked], abs=0.02)


def test_a_candidate_that_wins_is_registered_promoted_and_swapped_in(small_run: SmallRun, champion_url: str) -> None:
    prepared = prepare(small_run.recipe, show=Heard())
    serving = read_champion(small_run.recipe.task_uri)
    assert serving is not None
    prepared = replace(prepared, run=f"{small_run.recipe.task_uri}/runs/won", champion=serving[0].uri)
    evidence = small_run.done.evidence
    tables = load_all_predictions(small_run.done.run)
    won = won_verdict(prepared, small_run)
    models = {
        role: Model(
            evidence["versions"][role]["kind"],
            small_run.done.winner if role == "incumbent" else evidence["versions"][role]["uri"],
            0.5,
        )
        for role in ("incumbent", "candidate")
    }
    sweep = next(storage.read_json(uri)["value"] for uri in stages(small_run.recipe.task_uri) if "/sweep-" in uri)
    ladder = next(storage.read_json(uri)["value"] for uri in stages(small_run.recipe.task_uri) if "/ladder-" in uri)
    kept = ("data", "look", "ledger", "routing", "measured", "curve", "averaged")
    parts = {"rungs": ladder, "sweep": sweep, "seeds": [sweep["trained"]], "tables": tables}
    done = conclude(prepared, won, models=models, parts=parts | {name: evidence[name] for name in kept})
    refuse_what_answers_otherwise(small_run, done, url=champion_url)
    champion = promote_version(small_run.recipe.task_uri, version=done.winner)
    version = read_version(champion.uri)
    assert (version.kind, champion.uri) == ("full", done.winner)
    assert "FINE_TUNE by rule 3" in champion.reason
    assert champion.parity is not None
    assert (champion.parity.asked, champion.parity.same) == (64, 64)
    assert champion.pretrained is not None
    former = (read_version(done.evidence["versions"]["incumbent"]["uri"]).version, champion.pretrained.digest)
    pretrained = ("pretrained", champion.pretrained.digest)  # the same, as it happens
    assert served_at(champion_url) == [("champion", champion.digest), former, pretrained]
    url = deploy(small_run.recipe.serving, task_uri=small_run.recipe.task_uri, version=version)
    assert url == champion_url
    rows = prepared.splits.test
    asked = list(range(0, len(rows), 8))
    stored = predictions(small_run.done.run)["candidate"]
    answer = requests.post(f"{url}/v1/classify", json={"input": [rows.texts[row] for row in asked]}, timeout=60).json()
    assert answer["version"] == version.version
    same = [result["label"] == stored.outputs[row] for result, row in zip(answer["results"], asked, strict=True)]
    assert sum(same) >= len(asked) - 1


def refuse_what_answers_otherwise(small_run: SmallRun, done: Done, *, url: str) -> None:
    """As if the candidate had been evaluated with other weights: it does not become the champion, the former serves."""
    before, serves = read_champion(small_run.recipe.task_uri), served_at(url)
    uri = f"{done.run}/predictions/candidate.parquet"
    content = storage.read_bytes(uri)
    save_predictions(uri, load_all_predictions(done.run)["incumbent"])
    try:
        with pytest.raises(
            ParityRefused, match=r"answers \d+ of 64 test rows otherwise .*\n  row \d+, .*: evaluated .*, served"
        ):
            promote_version(small_run.recipe.task_uri, version=done.winner)
    finally:
        storage.write_bytes(uri, content)
    assert read_champion(small_run.recipe.task_uri) == before
    assert requests.post(f"{url}/v1/classify", json={"input": "Cholera"}, timeout=60).status_code == 200
    assert served_at(url) == serves


def served_at(url: str) -> list[tuple[str, str]]:
    models = requests.get(f"{url}/v1/models", timeout=60).json()["data"]
    return [(model["id"], model["digest"]) for model in models]


def test_a_stored_verdict_holds_until_a_byte_of_it_changes(small_run: SmallRun) -> None:
    assert verify_evidence(small_run.done.run) == ()
    assert verify_evidence(small_run.done.winner) == ()
    uri = f"{small_run.done.run}/predictions/candidate_noise.parquet"
    content = storage.read_bytes(uri)
    try:
        storage.write_bytes(uri, content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        assert "predictions/candidate_noise.parquet was changed" in verify_evidence(small_run.done.run)[0]
    finally:
        storage.write_bytes(uri, content)


def test_a_hybrid_that_wins_is_a_version_of_both_and_the_next_runs_incumbent(
    small_run: SmallRun, small_data: str, tmp_path: Path
) -> None:
    recipe = small_recipe(tmp_path, name="hybrid", data=small_data, overrides=("evaluation.hybrid={by: confidence}",))
    with connection.connect():
        prepared = prepare(recipe, show=Heard())
        evidence = small_run.done.evidence
        models = {role: Model(version["kind"], version["uri"], 0.5) for role, version in evidence["versions"].items()}
        routing: dict[str, Any] = {"by": "confidence", "column": None, "values": [], "threshold": 0.4}
        tables = load_all_predictions(small_run.done.run)
        case = replace(case_of(evidence, tables), routing=as_routing(routing))
        decided = decide(case, question=replace(prepared.question, gates=NO_GATES))
        assert decided.hybrid is not None
        assert 0 < decided.hybrid.share_to_candidate < 1
        kept = ("data", "look", "ledger", "measured", "curve", "averaged")
        sweep = next(storage.read_json(uri)["value"] for uri in stages(small_run.recipe.task_uri) if "/sweep-" in uri)
        ladder = next(storage.read_json(uri)["value"] for uri in stages(small_run.recipe.task_uri) if "/ladder-" in uri)
        parts = {"rungs": ladder, "sweep": sweep, "seeds": [sweep["trained"]], "tables": tables, "routing": routing}
        won = replace(decided, outcome=Outcome.HYBRID, rule=4)
        done = conclude(prepared, won, models=models, parts=parts | {name: evidence[name] for name in kept})
        champion = promote_version(recipe.task_uri, version=done.winner)
        version = read_version(champion.uri)
        assert (version.kind, champion.uri) == ("hybrid", done.winner)
        answered = predict_rows(version.uri, rows=prepared.splits.test)
        assert answered.scores.mean() == pytest.approx(decided.hybrid.score, abs=0.01)
        asked = ("evaluation.hybrid={by: confidence}", "evaluation.minimum_gain=0.02")
        again = prepare(small_recipe(tmp_path, name="hybrid", data=small_data, overrides=asked), show=Heard())
        rungs, _ = pipeline.climb_ladder(again, show=Heard())
    assert rungs[0]["uri"] == version.uri


def won_verdict(prepared: Prepared, small_run: SmallRun) -> Verdict:
    """What `decide` says where the candidate is right on every row."""
    tables = load_all_predictions(small_run.done.run)
    right = tables["candidate"]
    sure = np.ones(len(right))
    perfect = replace(right, outputs=right.labels, scores=sure, confidences=sure, calibrated=sure)
    case = VerdictInputs(ModelPredictions(tables["incumbent"]), ModelPredictions(perfect), tables["reference"], prepared.hashes["test"])
    return decide(case, question=replace(prepared.question, gates=NO_GATES))


def test_a_version_that_no_verdict_chose_is_not_promoted(small_run: SmallRun) -> None:
    recipe: Recipe = small_run.recipe
    before = read_champion(recipe.task_uri)
    with pytest.raises(PromotionRefused, match="no run is finished"):
        promote_version(f"{recipe.registry}/nothing-here")
    assert read_champion(recipe.task_uri) == before
