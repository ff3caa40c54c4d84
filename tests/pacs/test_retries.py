"""How often is asked, and how long is waited."""

from __future__ import annotations

import pytest

from anomaly.errors import ArchiveError, ArchiveUnreachable, ConfigError
from anomaly.pacs.client.retries import Attempts


def test_pauses_double_up_to_the_longest_and_vary_by_half() -> None:
    slept: list[float] = []
    attempts = Attempts(count=6, first=1.0, longest=5.0, sleep=slept.append)

    def ask() -> None:
        raise ArchiveUnreachable("no answer", "there did not answer")

    with pytest.raises(ArchiveUnreachable, match="there did not answer, in 6 attempt"):
        attempts(ask)
    assert len(slept) == 5
    for pause, whole in zip(slept, (1, 2, 4, 5, 5), strict=True):
        assert whole / 2 <= pause <= whole


def test_the_first_answer_is_returned() -> None:
    slept: list[float] = []
    left = [ArchiveUnreachable("no answer", ""), ArchiveUnreachable("no answer", "")]

    def ask() -> str:
        if left:
            raise left.pop()
        return "answer"

    assert Attempts(count=3, sleep=slept.append)(ask) == "answer"
    assert len(slept) == 2


def test_what_is_final_is_not_asked_again() -> None:
    asked: list[int] = []

    def ask() -> None:
        asked.append(1)
        raise ArchiveError("HTTP 404", "not there")

    with pytest.raises(ArchiveError, match="not there"):
        Attempts(count=3, sleep=lambda _: None)(ask)
    assert len(asked) == 1


def test_no_attempt_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="attempts are 0"):
        Attempts(count=0)
