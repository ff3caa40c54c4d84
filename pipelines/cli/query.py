"""The command `anomaly query`."""

from __future__ import annotations

from typing import Annotated

import typer

from anomaly.pipelines.cli.options import RunArgument

__all__ = ["query"]


def query(
    run: RunArgument,
    sql: Annotated[
        str,
        typer.Argument(
            metavar="SQL", help="A SELECT over `scores`, `studies`, `patients`, `feedback`."
        ),
    ],
) -> None:
    """Ask the scores in SQL (DuckDB); the answer is CSV on standard output."""
    import csv
    import sys

    from anomaly.pipelines.run import RunFolder
    from anomaly.store.readings import Feedback
    from anomaly.store.rows import plain_cell, plain_values

    folder = RunFolder(run)
    # Read the private file only if the query names it.
    asked = "feedback" in sql.lower()
    tables = {"feedback": Feedback.table(folder.feedback)} if asked else {}
    answer = folder.results.query(sql, **tables)
    lines = csv.writer(sys.stdout, lineterminator="\n")  # for use in a shell
    lines.writerow(map(plain_cell, answer.column_names))
    for batch in answer.to_batches():
        # By position, since two columns may have the same name.
        columns = [plain_values(column) for column in batch.columns]
        lines.writerows(map(plain_cell, line) for line in zip(*columns, strict=True))
