"""Measure the error of the healthy counterfactual on phantoms, whose lesion-free twin is known.

    python benchmarks/counterfactual.py --bundle FOLDER --out FILE.json

FOLDER is a calibrated bundle trained on phantoms, such as one made by `anomaly demo`. New lesions
(all kinds in turn, visible at the network's size) and normals are drawn. Errors are root mean
squares in grey steps, ``2 / 255`` of ``[-1, 1]``, over the pixels that the lesion changes, against
the lesion-free twin of the same patient on the same film. Intervals are 95 %, by bootstrap over
patients, each of whom has one image. There are two choices of suspect pixels:

- *found*: the regions of evidence at the bundle's threshold, as in the contours that a reader sees;
- *told*: the pixels that the lesion changes, to evaluate the filling alone.

Both are dilated as set in `CounterfactualSettings`.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from anomaly.cdm.density import clean_estimate, grey_step, predict_noise
from anomaly.cdm.sampling import step_ladder
from anomaly.data.images.blanks import blank_pixels
from anomaly.data.images.transforms import Frame, network_image
from anomaly.data.synthetic.phantom import (
    LESION_KINDS,
    VISIBLE,
    LesionKind,
    draw_phantom,
    is_visible,
)
from anomaly.detection.counterfactual import (
    CounterfactualSettings,
    counterfactual,
    suspect_pixels,
)
from anomaly.detection.registration import register
from anomaly.evaluation.metrics import patient_mean
from anomaly.store.bundle import Bundle, read_bundle

SOURCE = (256, 224)
PURPOSE = 77
"""Third number of every seed, which no patient of a training set has."""

STEP = grey_step(256)
BATCH = 32
SAMPLER_STEPS, SAMPLES = 40, 4


@dataclass(frozen=True)
class Cases:
    """N patients: images and twins (N, 1, S, S), blank pixels (N, S, S) and kinds of lesion."""

    images: Tensor
    twins: Tensor
    blank: NDArray[np.bool_]
    kinds: tuple[LesionKind | None, ...]

    @property
    def lesion(self) -> Tensor:
        """Mask (N, S, S) bool of the pixels that the lesion changes, as in `Phantom.mask`."""
        return (self.images - self.twins).abs()[:, 0] > 2 * VISIBLE


def source_frame(bundle: Bundle) -> Frame:
    """Map between phantoms and the network's frame."""
    how = bundle.config.preprocessing
    return Frame(SOURCE, how.size, how.geometry)


def draw(bundle: Bundle, kinds: list[LesionKind | None], seed: int) -> Cases:
    """Draw a patient for every lesion; repeat until the lesion is visible at the network's size."""
    how, frame = bundle.config.preprocessing, source_frame(bundle)
    pairs, blank = [], []
    for number, kind in enumerate(kinds):
        for attempt in range(100):
            rng = np.random.default_rng([seed, number, PURPOSE, attempt])
            phantom = draw_phantom(rng, SOURCE, kind)
            if kind is None or is_visible(phantom, how.size):
                break
        else:
            raise SystemExit(
                f"no {kind} shows in {how.size} rows: a bundle of 64 or more is needed"
            )
        low, high = 0.0, 1.0
        if how.intensity == "percentile":
            # The twin gets the percentiles of its image, so that both have the same grey scale.
            low, high = np.percentile(phantom.image, (0.5, 99.5))
        framed = [
            frame.to_network(torch.from_numpy(unit.astype(np.float32))[None], 2 * how.size)
            for unit in (
                np.clip((pixels - low) / (high - low), 0, 1)
                for pixels in (phantom.image, phantom.twin)
            )
        ]
        pairs.append([network_image(one, how) for one in framed])
        blank.append(blank_pixels(phantom.image, framed[0], frame))
    images, twins = (torch.stack(side) for side in zip(*pairs, strict=True))
    return Cases(images, twins, np.stack(blank), tuple(kinds))


def found(bundle: Bundle, cases: Cases, dilation: int) -> Tensor:
    """Suspect pixels (N, S, S) as found by scoring."""
    extract = bundle.extractor(torch.device("cpu"))
    parts = []
    for start in range(0, len(cases.images), BATCH):
        part = slice(start, start + BATCH)
        said = extract(cases.images[part], cases.blank[part])
        parts.append(bundle.heatmap.evidence(said.residuals, said.placement, said.blank))
    threshold = bundle.calibration().peaks.threshold(bundle.config.alpha)
    frame = source_frame(bundle)
    regions = [frame.to_source(evidence) >= threshold for evidence in np.concatenate(parts)]
    marked = [frame.to_network(torch.from_numpy(r)[None].float())[0] > 0 for r in regions]
    return torch.from_numpy(suspect_pixels(torch.stack(marked).numpy(), dilation))


