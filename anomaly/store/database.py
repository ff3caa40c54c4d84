"""The rows of a run as an in-memory DuckDB database for SQL queries.

::

    scores      the rows of all parts
    worklist    the same rows without features, most anomalous first
    studies     one row per study (`_GROUPS`)
    patients    one row per patient (`_GROUPS`)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from anomaly.errors import AnomalyError
from anomaly.store.rows import ADDED, TABLE

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
"""A study or patient has the score of its most anomalous image. The smallest of m p-values times m
is a p-value for any dependence between the images (Bonferroni). Without a scored image it is NULL:
not scored is not normal. Images that were used to train or calibrate the bundle do not count."""


@contextmanager
def connected(
    folder: Path, parts: Sequence[Path], worklist: Path | None, alpha: float
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a database connection over parts.

    Parameters
    ----------
    folder : Path
        Folder that `select` may read from.
    parts : sequence of Path
        Parquet files of rows.
    worklist : Path or None
        File with the rows of all parts without features; None computes them from the parts.
    alpha : float
        False-alarm rate at which studies and patients are flagged.
    """
    paths = [_plain(path.absolute()) for path in parts]
    with duckdb.connect() as connection:
        # `select` disables access to everything outside these folders.
        folder = folder.absolute()
        names = (name.replace("'", "''") for name in (str(folder), _plain(folder)))
        allowed = ", ".join(f"'{name}'" for name in names)
        connection.execute(f"SET allowed_directories = [{allowed}]")
        # Do not take a folder named "a=b" for a partition column.
        rows = connection.read_parquet(paths, hive_partitioning=False)
        # Parts of earlier versions lack the columns that were added since: all of them texts.
        added = [f"'' AS {name}" for name in ADDED if name not in rows.columns]
        rows.project(", ".join(["*", *added])).create_view("scores")
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
    """Run one SELECT that can read only the parts and the given tables.

    Raises
    ------
    AnomalyError
        If the query is not exactly one SELECT.
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
    """Escape a path for DuckDB, which reads brackets, stars and question marks as patterns."""
    return re.sub(r"([*?\[])", r"[\1]", str(path))
