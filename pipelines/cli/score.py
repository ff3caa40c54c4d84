"""The command `anomaly score`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anomaly.errors import AnomalyError, ConfigError
from anomaly.pipelines.cli.checks import bundle_at, destination_at, fetch, refuse_idle
from anomaly.pipelines.cli.options import (
    AlphaOption,
    BundleOption,
    CallingOption,
    DataOption,
    DeviceOption,
    ModelOption,
    SendOption,
    SetOption,
    SignerOption,
)

if TYPE_CHECKING:
    from anomaly.pipelines.run import RunFolder

__all__ = ["score"]


def score(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Folder of the run; with --bundle, a folder of new scans will do.",
        ),
    ],
    scans: Annotated[
        Path | None,
        typer.Option(help="Folder of new scans; default: the run's own test split."),
    ] = None,
    bundle: BundleOption = None,
    signer: SignerOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run to make of a folder of scans; default: runs/NAME-scores."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="i/n", help="Only the i-th of n shares; default: all that is free."),
    ] = None,
    dicomweb: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Fetch the scans from this archive into RUN/spool."),
    ] = None,
    query_: Annotated[
        list[str] | None,
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
        int | None,
        typer.Option(
            min=1, metavar="N", help="On Ray, with N actors; RAY_ADDRESS names a cluster."
        ),
    ] = None,
    set_: SetOption = None,
    device: DeviceOption = "auto",
    model: ModelOption = None,
) -> None:
    """Score scans: p-values, flags and heatmaps where the bundle is calibrated.

    A run that was stopped goes on where it stopped, and any number of these commands may work on
    one run at once.
    """
    from anomaly.pipelines.context import pick_device
    from anomaly.pipelines.run import RunFolder
    from anomaly.pipelines.score import choose_scans
    from anomaly.pipelines.score import score as score_scans
    from anomaly.scoring.shards import ShardAssignment
    from anomaly.store.signatures import check_signature

    is_new_folder = bundle is not None and scans is None and dicomweb is None
    is_new_folder = is_new_folder and _is_folder_of_scans(run)
    refuse_idle(
        {
            "--query": bool(query_) and dicomweb is None,
            "--out": out is not None and not is_new_folder,
            "--data": data is not None
            and (scans is not None or dicomweb is not None or is_new_folder),
            "--calling": calling is not None and (send is None or "@" not in send),
            "--shard": shard is not None and ray is not None,
            "--model": model is not None and ray is not None,
        }
    )
    assignment = None if shard is None else ShardAssignment.parse(shard)
    target = None if send is None else destination_at(send, calling)
    if is_new_folder:
        run, scans = out or Path("runs") / f"{run.resolve().name}-scores", run
    folder, missing = RunFolder(run), 0
    if dicomweb is not None:
        scans, missing = _fetched(folder, scans, dicomweb, query_)
    source = bundle_at(bundle) or folder.bundle
    if signer is not None:
        check_signature(source, signer)
    overrides = [*(set_ or []), *([] if alpha is None else [f"alpha={alpha!r}"])]
    inputs = choose_scans(
        folder, scans, source, overrides, data=data, may_have_grown=dicomweb is not None
    )
    if model is not None:
        from anomaly.store.onnx_model import read_model

        passes = read_model(model, inputs.bundle, pick_device(device))
        inputs = replace(inputs, bundle=replace(inputs.bundle, passes=passes))
    if ray is not None:
        from anomaly.pipelines.cluster import score_on_ray

        score_on_ray(folder, inputs, source, pick_device(device), actors=ray)
    else:
        score_scans(folder, inputs, pick_device(device), assignment=assignment)
    if target is not None:
        from anomaly.pipelines.dicom import write_dicom
        from anomaly.pipelines.pacs import store_results

        store_results(target, write_dicom(folder, inputs.config).paths)
    if missing:
        raise AnomalyError(
            f"{missing} images of the archive could not be fetched, and are in no result: run the "
            "same command again"
        )


def _is_folder_of_scans(folder: Path) -> bool:
    """Whether a folder exists and is no run."""
    from anomaly.pipelines.run import RunFolder

    return folder.is_dir() and not RunFolder(folder).manifest.exists()


def _fetched(
    folder: RunFolder, scans: Path | None, url: str, query: list[str] | None
) -> tuple[Path, int]:
    """Fetch the scans of a query; return their folder, and how many could not be had."""
    if scans is not None or not query:
        raise ConfigError("--dicomweb needs --query KEY=VALUE, and takes no --scans")
    missing = fetch(folder, url, query)
    return folder.spool, missing
