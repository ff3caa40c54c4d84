"""The `anomaly` command: stage -> function, nothing else."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from anomaly.errors import AnomalyError, ConfigError
from anomaly.logs import log_what_is_allowed, printable

if TYPE_CHECKING:
    from anomaly.config import Config
    from anomaly.pacs.client.destinations import Destination
    from anomaly.pipelines.run import RunFolder

# Stages are imported inside the commands: torch and MONAI take seconds, `--help` must not.

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Learn what normal scans look like, and find what is not. "
    "Research use only. Not a diagnosis.",
)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")]
SetOption = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads it at run time on Python 3.10 too
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting, such as training.steps=500."
    ),
]
PrintOption = Annotated[
    bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")
]
CallingOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="TITLE", help="Our own AE title, for --send AET@host:port; default: ANOMALY."
    ),
]
DataOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        metavar="DIR",
        help="Where the scans are now; default: where they were when `prepare` listed them.",
    ),
]
AlphaOption = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        metavar="RATE",
        help="Flag at this false-alarm rate; default: the one that the bundle was calibrated for. "
        "Of what is scored already, the flags alone are raised anew.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
BundleOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Bundle: a folder, or the name of a shipped one. Default: the run's own."),
]
SignerOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        metavar="FILE", help="Public Ed25519 key, in PEM: refuse a bundle that it has not signed."
    ),
]
ConfigOption = Annotated[Path, typer.Option("--config", help="YAML configuration.")]

SendOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="WHERE",
        help="Send DICOM results: https://host/dicom-web, AET@host:port or folder:/some/where.",
    ),
]

DEMO_CONFIG = Path(__file__).parents[1] / "configs" / "phantom-64.yaml"


@app.command()
def prepare(
    run: RunArgument,
    config: ConfigOption,
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of scans; overrides data.root."),
    ] = None,
    set_: SetOption = None,
    print_config: PrintOption = False,
) -> None:
    """Read a folder of scans, say what can be used, split it by patient."""
    from anomaly.config import load_config
    from anomaly.pipelines import prepare as stage
    from anomaly.pipelines.run import RunFolder

    resolved = load_config(config, set_ or [])
    if data is not None:
        resolved = replace(resolved, data=replace(resolved.data, root=data))
    if not _printed(resolved, print_config):
        stage.prepare(RunFolder(run), resolved)
        typer.echo(f"next: anomaly train {run}")


@app.command()
def train(
    run: RunArgument,
    data: DataOption = None,
    set_: SetOption = None,
    print_config: PrintOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Train on the normal scans of the train split; resume where a checkpoint is."""
    from anomaly.pipelines import train as stage
    from anomaly.pipelines.context import pick_device, run_config
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    resolved = run_config(folder, set_ or [], data)
    if not _printed(resolved, print_config):
        place = pick_device(device)
        with stage.processes(place):
            result = stage.train(folder, resolved, place)
        if result.finished:
            typer.echo(f"the bundle is {folder.bundle}; next: anomaly calibrate {run}")


