"""Export of results as a table for spreadsheets: CSV or XLSX.

By default the table contains pseudonyms. With a table of scans it also contains paths, patients and
UIDs, and only the owner can read it (mode 0600). XLSX stores text as text; in CSV a spreadsheet
reads a name that begins with = as a formula, so XLSX is the better choice for identified tables.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

from openpyxl import Workbook  # type: ignore[import-untyped, unused-ignore]
from openpyxl.cell import WriteOnlyCell  # type: ignore[import-untyped, unused-ignore]
from openpyxl.utils.escape import escape  # type: ignore[import-untyped, unused-ignore]

from anomaly.data.table.manifest import ManifestRow
from anomaly.errors import AnomalyError
from anomaly.files import whole
from anomaly.store.results import Results
from anomaly.store.rows import plain_cell

__all__ = ["IDENTIFIERS", "export"]

IDENTIFIERS = ("path", "frame", "patient", "study", "series", "instance")
"""Additional columns of an identified table, named ``source_path`` and so on."""

XLSX_ROWS = 1_048_575
"""Most rows below the header; a limit of the format."""


def export(results: Results, path: Path, rows: Sequence[ManifestRow] | None = None) -> int:
    """Write all rows, in order and without features; return their number.

    Parameters
    ----------
    results : Results
    path : Path
        ``.csv`` or ``.xlsx``; an existing file is replaced.
    rows : sequence of ManifestRow, optional
        The scans in the order of the results; if given, the table identifies them.

    Raises
    ------
    AnomalyError
        If the suffix is another, the rows are not those of the results, there are too many rows for
        the format, or the file cannot be written.
    """
    if path.suffix not in (".csv", ".xlsx"):
        raise AnomalyError(f"{path} ends in {path.suffix!r}: expected .csv or .xlsx")
    if not path.parent.is_dir():
        raise AnomalyError(f"{path.parent} is no folder: make it first, or name another file")
    if path.suffix == ".csv" and rows is None:
        return results.export_csv(path)
    table = results.table()
    if path.suffix == ".xlsx" and table.num_rows > XLSX_ROWS:
        raise AnomalyError(
            f"{table.num_rows} rows are too many for XLSX, which holds {XLSX_ROWS}: write .csv"
        )
    keys = table["key"].to_pylist()
    if rows is not None and [row.key for row in rows] != keys:
        raise AnomalyError("the table of scans is not the one that was scored: score again")
    head = [*table.column_names, *(f"source_{name}" for name in IDENTIFIERS if rows is not None)]
    scored = (tuple(line.values()) for batch in table.to_batches() for line in batch.to_pylist())
    lines = scored if rows is None else _identified(scored, rows)
    write = _write_csv if path.suffix == ".csv" else _write_xlsx
    try:
        with whole(path, mode=0o666 if rows is None else 0o600) as file:
            write(file, chain([head], lines))
    except OSError as error:
        raise AnomalyError(
            f"{path} could not be written ({error.strerror}): make room for it and run again"
        ) from error
    return len(keys)


def _identified(
    scored: Iterable[tuple[Any, ...]], rows: Sequence[ManifestRow]
) -> Iterator[tuple[Any, ...]]:
    for line, row in zip(scored, rows, strict=True):
        yield (*line, *(getattr(row, name) for name in IDENTIFIERS))


def _write_csv(file: IO[bytes], lines: Iterable[Sequence[Any]]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    csv.writer(text).writerows([plain_cell(value) for value in line] for line in lines)
    text.detach()  # the caller closes the file


def _write_xlsx(file: IO[bytes], lines: Iterable[Sequence[Any]]) -> None:
    book = Workbook(write_only=True)
    sheet = book.create_sheet("scores")
    for line in lines:
        sheet.append([_text(sheet, value) if isinstance(value, str) else value for value in line])
    book.save(file)


def _text(sheet: Any, value: str) -> WriteOnlyCell:
    """Cell that holds text as text, never as a formula; control characters become _x001F_."""
    cell = WriteOnlyCell(sheet, escape(value))
    cell.data_type = "s"
    return cell
