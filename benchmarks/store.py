"""Time the queries of a worklist on a large results store.

    python benchmarks/store.py --rows 10000000 --shard 8192

Writes synthetic parts with the documented schema to a temporary folder. Then it queries the hundred
most anomalous scans, summaries by site and view, one scan by its pseudonym, and the hundred most
anomalous studies.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anomaly.detection.features import FeatureSettings, reported_names
from anomaly.store.results import Provenance, Results
from anomaly.store.rows import SCHEMA

VIEWS = ("PA", "AP", "LATERAL")
SITES = tuple(f"site {letter}" for letter in "ABCDEFGH")


def part(rng: np.random.Generator, first: int, count: int) -> pa.Table:
    """Rows of one shard; two images per study, 1 in 50 not scored."""
    number = np.arange(first, first + count)
    failed = rng.random(count) < 0.02
    score, p_value = rng.gamma(4, size=count), rng.random(count)
    names = reported_names(FeatureSettings())
    values = rng.normal(size=count * len(names)).astype(np.float32)
    offsets = np.arange(count + 1, dtype=np.int32) * len(names)
    keys = [_scrambled(n) for n in number.tolist()]
    columns = {
        "key": keys,
        "status": np.where(failed, "not scored", "scored"),
        "reason": np.where(failed, "truncated", ""),
        "score": pa.array(score, mask=failed),
        "p_value": pa.array(p_value, mask=failed),
        "flagged": pa.array(p_value <= 0.05, mask=failed),
        "evidence_peak": pa.array(score * 2, mask=failed),
        "regions": pa.array(rng.integers(0, 4, count), mask=failed),
        "view": np.array(VIEWS)[number % 3],
        # An archive is listed folder by folder, and each folder belongs to one site.
        "site": np.array(SITES)[number // 50_000 % len(SITES)],
        "study": [_scrambled(n // 2) for n in number.tolist()],
        "patient": [_scrambled(n // 4) for n in number.tolist()],
        "map_part": pa.array(number // count, mask=rng.random(count) > 0.06),
        "features": pa.MapArray.from_arrays(
            pa.array(offsets), pa.array(list(names) * count), pa.array(values)
        ),
    }
    return pa.table(columns).cast(SCHEMA)


def _scrambled(number: int) -> str:
    """Sixteen hex digits, unique and without order, like pseudonyms."""
    return f"{(number * 0x9E3779B97F4A7C15) % 2**64:016x}"


QUESTIONS = {
    "the 100 most anomalous scans": "SELECT key, score, p_value FROM worklist ORDER BY score DESC "
    "LIMIT 100",
    "summary by site": "SELECT site, count(*), count(score), avg(score), sum(flagged::int) "
    "FROM worklist GROUP BY site",
    "summary by view": "SELECT view, count(*), avg(score), sum(flagged::int) FROM worklist "
    "GROUP BY view",
    "one scan by pseudonym": "SELECT * FROM worklist WHERE key = '{key}'",
    "the 100 most anomalous studies": "SELECT * FROM studies ORDER BY p_value LIMIT 100",
}


def make_store(results: Results, rows: int, shard: int) -> None:
    """Write synthetic parts, and the files written at the end of a run."""
    count = -(-rows // shard)
    provenance = Provenance(
        "b" * 64, "m" * 64, "i" * 64, "s" * 64, 0.05, count, {"anomaly": "0.1.0"}
    )
    results.begin(provenance)
    rng, began = np.random.default_rng(0), time.perf_counter()
    for index in range(count):
        table = part(rng, index * shard, min(shard, rows - index * shard))
        said = {"provenance": json.dumps(asdict(provenance)), "shard": str(index)}
        pq.write_table(table.replace_schema_metadata(said), results.part(index))
        results.seal(index)
    size = sum(path.stat().st_size for path in results.folder.iterdir()) / 2**20
    print(
        f"{rows} rows in {count} parts, {size:.0f} MiB, {size / rows * 1e6:.0f} MiB a million "
        f"rows; generated in {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    began = time.perf_counter()
    results.finish(provenance, results.folder.parent / "scores.csv")
    print(
        f"finishing (CSV, worklist of {results.worklist.stat().st_size / 2**20:.0f} MiB): "
        f"{time.perf_counter() - began:.0f} s",
        flush=True,
    )


def main() -> None:
    """Write the parts, run the queries and print seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--shard", type=int, default=8192)
    parser.add_argument("--keep", type=Path, help="Folder; a store that is there is asked again.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Results((options.keep or Path(folder)) / "parts")
        if not results.finished.exists():
            make_store(results, options.rows, options.shard)
        key = _scrambled(options.rows * 3 // 4)
        for repeat in ("first", "again"):
            for name, sql in QUESTIONS.items():
                began = time.perf_counter()
                found = results.query(sql.format(key=key))
                seconds = time.perf_counter() - began
                print(f"{repeat}: {name}: {seconds:.2f} s, {found.num_rows} rows", flush=True)


if __name__ == "__main__":
    main()