@app.command()
def calibrate(
    run: RunArgument,
    bundle: BundleOption = None,
    split: Annotated[str, typer.Option(help="Split of the manifest to use.")] = "calibration",
    data: DataOption = None,
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Learn from held-out normal scans what a score is worth; the bundle can flag from then on."""
    from anomaly.pipelines import calibrate as stage
    from anomaly.pipelines.context import overrides_name, pick_device, run_config
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    resolved = run_config(folder, set_ or [], data, stage="calibrate")
    source = _found(bundle) or folder.bundle
    is_own = source.resolve() == folder.bundle.resolve()
    if is_own and not overrides_name(set_ or [], "alpha"):
        resolved = stage.at_known_rate(resolved, source)
    stage.calibrate(folder, resolved, source, split, pick_device(device))
    typer.echo(f"the bundle is {folder.bundle}; next: anomaly score {run}")


@app.command()
def score(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Folder of the run; with --bundle, a folder of new scans will do.",
        ),
    ],
    scans: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of new scans; default: the run's own test split."),
    ] = None,
    bundle: BundleOption = None,
    signer: SignerOption = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Run to make of a folder of scans; default: runs/NAME-scores."),
    ] = None,
    shard: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="i/n", help="Only the i-th of n shares; default: all that is free."),
    ] = None,
    dicomweb: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="URL", help="Fetch the scans from this archive into RUN/spool."),
    ] = None,
    query_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--query",
            metavar="KEY=VALUE",
            help="What to fetch, such as StudyDate=20260101-20260131 or ModalitiesInStudy=DX.",
        ),
    ] = None,
    send: SendOption = None,
    calling: CallingOption = None,
    data: DataOption = None,
    alpha: AlphaOption = None,
    ray: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1, metavar="N", help="On Ray, with N actors; RAY_ADDRESS names a cluster."
        ),
    ] = None,
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Score scans: p-values, flags and heatmaps where the bundle is calibrated.

    A run that was stopped goes on where it stopped, and any number of these commands may work on
    one run at once.
    """
    from anomaly.pipelines import score as stage
    from anomaly.pipelines.context import pick_device
    from anomaly.pipelines.run import RunFolder
    from anomaly.scoring.shards import Turn
    from anomaly.store.signatures import check_signature

    folder = RunFolder(run)
    new_folder = bundle is not None and scans is None and dicomweb is None
    new_folder = new_folder and run.is_dir() and not folder.manifest.exists()
    _refuse_idle(
        {
            "--query": bool(query_) and dicomweb is None,
            "--out": out is not None and not new_folder,
            "--data": data is not None
            and (scans is not None or dicomweb is not None or new_folder),
            "--calling": calling is not None and (send is None or "@" not in send),
            "--shard": shard is not None and ray is not None,
        }
    )
    turn = None if shard is None else Turn.parse(shard)
    target = None if send is None else _destination(send, calling)
    lacking = 0
    if dicomweb is not None:
        if scans is not None or not query_:
            raise ConfigError("--dicomweb needs --query KEY=VALUE, and takes no --scans")
        lacking = _fetch(folder, dicomweb, query_)
        scans = folder.spool
    elif new_folder:
        folder, scans = RunFolder(out or Path("runs") / f"{run.resolve().name}-scores"), run
    source = _found(bundle) or folder.bundle
    if signer is not None:
        check_signature(source, signer)
    fetches = dicomweb is not None
    overrides = [*(set_ or []), *([] if alpha is None else [f"alpha={alpha!r}"])]
    resolved, manifest = stage.choose_scans(
        folder, scans, source, overrides, data=data, may_have_grown=fetches
    )
    if ray is not None:
        from anomaly.pipelines.cluster import score_on_ray

        score_on_ray(folder, resolved, source, manifest, pick_device(device), actors=ray)
    else:
        stage.score(folder, resolved, source, manifest, pick_device(device), turn=turn)
    if target is not None:
        from anomaly.pipelines.dicom import write_dicom
        from anomaly.pipelines.pacs import store_results

        store_results(target, write_dicom(folder, resolved).paths)
    if lacking:
        raise AnomalyError(
            f"{lacking} images of the archive could not be fetched, and are in no result: run the "
            "same command again"
        )


@app.command()
def dicom(
    run: RunArgument,
    objects: Annotated[
        str,
        typer.Option(
            help="Kinds, with commas between: report, overlay, segmentation, heatmap, "
            "parametric_map, contours."
        ),
    ] = "report,overlay",
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FOLDER", help="Default: RUN/dicom."),
    ] = None,
    send: SendOption = None,
    calling: CallingOption = None,
    data: DataOption = None,
) -> None:
    """Write the verdicts as DICOM objects: a report a scan, images of flagged scans alone."""
    from anomaly.pipelines import dicom as stage
    from anomaly.pipelines.context import run_config
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    _refuse_idle({"--calling": calling is not None and (send is None or "@" not in send)})
    target = None if send is None else _destination(send, calling)
    kinds = stage.kinds_of(objects)
    written = stage.write_dicom(folder, run_config(folder, [], data), kinds, out)
    typer.echo(f"{len(written.paths)} objects in {out or folder.dicom}: they name patients.")
    if target is not None:
        from anomaly.pipelines.pacs import store_results

        store_results(target, written.paths)


