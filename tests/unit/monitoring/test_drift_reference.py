from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tailorbird.data.rows import Rows
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.monitoring import drift_reference


def test_texts_are_redacted_before_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def predict_rows(_: str, *, rows: Rows, limits: RequestLimits) -> Any:
        seen["predicted"], seen["limits"] = rows.texts, limits
        num = len(rows)
        return SimpleNamespace(
            outputs=("a",) * num, calibrated=np.ones(num), scores=np.ones(num), groups={}
        )

    def embed_texts(_: str, texts: tuple[str, ...], **__: Any) -> Any:
        seen["embedded"] = texts
        return np.ones((len(texts), 2), np.float32)

    version = SimpleNamespace(base_model="b", max_length=8, digest="d")
    monkeypatch.setattr(drift_reference, "predict_rows", predict_rows)
    monkeypatch.setattr(drift_reference, "read_version", lambda _: version)
    monkeypatch.setattr(drift_reference, "embed_texts", embed_texts)
    texts = ("record MRN1234567: a cough", "a rash")
    limits = RequestLimits(timeout_s=1.0)
    rows = Rows(("0", "1"), texts, ("a", "a"))
    content = drift_reference.build_reference("u", rows=rows, made_at="2026-03-01", limits=limits)
    assert seen == {
        "predicted": texts,
        "limits": limits,
        "embedded": ("record MRN[number]: a cough", "a rash"),
    }
    assert b"1234567" not in content
