"""Tests of the selection of the incumbent, and of the other baselines that predict the test
rows."""

from tailorbird.evaluation.baselines.baseline import Baseline, other_baselines, select_incumbent


def baseline(kind: str, validation: float, *, servable: bool = True) -> Baseline:
    return Baseline(kind, uri=f"s3://m/{kind}", validation=validation, servable=servable, note="")


def test_the_incumbent_is_a_champion_or_the_best_servable_baseline_on_validation() -> None:
    probe = baseline("probe", 0.6)
    majority = baseline("majority", 0.8, servable=False)
    assert select_incumbent([probe, majority, baseline("centroid", 0.7)]).kind == "centroid"
    assert select_incumbent([baseline("champion", 0.5), probe]).kind == "champion"


SCORES = {"probe": 0.9, "few_shot": 0.8, "retrieved": 0.75, "nearest": 0.7}


def test_cheap_baselines_and_the_best_three_others_predict_the_test_rows() -> None:
    scores = SCORES | {"centroid": 0.3, "bag_of_words": 0.1}
    fitted = [baseline(kind, score) for kind, score in reversed(scores.items())]
    further = other_baselines([*fitted, baseline("majority", 0.8, servable=False)])
    assert [one.kind for one in further.tested] == list(scores)[1:]
    # The others can only block a fine-tuned model.
    assert further.replacing == ("few_shot", "retrieved", "nearest")


def test_a_contender_that_the_recipe_names_may_replace_the_incumbent_in_any_case() -> None:
    fitted = [baseline(kind, score) for kind, score in SCORES.items()]
    weak = other_baselines([*fitted, baseline("grpo", 0.1)])
    assert weak.replacing == ("few_shot", "retrieved", "nearest", "grpo")
    assert [one.kind for one in weak.tested] == list(weak.replacing)
    strong = other_baselines([*fitted, baseline("grpo", 1.0)])
    assert "grpo" not in strong.replacing  # it is the incumbent