@app.command()
def status(run: RunArgument) -> None:
    """Say how far scoring is: done, failed by reason, scans a second, time left."""
    from anomaly.pipelines import status as stage
    from anomaly.pipelines.run import RunFolder

    for line in stage.status(RunFolder(run)):
        typer.echo(line)


@app.command()
def verify(run: RunArgument) -> None:
    """Look whether every file of a run is what was written there; name those that are damaged."""
    from anomaly.pipelines import verify as stage
    from anomaly.pipelines.run import RunFolder

    lines, intact = stage.verify(RunFolder(run))
    for line in lines:
        typer.echo(line)
    if not intact:
        raise typer.Exit(1)


@app.command()
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
    from anomaly.store.results import plain_cell, plain_values

    folder = RunFolder(run)
    # Only who asks for it: it may be for somebody else's eyes.
    asked = "feedback" in sql.lower()
    tables = {"feedback": Feedback.table(folder.feedback)} if asked else {}
    answer = folder.results.query(sql, **tables)
    lines = csv.writer(sys.stdout, lineterminator="\n")  # for a shell to read
    lines.writerow(map(plain_cell, answer.column_names))
    for batch in answer.to_batches():
        # By place: two columns may have one name.
        columns = [plain_values(column) for column in batch.columns]
        lines.writerows(map(plain_cell, line) for line in zip(*columns, strict=True))


@app.command()
def export(
    run: RunArgument,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Ends in .csv or .xlsx.")],
    with_identifiers: Annotated[
        bool,
        typer.Option(
            "--with-identifiers",
            help="Name paths, patients and UIDs too: for the owner of the scans alone.",
        ),
    ] = False,
) -> None:
    """Write the scores for a spreadsheet: pseudonyms, unless identifiers are asked for."""
    from anomaly.pipelines import score as stage
    from anomaly.pipelines.context import run_config
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    rows = stage.export_scores(folder, run_config(folder, []), out, identifiers=with_identifiers)
    typer.echo(f"{rows} rows in {out}. Research use only. Not a diagnosis.")
    if with_identifiers:
        typer.echo("This file names patients: do not share it.")


@app.command()
def feedback(
    run: RunArgument,
    key: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="KEY", help="Pseudonym of a scan."),
    ] = None,
    opinion: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="agree|disagree"),
    ] = None,
    comment: Annotated[str, typer.Option(help="Stays in feedback.sqlite; may be empty.")] = "",
    reader: Annotated[str, typer.Option(help="Who says so; any name.")] = "",
    merge: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FILE", help="Verdicts saved from the report page, as JSON."),
    ] = None,
) -> None:
    """Note what a reader thinks of a result; ask with `anomaly query`, table `feedback`."""
    from anomaly.pipelines import status as stage
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    if merge is not None:
        if key or opinion or comment or reader:
            raise ConfigError("--merge FILE says it all: leave KEY, opinion and options away")
        added, known = stage.merge_feedback(folder, merge)
        typer.echo(f"{added} verdicts merged, {known} were there already")
    elif key is None or opinion is None:
        raise ConfigError("feedback needs KEY and agree or disagree, or --merge FILE")
    else:
        said = stage.give_feedback(folder, key, opinion, reader=reader, comment=comment)
        typer.echo(f"{said.opinion} with {said.key} noted")


@app.command()
def retry(
    run: RunArgument,
    reason: Annotated[str, typer.Option(help="Reason of the rows, as `anomaly status` prints.")],
) -> None:
    """Forget the parts that hold rows with a reason; `anomaly score` makes them again."""
    from anomaly.pipelines import status as stage
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    parts, rows = stage.retry(folder, reason)
    typer.echo(
        f"{rows} rows with reason {reason!r} in {parts} parts: run `anomaly score {run}` to make "
        "them again"
    )