def told(lesion: Tensor, dilation: int) -> Tensor:
    """Suspect pixels (N, S, S) from the known lesion."""
    return torch.from_numpy(suspect_pixels(lesion.numpy(), dilation))


# -------------------------------------------------------------------------- alternative fillings

Filling = Callable[[Bundle, Tensor, Tensor], Tensor]


def placed_mean(bundle: Bundle, images: Tensor, suspect: Tensor) -> Tensor:
    """Fill with the mean normal image, aligned to the anatomy; uses no network."""
    grey, mean = images[:, 0].numpy(), bundle.reference[0].float().numpy()
    moved = register(grey, mean).in_images(mean)
    return torch.where(suspect[:, None], torch.from_numpy(moved)[:, None], images)


def membrane(bundle: Bundle, images: Tensor, suspect: Tensor) -> Tensor:
    """Fill with the harmonic continuation of the surroundings (Jacobi iteration); uses no data."""
    del bundle
    x, mask = images, suspect[:, None]
    kernel = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=x.dtype)[None, None] / 4
    for _ in range(3000):
        around = functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), kernel)
        x = torch.where(mask, around, images)
    return x


def one_step(ratio: float) -> Filling:
    """Return a filling by one denoising step at a noise level that hides the lesion."""

    def fill(bundle: Bundle, images: Tensor, suspect: Tensor) -> Tensor:
        settings = CounterfactualSettings(noise_to_signal=(ratio,), rounds=1)
        return counterfactual(bundle.network, bundle.levels, images, suspect, settings)

    return fill


