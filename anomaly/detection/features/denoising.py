"""Feature groups of the predicted noise: its norm and its error at each noise level."""

from __future__ import annotations

from anomaly.detection.features.group import DrawGroup
from anomaly.detection.features.settings import FeatureSettings

__all__ = ["RESIDUAL", "SCORE_NORM", "level_names"]


def level_names(settings: FeatureSettings) -> tuple[str, ...]:
    """Names of the noise levels, as used in column names."""
    return tuple(f"{ratio:g}" for ratio in settings.noise_to_signal)


SCORE_NORM = DrawGroup(
    name="score_norm",
    columns=lambda settings: tuple(f"score_norm_{r}" for r in level_names(settings)),
    compute=lambda draw: draw.noise_norms.double(),
)
RESIDUAL = DrawGroup(
    name="residual",
    columns=lambda settings: tuple(f"residual_{r}" for r in level_names(settings)),
    compute=lambda draw: draw.noise_errors.double(),
)