@app.command()
def evaluate(run: RunArgument, data: DataOption = None) -> None:
    """Compare the scores with the labels: figures with intervals."""
    from anomaly.pipelines import evaluate as stage
    from anomaly.pipelines.context import run_config
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    stage.evaluate(folder, run_config(folder, [], data))


@app.command()
def report(
    run: RunArgument,
    images: Annotated[bool, typer.Option(help="Show the images.")] = True,
    max_images: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Of at most so many scans, most unusual first; default: 500."),
    ] = None,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Put the images into the page, to copy it alone.")
    ] = False,
    pdf: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="KEY",
            help="Instead of the page, one study as RUN/studies/STUDY.pdf: its pseudonym, or that "
            "of a scan in it.",
        ),
    ] = None,
    data: DataOption = None,
) -> None:
    """Write the worklist with heatmaps as an HTML page with its images beside it."""
    from anomaly.pipelines import report as stage
    from anomaly.pipelines.context import run_config
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    _refuse_idle({"--max-images": max_images is not None and not images})
    most = 500 if max_images is None else max_images
    config = run_config(folder, [], data)
    if pdf is not None:
        from anomaly.pipelines.study import study_pdf

        if single_file:
            raise ConfigError("a PDF is a single file: leave --single-file away")
        typer.echo(study_pdf(folder, config, pdf, images=images, max_images=most))
        return
    page = stage.report(folder, config, images=images, max_images=most, single_file=single_file)
    typer.echo(f"report: {page}")


@app.command()
def figures(
    run: RunArgument,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FOLDER", help="Default: RUN/figures."),
    ] = None,
    scans: Annotated[
        int, typer.Option(min=2, max=64, help="On the overlay sheet, half of them flagged.")
    ] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Draws those scans, and bootstraps.")] = 0,
    data: DataOption = None,
) -> None:
    """Make figures for a paper: overlays, ROC, scores, p-values, training; PDF and PNG."""
    from anomaly.pipelines import figures as stage
    from anomaly.pipelines.context import run_config
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    config = run_config(folder, [], data)
    written, left_out = stage.make_figures(folder, config, out, scans=scans, seed=seed)
    for path in written:
        typer.echo(f"{path}")
    for name, reason in left_out.items():
        typer.echo(f"{name} left out: {reason}")
    typer.echo("Research use only. Not a diagnosis.")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run; an earlier demo is replaced.")],
    config: ConfigOption = DEMO_CONFIG,
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Go the whole road on synthetic chest radiographs."""
    from anomaly.pipelines import demo as stage
    from anomaly.pipelines.context import pick_device
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(out)
    stage.demo(folder, config, set_ or [], pick_device(device))
    typer.echo(f"Figures: {folder.metrics}. Open {folder.report}")


@app.command()
def benchmark(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Archive, such as zhanglab.")],
    data: Annotated[Path, typer.Option(help="Its folder.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="RUN", help="Folder of the run; default: runs/benchmark-NAME."),
    ] = None,
    bundle: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Bundle to measure, a folder or a shipped name; default: train one."),
    ] = None,
    config: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--config", help="YAML configuration; default: configs/NAME-64.yaml."),
    ] = None,
    baseline_steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Of every baseline network; default: training.steps."),
    ] = None,
    set_: SetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train, calibrate and compute every figure on a labelled archive, baselines included."""
    from anomaly.pipelines import benchmark as stage
    from anomaly.pipelines.context import pick_device
    from anomaly.pipelines.run import RunFolder

    source = _found(bundle)
    resolved = stage.benchmark_config(name, data, config, source, set_ or [])
    stage.benchmark(
        RunFolder(out or Path("runs") / f"benchmark-{name}"),
        name,
        resolved,
        pick_device(device),
        bundle_folder=source,
        baseline_steps=baseline_steps,
    )


