"""Images that a report shows beside a scan, on the scan's own pixels.

::

    expected   = scan + (counterfactual - network image), mapped to the source and its grey scale
    look-alike = the normal training image most similar to the scan outside suspect pixels

The network image is small. Only the change between it and the counterfactual is enlarged, so pixels
that are not suspect keep every detail of the source. The expected image is synthetic, and its label
says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly.data.images.transforms import Frame, frame_scan, grey_range, network_image
from anomaly.detection.counterfactual import CounterfactualSettings, counterfactual, suspect_pixels
from anomaly.store.bundle import Bundle
from anomaly.types import Scan

__all__ = ["Companions"]

SETTINGS = CounterfactualSettings()


@dataclass(frozen=True)
class Companions:
    """The images that a report shows beside a scan.

    Attributes
    ----------
    bundle : Bundle
    threshold : float
        Evidence at and above which a pixel belongs to a region.
    """

    bundle: Bundle
    threshold: float

    def expected(self, scan: Scan, evidence: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Return a scan with its regions replaced by what the model expects there.

        Parameters
        ----------
        scan : Scan
        evidence : ndarray (H, W) float32
            On the scan's pixels.

        Returns
        -------
        ndarray (H, W) float32 in [0, 1], or None
            None if the scan has no region: nothing would change.
        """
        if not (evidence >= self.threshold).any():
            return None
        bundle = self.bundle
        image, frame = self._network_image(scan)
        suspect = torch.from_numpy(self._suspect(evidence, frame)[None])
        healthy = counterfactual(bundle.network, bundle.levels, image[None], suspect, SETTINGS)[0]
        # [-1, 1] is two grey scales wide
        change = frame.to_source(((healthy - image)[0] / 2).numpy())
        low, high = grey_range(scan.pixels, bundle.config.preprocessing.intensity)
        expected: NDArray[np.float32] = np.clip(scan.pixels + (high - low) * change, 0, 1)
        return expected.astype(np.float32)

    def look_alike(
        self, scan: Scan, evidence: NDArray[np.float32] | None
    ) -> NDArray[np.float32] | None:
        """Return the normal training image most similar to a scan outside suspect pixels.

        Parameters
        ----------
        scan : Scan
        evidence : ndarray (H, W) float32, or None
            On the scan's pixels; if None, no pixel is suspect.

        Returns
        -------
        ndarray (H, W) float32 in [0, 1], or None
            As displayed; None if the bundle may show no training images.
        """
        known = self.bundle.look_alikes
        if known is None:
            return None
        image, frame = self._network_image(scan)
        size = self.bundle.config.preprocessing.size
        suspect = np.zeros((size, size), dtype=np.bool_)
        if evidence is not None:
            suspect = self._suspect(evidence, frame)
        normal = known.nearest(image.numpy(), suspect)
        alike = frame.to_source(normal.astype(np.float32) / np.float32(255))
        # With full range, apply the scan's display curve. Otherwise the training image is already
        # spread over its own percentiles, ready for display.
        full = self.bundle.config.preprocessing.intensity == "full"
        return scan.display(alike) if full else alike

    def _network_image(self, scan: Scan) -> tuple[Tensor, Frame]:
        how = self.bundle.config.preprocessing
        framed, frame = frame_scan(scan, how)
        return network_image(framed, how), frame

    def _suspect(self, evidence: NDArray[np.float32], frame: Frame) -> NDArray[np.bool_]:
        regions = torch.from_numpy((evidence >= self.threshold).astype(np.float32))
        marked = frame.to_network(regions[None])[0] > 0
        suspect: NDArray[np.bool_] = suspect_pixels(marked.numpy()[None], SETTINGS.dilation)[0]
        return suspect
