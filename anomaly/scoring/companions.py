"""What a report shows beside a scan, on the scan's own pixels.

::

    expected   = scan + (counterfactual - network's image), brought to the source and its grey scale
    look-alike = the normal training image most like it where nothing is suspect

The network sees a small image; of the counterfactual only its change is enlarged, so what is not
suspect keeps every detail of the source. It is synthetic, and is shown as such.
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
    """What is shown beside a scan.

    Attributes
    ----------
    bundle : Bundle
    threshold : float
        Evidence at and above which a region is drawn.
    """

    bundle: Bundle
    threshold: float

    def expected(self, scan: Scan, evidence: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Return a scan as the model expects it where regions are.

        Parameters
        ----------
        scan : Scan
        evidence : ndarray (H, W) float32
            On the scan's pixels.

        Returns
        -------
        ndarray (H, W) float32 in [0, 1], or None
            None where the scan has no region: there is nothing to expect otherwise.
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
        """Return the normal scan most like one where nothing is suspect.

        Parameters
        ----------
        scan : Scan
        evidence : ndarray (H, W) float32, or None
            On the scan's pixels; without any, nothing is suspect.

        Returns
        -------
        ndarray (H, W) float32 in [0, 1], or None
            As displayed; None where the bundle may show none.
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
        # Spread over its own percentiles it is ready to be seen; else it has the scan's range.
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
