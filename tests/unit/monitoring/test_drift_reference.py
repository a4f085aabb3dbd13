from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tailorbird.data.rows import Rows
from tailorbird.monitoring import drift_reference


def test_texts_are_redacted_before_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def predict_rows(_: str, *, rows: Rows) -> Any:
        seen["predicted"] = rows.texts
        num = len(rows)
        return SimpleNamespace(outputs=("a",) * num, calibrated=np.ones(num), scores=np.ones(num), groups={})

    def embed_texts(_: str, texts: tuple[str, ...], **__: Any) -> Any:
        seen["embedded"] = texts
        return np.ones((len(texts), 2), np.float32)

    version = SimpleNamespace(base_model="b", max_length=8, digest="d")
    monkeypatch.setattr(drift_reference, "predict_rows", predict_rows)
    monkeypatch.setattr(drift_reference, "read_version", lambda _: version)
    monkeypatch.setattr(drift_reference, "embed_texts", embed_texts)
    texts = ("record MRN1234567: a cough", "a rash")
    content = drift_reference.build_reference("u", rows=Rows(("0", "1"), texts, ("a", "a")), made_at="2026-03-01")
    assert seen == {"predicted": texts, "embedded": ("record MRN[number]: a cough", "a rash")}
    assert b"1234567" not in content
