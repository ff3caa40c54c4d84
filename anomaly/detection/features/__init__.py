r"""What the network says of one image: named numbers in groups, and residual maps.

=====================  ==================================================================
``nll``                bits/dim, dequantised (one pass)
``nll_excess``         ``nll`` less the bits/dim of the image as a PNG (complexity-corrected,
                       arXiv 1909.11480): what the density calls surprising, beyond texture
``profile_k``          noise-level profile: :math:`-\log p_t(x) / (d \ln 2)` of the image itself
                       at 16 levels of the ladder (the same pass)
``posterior_mean``     mean of :math:`t / (T+1)` under the level posterior (DTE, arXiv
                       2305.18593; the same pass)
``posterior_clean``    :math:`-\log p(t = 0 \mid x)`, nats (the same pass)
``score_norm_r``       :math:`\|\hat\varepsilon\|^2 / d` of the image noised to
                       :math:`\sigma / \alpha = r` (MSMA, arXiv 2010.13132): one pass forward
                       and one backward a level
``residual_r``         :math:`\|\hat\varepsilon - \varepsilon\|^2 / d`, the denoising error there
``octave_r_k``         log energy of the residual map of level ``r`` in octave ``k``
``energy_r_c``         log energy of it in cell ``c`` of a coarse grid, relative to the image
``texture_k_c``        log energy of octave band ``k`` of the image itself there, relative to the
                       image; no network takes part
``signed_r_c``         mean of the residual map of level ``r`` in cell ``c``
``evidence_...``       of the heatmap (`anomaly.detection.heatmap.local_features`)
=====================  ==================================================================

The residual map of level ``r`` is :math:`x_0 - E[x_0 \mid x_t]`, a scaled input gradient of the
log density ratio: what the model would have painted differently, signed. The groups from ``octave``
on are local features (`anomaly.detection.local`); the grid of cells moves with the anatomy
(`anomaly.detection.placement`).

Noise is a function of (seed, draw) and the same for every image, so a score depends on neither the
batch nor the order. Every second draw is the negative of the one before: what the noise adds to a
residual in first order cancels.
"""

from anomaly.detection.features.group import (
    DrawGroup,
    EvidenceGroup,
    FeatureGroup,
    NoiseDraw,
    ObservedScans,
    ScanGroup,
)
from anomaly.detection.features.registry import (
    GROUPS,
    feature_groups,
    register_group,
    reported_names,
)
from anomaly.detection.features.settings import FeatureSettings

__all__ = [
    "GROUPS",
    "DrawGroup",
    "EvidenceGroup",
    "FeatureGroup",
    "FeatureSettings",
    "NoiseDraw",
    "ObservedScans",
    "ScanGroup",
    "feature_groups",
    "register_group",
    "reported_names",
]
