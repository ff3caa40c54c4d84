"""The command `anomaly evaluate`."""

from __future__ import annotations

from anomaly.pipelines.cli.options import DataOption, RunArgument

__all__ = ["evaluate"]


def evaluate(run: RunArgument, data: DataOption = None) -> None:
    """Compare the scores with the labels: figures with intervals."""
    from anomaly.pipelines import evaluate as stage
    from anomaly.pipelines.context import run_config
    from anomaly.pipelines.run import RunFolder

    folder = RunFolder(run)
    stage.evaluate(folder, run_config(folder, [], data))
