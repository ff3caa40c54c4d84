"""The command `anomaly`: errors print one sentence, exit code 1; signals end it cleanly."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from anomaly.errors import AnomalyError
from anomaly.logs import log_what_is_allowed, printable
from anomaly.pipelines.cli.app import app
from anomaly.threads import limit_spinning

__all__ = ["main"]


def main() -> None:
    """Run a command; an `AnomalyError` or `OSError` prints one sentence and exits with code 1."""
    limit_spinning()
    with _outputs_that_take_all(), _terminating_tidily():
        log_what_is_allowed()
        try:
            app()
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has closed the pipe: `anomaly query ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except (AnomalyError, OSError) as error:  # OSError: full disk, no permission
            typer.secho(f"error: {printable(str(error))}", err=True, fg="red")
            raise SystemExit(1) from error


@contextmanager
def _outputs_that_take_all() -> Iterator[None]:
    """Prevent output errors from ending a command: a closed stream, or one limited to ASCII."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and stream is not nowhere:
                stream.reconfigure(errors="backslashreplace")
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


@contextmanager
def _terminating_tidily() -> Iterator[None]:
    """Make signals end a command like an interrupt, so that its unpacked files are removed."""

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    ends = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        ends.append(signal.SIGHUP)
    try:
        before = {number: signal.signal(number, end) for number in ends}
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