@app.command()
def node(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML settings of the node: docs/node.yaml.")
    ],
    device: DeviceOption = "auto",
) -> None:
    """Listen for scans by DICOM, score each study that is complete, send the results."""
    from anomaly.pacs.client.destinations import destination
    from anomaly.pipelines import node as stage
    from anomaly.pipelines.context import pick_device
    from anomaly.pipelines.dicom import write_dicom

    settings = stage.load_settings(config)
    stage.run_node(
        settings,
        pick_device(device),
        objects=lambda run, config, processes: list(
            write_dicom(run, config, settings.objects, processes=processes).paths
        ),
        destination=destination(settings.destination, calling=settings.calling or settings.ae_title)
        if settings.destination
        else None,
    )


@app.command()
def sign(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Its folder.")],
    key: Annotated[Path, typer.Option(metavar="FILE", help="Private Ed25519 key, in PEM.")],
) -> None:
    """Sign a bundle, so that others can see who made it (--signer) and that nothing was changed."""
    from anomaly.store.signatures import sign_bundle

    typer.echo(f"{sign_bundle(bundle, key)} written")


@app.command()
def doctor(bundle: BundleOption = None, signer: SignerOption = None) -> None:
    """Say what this machine can decode and compute with, and whether a bundle is intact."""
    from anomaly.pipelines import doctor as stage
    from anomaly.store.signatures import check_signature

    source = _found(bundle)
    if signer is not None:
        if source is None:
            raise ConfigError("--signer goes with --bundle: it says who must have signed it")
        check_signature(source, signer)
    lines, healthy = stage.doctor(source)
    for line in lines:
        typer.echo(line)
    if not healthy:
        raise typer.Exit(1)


def _found(bundle: Path | None) -> Path | None:
    from anomaly.store.bundle import find_bundle

    return None if bundle is None else find_bundle(bundle)


def _destination(text: str, calling: str | None) -> Destination:
    from anomaly.pacs.client.destinations import destination

    return destination(text) if calling is None else destination(text, calling=calling)


_INSTEAD = {
    "--query": "it says what to fetch, and goes with --dicomweb URL",
    "--out": "it names the run of a folder of new scans: RUN is one already",
    "--data": "it says where the run's own scans are now: new scans are named by --scans",
    "--calling": "it is our AE title, and goes with --send AET@host:port",
    "--max-images": "--no-images shows none",
    "--shard": "--ray deals out all shards itself",
}


def _refuse_idle(options: Mapping[str, bool]) -> None:
    """Refuse options that would have no effect."""
    for name, idle in options.items():
        if idle:
            raise ConfigError(f"{name} has no effect here: {_INSTEAD[name]}")


def _fetch(run: RunFolder, url: str, query: list[str]) -> int:
    """Fetch what matches; return how many images could not be had."""
    from anomaly.pacs.client.dicomweb import DicomWeb
    from anomaly.pipelines.pacs import fetch_studies, query_of

    fetched = fetch_studies(DicomWeb(url), query_of(query), run.spool)
    if not fetched.found:
        raise AnomalyError(
            f"no image of the archive matches {', '.join(query)}: ask for something else"
        )
    return fetched.failed.total()


def _printed(config: Config, wanted: bool) -> bool:
    if wanted:
        from anomaly.config import dump

        typer.echo(dump(config), nl=False)
    return wanted


def main() -> None:
    """Run a command; an error made for a person is one sentence and exit code 1."""
    with _outputs_that_take_all(), _terminating_tidily():
        log_what_is_allowed()
        try:
            app()
            sys.stdout.flush()
        except BrokenPipeError:  # who reads has read enough: `anomaly query ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except (AnomalyError, OSError) as error:  # OSError: a full disk, a folder that is not ours
            typer.secho(f"error: {printable(str(error))}", err=True, fg="red")
            raise SystemExit(1) from error


@contextmanager
def _outputs_that_take_all() -> Iterator[None]:
    """Let nothing that is printed end a command: an output that is closed, or knows ASCII alone."""
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
    """Have signals end a command as an interrupt does, so that what it has unpacked is removed."""

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
