"""The rows of a node: what a batch may become, and that a database is what it says it is."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from anomaly.errors import AnomalyError
from anomaly.pacs.node.batches import State
from anomaly.pacs.node.database import NEXT, NodeDatabase

ALLOWED = {
    *(("closed", "scored"), ("closed", "failed"), ("closed", "sent")),
    *(("scored", "sent"), ("scored", "kept"), ("scored", "undelivered")),
    *(("undelivered", "scored"), ("undelivered", "sent"), ("failed", "closed")),
}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[NodeDatabase]:
    database = NodeDatabase(tmp_path / "node.sqlite")
    yield database
    database.close()


def state_of(database: NodeDatabase, number: int) -> str:
    ((state,),) = database.rows("SELECT state FROM batches WHERE number = ?", number)
    return str(state)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_a_batch_becomes_only_what_may_follow(
    database: NodeDatabase, before: State, after: State
) -> None:
    number = database.add_batch(before)
    if (before, after) in ALLOWED:
        database.move_batch(number, after, reason="why", made=7, objects=["a", "b"])
        ((made, objects, reason),) = database.rows("SELECT made, objects, reason FROM batches")
        assert (made, objects, reason) == (7, '["a", "b"]', "why")
        assert state_of(database, number) == after
    else:
        with pytest.raises(AnomalyError, match=f"batch 1 is {before} and cannot become {after}"):
            database.move_batch(number, after)
        assert state_of(database, number) == before


def test_every_state_has_its_line_in_the_table() -> None:
    assert set(NEXT) == set(State)


def test_a_batch_that_is_not_there_is_refused(database: NodeDatabase) -> None:
    with pytest.raises(AnomalyError, match="batch 3 is unknown and cannot become scored"):
        database.move_batch(3, State.SCORED)


def test_what_is_not_given_stays(database: NodeDatabase) -> None:
    number = database.add_batch()
    database.move_batch(number, State.SCORED, made=5, objects=["a"])
    database.move_batch(number, State.UNDELIVERED, reason="refused")
    assert database.rows("SELECT made, objects FROM batches") == [(5, '["a"]')]


def test_a_transaction_that_fails_changes_nothing(database: NodeDatabase) -> None:
    with database.transaction():
        number = database.add_batch()

    def score_and_fail() -> None:
        with database.transaction():
            database.move_batch(number, State.SCORED)
            database.move_batch(number, State.FAILED)

    with pytest.raises(AnomalyError):
        score_and_fail()
    assert state_of(database, number) == "closed"


def test_a_database_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    NodeDatabase(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(sqlite3.DatabaseError, match="it is of version 2, not 1"):
        NodeDatabase(path)
