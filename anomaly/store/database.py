"""The rows of a run as a database in memory (DuckDB), which SQL asks.

::

    scores      the rows of all parts
    worklist    the same without features, most anomalous first
    studies     a row each (`_GROUPS`)
    patients    likewise
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from anomaly.errors import AnomalyError
from anomaly.store.rows import TABLE

__all__ = ["connected", "select"]

_GROUPS = """
CREATE VIEW {name} AS
SELECT *, p_value <= (SELECT alpha FROM operating_point) AS flagged
FROM (
    SELECT {column}, count(*) AS images, count(score) AS scored,
        arg_max(key, score) AS most_anomalous, max(score) AS score,
        CASE WHEN count(p_value) > 0 THEN least(1, count(p_value) * min(p_value)) END AS p_value
    FROM worklist WHERE {column} != '' AND NOT seen GROUP BY {column}
)
"""
"""A study or patient is as anomalous as its most anomalous image. The smallest of m p-values, times
m, is a p-value again, whatever the images have to do with each other (Bonferroni). Without any
there is none: not scored is not normal. Images that the bundle has seen do not count."""


@contextmanager
def connected(
    folder: Path, parts: Sequence[Path], worklist: Path | None, alpha: float
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a database of parts.

    Parameters
    ----------
    folder : Path
        What `select` may read from.
    parts : sequence of Path
        Parquet files of rows.
    worklist : Path or None
        The rows of all of them without features; None computes them.
    alpha : float
        Rate at which studies and patients are flagged.
    """
    paths = [_plain(path.absolute()) for path in parts]
    with duckdb.connect() as connection:
        # What `select` may read when it shuts out everything else.
        folder = folder.absolute()
        names = (name.replace("'", "''") for name in (str(folder), _plain(folder)))
        allowed = ", ".join(f"'{name}'" for name in names)
        connection.execute(f"SET allowed_directories = [{allowed}]")
        # A folder named "a=b" is a folder, not a column.
        connection.read_parquet(paths, hive_partitioning=False).create_view("scores")
        if worklist is not None:
            path = _plain(worklist.absolute())
            connection.read_parquet(path, hive_partitioning=False).create_view("worklist")
        else:
            connection.execute(f"CREATE VIEW worklist AS SELECT {TABLE} FROM scores")  # noqa: S608
        connection.execute(
            "CREATE TABLE operating_point AS SELECT CAST(? AS DOUBLE) AS alpha", [alpha]
        )
        for name, column in (("studies", "study"), ("patients", "patient")):
            connection.execute(_GROUPS.format(name=name, column=column))
        yield connection


def select(
    connection: duckdb.DuckDBPyConnection, sql: str, tables: Mapping[str, pa.Table]
) -> pa.Table:
    """Answer one SELECT, which reads nothing but the parts and the tables given.

    Raises
    ------
    AnomalyError
        It is no SELECT, or more than one.
    duckdb.Error
    """
    for name, table in tables.items():
        connection.register(name, table)
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    kinds = [statement.type for statement in connection.extract_statements(sql)]
    if kinds != [duckdb.StatementType.SELECT]:
        names = ", ".join(kind.name for kind in kinds) or "nothing"
        raise AnomalyError(f"the query holds {names}: expected one SELECT over `scores`")
    return connection.sql(sql).to_arrow_table()


def _plain(path: Path) -> str:
    """Name a file for DuckDB, to which brackets and stars are a pattern."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))
