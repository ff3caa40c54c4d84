"""The benchmark as a readable page: the tables of ``benchmark.json`` in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from anomaly.evaluation.metrics import Estimate, Rate

__all__ = ["benchmark_page"]


def benchmark_page(result: Mapping[str, Any]) -> str:
    """All tables of a benchmark as Markdown, after its notice.

    Parameters
    ----------
    result : mapping
        Contents of ``benchmark.json``.
    """
    parts = _head(result)
    sets = list(result["detectors"][0]["sets"])
    for name in sets:
        parts += [f"## {name}", *_detectors(result["detectors"], name)]
        parts += ["### Baselines", *_judged(result["baselines"], name)]
        parts += ["### Single features", *_features(result["features"], name)]
    parts += [*_nuisances(result["nuisances"]), *_alterations(result["alterations"])]
    parts += [*_localisation(result["localisation"]), *_law(result["false_alarm_law"])]
    parts += [*_cost(result["cost"]), *_provenance(result)]
    return "\n\n".join(parts) + "\n"


def _head(result: Mapping[str, Any]) -> list[str]:
    known = result["known_split"]
    lines = [f"Split `{result['split_hash']}`."]
    if known not in (None, result["split_hash"]):
        lines.append(
            f"**Not the split of the benchmark {result['name']} (`{known}`): these figures cannot "
            "be compared with published ones.**"
        )
    counts = [[name, str(count)] for name, count in result["scans"].items()]
    return [
        f"# Benchmark {result['name']}",
        f"**{result['notice']}**",
        " ".join(lines),
        f"Detector: {result['chosen']}.",
        f"Intervals are 95 %: by patient (bootstrap) for AUROC, average precision and hit rates, "
        f"exact for rates. Thresholds: alpha = {result['alpha']:g}, conformal, from the "
        "calibration split. AP: average precision.",
        _table(["scans", "n"], counts),
    ]


def _detectors(rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    margins = ["" if row["margin"] is None else f"{row['margin']:.3f}" for row in rows]
    lines = [
        [row["name"], row["role"], margin, *_figures(row, name)]
        for row, margin in zip(rows, margins, strict=True)
    ]
    return ["### Detectors", _table(["detector", "why", "margin", *_FIGURES], lines)]


_FIGURES = ("AUROC", "AP", "sensitivity", "specificity")


def _judged(rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return [_table(["method", *_FIGURES], [[row["name"], *_figures(row, name)] for row in rows])]


def _figures(row: Mapping[str, Any], name: str) -> list[str]:
    if "problem" in row:
        return [f"not compared: {row['problem']}", "", "", ""]
    figures = row["sets"][name]
    precision = {key: figures["average_precision"][key] for key in ("value", "low", "high")}
    return [
        str(Estimate(**figures["auroc"])),
        str(Estimate(**precision)),
        str(Rate(**figures["sensitivity"])),
        str(Rate(**figures["specificity"])),
    ]


def _features(rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    lines = [
        [
            row["name"],
            str(Estimate(**row["sets"][name]["auroc"])),
            "inverted" if row["sets"][name]["inverted"] else "",
        ]
        for row in rows
    ]
    return [_table(["feature, higher = more anomalous", "AUROC", ""], lines)]


def _nuisances(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    sets = list(rows[0]["abnormal_auroc"])
    lines = [
        [row["name"], str(Estimate(**row["auroc"])), str(Rate(**row["false_alarms"]))]
        + [str(Estimate(**row["abnormal_auroc"][name])) for name in sets]
        for row in rows
    ]
    head = ["nuisance", "AUROC altered vs unaltered", "false alarms"]
    head += [f"AUROC abnormal vs altered ({name})" for name in sets]
    return ["## Nuisance on held-out normals", "Best: 0.5, alpha, unchanged.", _table(head, lines)]


def _alterations(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        [row["name"], row["family"], str(Rate(**row["sensitivity"])), str(Estimate(**row["auroc"]))]
        for row in rows
    ]
    head = ["alteration", "family", "sensitivity", "AUROC vs unaltered"]
    return ["## Gross errors and inserted lesions", _table(head, lines)] if rows else []


def _localisation(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        [
            row["lesion"],
            row["map"],
            f"{row['prevalence']:.4f}",
            str(Estimate(**row["average_precision"])),
            str(Estimate(**row["hit_rate"])),
        ]
        for row in rows
    ]
    head = ["lesion", "map", "prevalence", "pixel AP", "largest value inside"]
    return ["## Where inserted lesions are found", _table(head, lines)] if rows else []


def _law(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for row in rows:
        if "problem" in row:
            lines.append([row["name"], f"not computed: {row['problem']}", "", ""])
            continue
        band = f"[{row['rate_low']:.3f}, {row['rate_high']:.3f}]"
        lines.append([row["name"], f"{row['mean_rate']:.3f}", band, f"{row['inside']:.3f}"])
    head = ["evaluation half", "mean false alarms", "95 % of splits", "share inside the 95 % band"]
    return [
        "## False-alarm law",
        "Random halves of the held-out normals by patient: calibrate on one, count on the other. "
        "The law promises 0.95 or more inside for scans in the state that they are calibrated in "
        "(counts are whole numbers), and nothing for others.",
        _table(head, lines),
    ]


def _cost(cost: Mapping[str, Any]) -> list[str]:
    return [
        "## Cost",
        f"{cost['scans_per_second']:.1f} scans/s over {cost['scans']} network images "
        f"({cost['threads']} threads); {cost['forward_passes']} forward passes and "
        f"{cost['gradients']} gradients a scan; peak memory {cost['peak_mib']:.0f} MiB.",
    ]


def _provenance(result: Mapping[str, Any]) -> list[str]:
    flat = [[key, f"`{value}`"] for key, value in result["provenance"].items()]
    return ["## Provenance", _table(["what", "value"], flat), f"{result['seconds']:.0f} s in all."]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    # A vertical bar would end the cell.
    return "\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in lines)
