"""Tests of the selection of the incumbent."""

from tailorbird.evaluation.baselines.baseline import Baseline, further_contenders, select_incumbent


def baseline(kind: str, validation: float, *, servable: bool = True) -> Baseline:
    return Baseline(kind, f"s3://m/{kind}" if servable else None, validation, servable, "")


def test_the_incumbent_is_the_best_servable_baseline_on_validation() -> None:
    baselines = [baseline("probe", 0.6), baseline("majority", 0.8, servable=False), baseline("centroid", 0.7)]
    assert select_incumbent(baselines).kind == "centroid"


def test_the_first_of_equal_baselines_is_the_incumbent() -> None:
    assert select_incumbent([baseline("bag_of_words", 0.7), baseline("probe", 0.7)]).kind == "bag_of_words"


def test_a_champion_is_the_incumbent_even_if_a_baseline_scores_higher_on_validation() -> None:
    assert select_incumbent([baseline("champion", 0.6), baseline("probe", 0.7)]).kind == "champion"


def test_the_best_kind_of_an_endpoint_is_tested_in_any_case() -> None:
    local = [baseline("probe", 0.9), baseline("bag_of_words", 0.8), baseline("centroid", 0.7)]
    weak = [baseline("endpoint_zero_shot", 0.2), baseline("endpoint_few_shot", 0.3)]
    assert [one.kind for one in further_contenders(local)] == ["bag_of_words", "centroid"]
    assert [one.kind for one in further_contenders([*local, *weak])] == ["bag_of_words", "endpoint_few_shot"]
    best = baseline("endpoint_retrieved", 0.95)
    assert [one.kind for one in further_contenders([*local, *weak, best])] == ["probe", "bag_of_words"]
    second = baseline("endpoint_retrieved", 0.85)
    assert [one.kind for one in further_contenders([*local, *weak, second])] == ["endpoint_retrieved", "bag_of_words"]