def sampled(samples: int) -> Filling:
    """Return a filling by the mean of samples conditioned on the noised known pixels."""

    def fill(bundle: Bundle, images: Tensor, suspect: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        drawn = [_sample(bundle, images, suspect[:, None], generator) for _ in range(samples)]
        return torch.stack(drawn).mean(0)

    return fill


def _sample(bundle: Bundle, images: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    """One ancestral sample of the suspect pixels (RePaint without resampling jumps)."""
    levels = bundle.levels
    x = torch.randn(images.shape, generator=generator)
    for t_index, s_index in pairwise(step_ladder(levels, SAMPLER_STEPS)):
        t = torch.full((len(x),), t_index)
        s = torch.full_like(t, s_index)
        noise = torch.randn(images.shape, generator=generator)
        x = torch.where(mask, x, levels.perturb(images, t, noise))
        eps_hat = predict_noise(bundle.network, x, t, levels)
        clean = clean_estimate(x, eps_hat, t, levels).detach().clamp(-1, 1)
        if s_index == 0:
            return torch.where(mask, clean, images)
        alpha_t, sigma_t = levels.alpha_at(t, x), levels.sigma_at(t, x)
        alpha_s, sigma_s = levels.alpha_at(s, x), levels.sigma_at(s, x)
        # Bayes' rule for x_s given x_t and the clean image.
        step = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
        mean = alpha_s * clean + alpha_t / alpha_s * (sigma_s / sigma_t) ** 2 * (
            x - alpha_t * clean
        )
        fresh = torch.randn(images.shape, generator=generator)
        x = mean + (sigma_s / sigma_t) * step.sqrt() * fresh
    raise AssertionError("the ladder ends at the clean level")


def fixed_point(settings: CounterfactualSettings) -> Filling:
    """Return the toolkit's own filling."""

    def fill(bundle: Bundle, images: Tensor, suspect: Tensor) -> Tensor:
        return counterfactual(bundle.network, bundle.levels, images, suspect, settings)

    return fill


OURS = CounterfactualSettings()
NOTHING, MEAN, EXPECTED = (
    "nothing (the image itself)",
    "mean normal image, placed",
    "the counterfactual",
)
FILLINGS: dict[str, Filling] = {
    NOTHING: lambda bundle, images, suspect: images,
    MEAN: placed_mean,
    "membrane over the surroundings": membrane,
    **{f"one denoising at sigma/alpha = {r:g}": one_step(r) for r in (0.5, 1.0, 2.0, 4.0)},
    "one sample": sampled(1),
    f"mean of {SAMPLES} samples": sampled(SAMPLES),
    EXPECTED: fixed_point(OURS),
}
AS_FOUND = (NOTHING, MEAN, EXPECTED)


# -------------------------------------------------------------------------------------- errors


def rms(off: Tensor, where: Tensor) -> NDArray[np.float64]:
    """Root mean square (N,) of differences (N, 1, S, S) over pixels (N, S, S), in grey steps."""
    squares = (off[:, 0].double() / STEP).square() * where
    return (squares.sum((1, 2)) / where.sum((1, 2))).sqrt().numpy()


def estimate(values: NDArray[np.float64], seed: int) -> str:
    """Mean over patients with its interval, as text."""
    return str(patient_mean(values, [str(i) for i in range(len(values))], seed=seed))


def lesions(bundle: Bundle, cases: Cases, seed: int) -> dict[str, Any]:
    """Errors against the twin, for found and for told pixels."""
    kinds = np.array(cases.kinds)
    report: dict[str, Any] = {}
    for name, suspect in (
        ("found", found(bundle, cases, OURS.dilation)),
        ("told", told(cases.lesion, OURS.dilation)),
    ):
        covered = ((suspect & cases.lesion).sum((1, 2)) / cases.lesion.sum((1, 2))).numpy()
        touched = covered > 0
        before = rms(cases.images - cases.twins, cases.lesion)
        rows = {}
        for label, fill in FILLINGS.items():
            if name == "found" and label not in AS_FOUND:
                continue
            began = time.perf_counter()
            after = rms(fill(bundle, cases.images, suspect) - cases.twins, cases.lesion)
            rows[label] = {
                "error": estimate(after, seed),
                "error less the input's": estimate(after - before, seed),
                "touched: error": estimate(after[touched], seed),
                "touched: less the input's": estimate((after - before)[touched], seed),
                "lower than the input's": int((after < before).sum()),
                "higher than the input's": int((after > before).sum()),
                "by kind": {kind: float(after[kinds == kind].mean()) for kind in LESION_KINDS},
                "seconds an image": (time.perf_counter() - began) / len(before),
            }
            print(name, label, rows[label], flush=True)
        report[name] = {
            "lesion pixels that are suspect": estimate(covered, seed),
            "lesions touched": int(touched.sum()),
            "fillings": rows,
        }
    return report


def normals(bundle: Bundle, cases: Cases, shapes: Tensor, seed: int) -> dict[str, Any]:
    """Return the changes of normal images, compared with the error of a denoiser."""
    everywhere = torch.ones_like(shapes[:1]).expand(len(cases.images), -1, -1)
    suspect = found(bundle, cases, OURS.dilation)
    changed = FILLINGS[EXPECTED](bundle, cases.images, suspect) - cases.images
    floor = {}
    for ratio in (OURS.noise_to_signal[-1], 0.25, 0.5, 1.0):
        off = one_step(ratio)(bundle, cases.images, everywhere) - cases.images
        floor[ratio] = rms(off, everywhere)
    change = rms(changed, everywhere)
    imposed = {}
    for label in AS_FOUND:
        off = FILLINGS[label](bundle, cases.images, shapes) - cases.images
        imposed[label] = estimate(rms(off, shapes), seed)
        print("normals, imposed", label, imposed[label], flush=True)
    return {
        "images with suspect pixels": int(suspect.flatten(1).any(1).sum()),
        "change over the whole image": estimate(change, seed),
        "images changed by more than the last level's residual": int(
            (change > floor[OURS.noise_to_signal[-1]]).sum()
        ),
        "residual of one denoising by sigma/alpha": {
            f"{ratio:g}": estimate(values, seed) for ratio, values in floor.items()
        },
        "change of the pixels of another patient's lesion": imposed,
    }


def main() -> None:
    """Draw cases, fill suspect pixels, compute the errors and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=120, help="lesions, and as many normals")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bundle = read_bundle(options.bundle)
    kinds: list[LesionKind | None] = [
        LESION_KINDS[i % len(LESION_KINDS)] for i in range(options.count)
    ]
    abnormal = draw(bundle, kinds, options.seed)
    normal = draw(bundle, [None] * options.count, options.seed + 1)
    report = {
        "bundle": {"name": bundle.config.name, "size": bundle.config.preprocessing.size},
        "settings": asdict(OURS),
        "lesions": len(kinds),
        "normals": options.count,
        "seed": options.seed,
        "unit": "grey steps of 256",
        "with lesion": lesions(bundle, abnormal, options.seed),
        "without": normals(bundle, normal, told(abnormal.lesion, OURS.dilation), options.seed),
        "machine": f"{platform.machine()}, one thread, torch {torch.__version__}",
        "peak memory, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report["without"], indent=1))


if __name__ == "__main__":
    main()
