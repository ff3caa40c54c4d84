"""What the model would have expected of a scan, on the scan's own pixels: for the report.

::

    expected = scan + (counterfactual - network's image), brought to the source and its grey scale

The network sees a small image; only its change is enlarged, so what is not suspect keeps every
detail of the source. The result is synthetic, and is shown as such.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.bundle import Bundle
from anomaly.data.transforms import frame_scan, grey_range, network_image
from anomaly.detection.counterfactual import CounterfactualSettings, counterfactual, suspect_pixels
from anomaly.types import Scan

__all__ = ["expected_scan"]

SETTINGS = CounterfactualSettings()


def expected_scan(
    bundle: Bundle, scan: Scan, evidence: NDArray[np.float32], threshold: float
) -> NDArray[np.float32] | None:
    """Return a scan as the model expects it where regions are.

    Parameters
    ----------
    bundle : Bundle
    scan : Scan
    evidence : ndarray (H, W) float32
        On the scan's pixels.
    threshold : float
        Evidence at and above which a region is drawn.

    Returns
    -------
    ndarray (H, W) float32 in [0, 1], or None
        None where the scan has no region: there is nothing to expect otherwise.
    """
    regions = evidence >= threshold
    if not regions.any():
        return None
    how = bundle.config.preprocessing
    framed, frame = frame_scan(scan, how)
    image = network_image(framed, how)
    marked = frame.to_network(torch.from_numpy(regions.astype(np.float32))[None])[0] > 0
    suspect = torch.from_numpy(suspect_pixels(marked.numpy()[None], SETTINGS.dilation))
    healthy = counterfactual(bundle.network, bundle.levels, image[None], suspect, SETTINGS)[0]
    change = frame.to_source(((healthy - image)[0] / 2).numpy())  # [-1, 1] is two grey scales wide
    low, high = grey_range(scan.pixels, how.intensity)
    expected: NDArray[np.float32] = np.clip(scan.pixels + (high - low) * change, 0, 1)
    return expected.astype(np.float32)
