r"""Feature groups: named numbers that the network and the image itself give.

=====================  ==================================================================
``nll``                bits/dim, dequantised (one pass)
``nll_excess``         ``nll`` minus the bits/dim of the image as a PNG (complexity-corrected,
                       arXiv 1909.11480): surprise beyond texture
``profile_k``          noise-level profile: :math:`-\log p_t(x) / (d \ln 2)` of the image itself
                       at 16 noise levels (the same pass)
``posterior_mean``     mean of :math:`t / (T+1)` under the level posterior (DTE, arXiv
                       2305.18593; the same pass)
``posterior_clean``    :math:`-\log p(t = 0 \mid x)`, nats (the same pass)
``score_norm_r``       :math:`\|\hat\varepsilon\|^2 / d` of the image noised to
                       :math:`\sigma / \alpha = r` (MSMA, arXiv 2010.13132): one forward and one
                       backward pass per level
``residual_r``         :math:`\|\hat\varepsilon - \varepsilon\|^2 / d`, the denoising error there
``octave_r_k``         log energy of the residual map of level ``r`` in octave ``k``
``energy_r_c``         log energy of it in cell ``c`` of a coarse grid, relative to the image
``texture_k_c``        log energy of octave band ``k`` of the image itself there, relative to the
                       image; without the network
``signed_r_c``         mean of the residual map of level ``r`` in cell ``c``
``shift_...``,         placement of the anatomy (`anomaly.detection.placement`): shifts as shares of
``scale_...``,         the sides, logarithms of the scales, radians, and the correlation with the
``rotation``,          mean normal image
``agreement``
``evidence_...``       statistics of the heatmap (`anomaly.detection.heatmap.local_features`)
=====================  ==================================================================

`anomaly.detection.extractor` defines residual maps and noise draws. The groups from ``octave``
on are local features (`anomaly.detection.local`); the grid of cells follows the anatomy
(`anomaly.detection.placement`).
"""

from anomaly.detection.features.group import (
    DrawGroup,
    EvidenceGroup,
    FeatureGroup,
    NoiseDraw,
    ObservedScans,
    ScanGroup,
)
from anomaly.detection.features.places import cell_columns
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
    "cell_columns",
    "feature_groups",
    "register_group",
    "reported_names",
]
