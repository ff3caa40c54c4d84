"""Reasons: every word is explained, and survives the way from a decoding process to a table."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from anomaly.data.table.manifest import Manifest, ManifestRow
from anomaly.errors import ManifestError, Reason, UnreadableScan

ROOT = Path(__file__).parents[1]


def test_the_page_of_reasons_explains_each_and_no_other() -> None:
    page = (ROOT / "docs/reasons.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", page, re.MULTILINE))
    assert set(rows) == {reason.value for reason in Reason}
    assert all(len(meaning) > 15 for meaning in rows.values())


@pytest.mark.parametrize("reason", list(Reason))
def test_a_reason_is_a_short_word_that_is_safe_to_share(reason: Reason) -> None:
    assert re.fullmatch(r"[a-z][a-z -]{1,30}", reason)


def test_an_error_comes_back_whole_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(UnreadableScan(Reason.TRUNCATED, "it ends early")))  # noqa: S301
    assert (error.reason, error.message) == (Reason.TRUNCATED, "it ends early")
    assert error.reason is Reason.TRUNCATED


def test_a_word_becomes_its_reason_and_an_unknown_one_is_refused() -> None:
    error = UnreadableScan("truncated", "it ends early")  # type: ignore[arg-type]
    assert error.reason is Reason.TRUNCATED
    with pytest.raises(ValueError, match="'out of luck' is not a valid Reason"):
        UnreadableScan("out of luck", "it ends early")  # type: ignore[arg-type]


def test_a_table_keeps_the_word(tmp_path: Path) -> None:
    row = ManifestRow("k", "a.png", 0).skipped(Reason.TRUNCATED, "it ends early")
    Manifest(tmp_path, (row,)).write(tmp_path / "m.parquet")
    assert pq.read_table(tmp_path / "m.parquet")["reason"].to_pylist() == ["truncated"]
    assert Manifest.read(tmp_path / "m.parquet").rows == (row,)


def test_a_table_with_an_unknown_word_is_refused(tmp_path: Path) -> None:
    row = ManifestRow("k", "a.png", 0, status="skipped", reason="out of luck")
    Manifest(tmp_path, (row,)).write(tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=r"does not know, \['out of luck'\]"):
        Manifest.read(tmp_path / "m.parquet")
