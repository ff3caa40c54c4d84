r"""Registration of images to the mean normal image, by shift, two scales and rotation.

With :math:`T_\theta` a placement (`anomaly.detection.placement`), :math:`x` an image and
:math:`\bar m` the mean normal image, both without their slow shading,

.. math::
    \hat\theta = \arg\max_\theta \operatorname{corr}_w\bigl(x(T_\theta p), \bar m(p)\bigr)
        - \frac{1}{2\kappa} \sum_i \frac{\theta_i^2}{\sigma_i^2},

the correlation in a window :math:`w` that fades out towards the rim. The second term keeps
parameters that an image does not determine near 0: :math:`\sigma` is how much scans usually
differ. Shading depends on exposure, not on anatomy; correlation ignores brightness and contrast.

The search starts at the best whole-pixel shift of the inner frame and takes damped Gauss-Newton
steps (Levenberg-Marquardt), first on blurred images, then on sharper ones. Steps that do not help
are not taken: no round ends worse than it began.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomaly.detection.blur import blurred
from anomaly.detection.placement import Placement, frame_positions, matrices, sample
from anomaly.errors import ConfigError

__all__ = ["register"]

USUAL = (0.06, 0.06, 0.10, 0.10, 0.07)
"""Sigma of the parameters: 6 % of a side, 10 % of scale, 4 degrees."""

LARGEST = (0.15, 0.15, 0.30, 0.30, 0.25)
"""Largest absolute values of the parameters."""

TRUST = 100.0
"""kappa: weight of the correlation relative to the usual spread of the parameters."""

MARGIN = 1 / 8
"""Margin of the whole-pixel search on every side, and its largest shift, as a share of the side."""

FADE = 1 / 10
"""Width of the fading rim of the window, as a share of the side."""

SHADING = 1 / 16
"""Sigma of the subtracted blur, as a share of the side."""

BLURS = (3 / 64, 1.5 / 64)
"""Sigma of the blur of the images in each round, as shares of the side."""

STEPS = 8
"""Gauss-Newton steps of each round."""

SAMPLES = 32
"""Places compared along each side, at most; neighbouring pixels of blurred images are alike."""


def register(images: NDArray[np.float32], reference: NDArray[np.float32]) -> Placement:
    """Return the placements of images.

    Parameters
    ----------
    images : ndarray (N, H, W)
    reference : ndarray (H, W)
        Mean normal image.

    Raises
    ------
    ConfigError
        If the sizes differ.
    """
    if images.shape[1:] != reference.shape:
        raise ConfigError(
            f"the images are {images.shape[1:]} and the reference {reference.shape}: expected the "
            "size that the network was trained at"
        )
    height, width = reference.shape
    # Single precision: a step is judged by whether it helps, not by how exact it is.
    places = frame_positions(min(height, SAMPLES), min(width, SAMPLES)).float()
    window = ((0.5 - places.abs()) / FADE).clamp(0, 1).prod(1)
    window = window / window.sum()
    start = whole_pixel_shifts(images, reference) / (height, width)
    parameters = torch.zeros(len(images), len(USUAL))
    parameters[:, :2] = torch.from_numpy(start)
    for blur in BLURS:
        pair = (_details(images, blur), _details(reference[None], blur))
        fit = _refined(_Comparison(*pair, places, window), parameters)
        parameters = fit.parameters
    return Placement(parameters.double().numpy(), fit.agreement.double().numpy())


def whole_pixel_shifts(
    images: NDArray[np.float32], reference: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Shift (N, 2) of every image in whole pixels with the best correlation of the inner frame."""
    height, width = reference.shape
    rows, columns = int(height * MARGIN), int(width * MARGIN)
    inner = torch.from_numpy(_unshaded(reference)[rows : height - rows, columns : width - columns])
    inner = inner - inner.mean()
    detail = torch.from_numpy(_unshaded(images))
    # Correlation at shifts 0 .. 2 margin; nothing wraps around, because the rest of the frame is 0.
    spectrum = torch.fft.rfft2(detail) * torch.fft.rfft2(inner, s=(height, width)).conj()
    product = torch.fft.irfft2(spectrum, s=(height, width))[:, : 2 * rows + 1, : 2 * columns + 1]
    down, across = (_window_sums(side, 2 * m) for side, m in ((height, rows), (width, columns)))
    mean, power = (down @ part @ across.T / inner.numel() for part in (detail, detail.square()))
    # The floor avoids 0 / 0 for a window without any detail.
    correlation = product / (power - mean.square()).clamp_min(1e-9).sqrt()
    best = correlation.flatten(1).argmax(1).numpy()
    peaks = np.unravel_index(best, correlation.shape[1:])
    return np.stack(peaks, 1).astype(np.float64) - (rows, columns)


def _window_sums(side: int, shifts: int) -> Tensor:
    """Matrix (shifts + 1, side) float64: sums over all but `shifts` values, from every start."""
    return torch.ones(side, side, dtype=torch.float64).triu().tril(side - shifts - 1)[: shifts + 1]


@dataclass(frozen=True)
class _Fit:
    """N images read at the places of their parameters.

    Attributes
    ----------
    parameters : Tensor (N, 5)
    turn : Tensor (N, 2, 2)
    places : Tensor (N, P, 2)
        Places in the images, less the shift.
    values, slopes : Tensor (N, P), (N, 2, P)
        Standardised in the window; slopes along rows and columns.
    agreement : Tensor (N,)
        Correlation with the mean normal image.
    goal : Tensor (N,)
        What is maximised.
    """

    parameters: Tensor
    turn: Tensor
    places: Tensor
    values: Tensor
    slopes: Tensor
    agreement: Tensor
    goal: Tensor

    def improved(self, better: Tensor, by: _Fit) -> _Fit:
        """Return the fit with the images that are `better` taken from another one."""
        mine, theirs = vars(self), vars(by)
        return _Fit(
            **{
                name: torch.where(better.reshape(-1, *[1] * (value.ndim - 1)), theirs[name], value)
                for name, value in mine.items()
            }
        )


class _Comparison:
    """Images and the mean normal image at the sharpness of one round."""

    def __init__(
        self,
        images: NDArray[np.float64],
        reference: NDArray[np.float64],
        places: Tensor,
        window: Tensor,
    ) -> None:
        height, width = images.shape[1:]
        rows, columns = np.gradient(images, axis=(1, 2))
        self.maps = torch.from_numpy(np.stack([images, rows * height, columns * width], 1)).float()
        self.places, self.window = places, window
        self.usual = torch.tensor(USUAL)
        values = sample(torch.from_numpy(reference)[:, None].float(), places[None])[0, 0]
        values = values - (values * window).sum()
        self.reference = values / (values.square() * window).sum().sqrt().clamp_min(1e-6)

    def at(self, parameters: Tensor) -> _Fit:
        """Read the images at the places of parameters (N, 5)."""
        turn, shift = matrices(parameters)
        places = self.places @ turn.mT
        read = sample(self.maps, places + shift[:, None])
        values = read[:, 0] - (read[:, 0] * self.window).sum(1, keepdim=True)
        size = (values.square() * self.window).sum(1, keepdim=True).sqrt().clamp_min(1e-6)
        values = values / size
        agreement = (values * self.reference * self.window).sum(1)
        prior = (parameters / self.usual).square().sum(1) / (2 * TRUST)
        slopes = read[:, 1:] / size[:, None]
        return _Fit(parameters, turn, places, values, slopes, agreement, agreement - prior)


def _refined(comparison: _Comparison, parameters: Tensor) -> _Fit:
    """Take `STEPS` damped Gauss-Newton steps; each image has its own damping."""
    prior = 1 / (comparison.usual.square() * TRUST)
    largest = torch.tensor(LARGEST)
    damping = torch.full((len(parameters), 1), 1e-2)
    fit = comparison.at(parameters)
    for _ in range(STEPS):
        slopes = _slopes(comparison, fit)
        rest = comparison.reference - fit.values * fit.agreement[:, None]
        uphill = (slopes * (rest * comparison.window)[:, None]).sum(2) - fit.parameters * prior
        curvature = (slopes * comparison.window) @ slopes.mT + torch.diag(prior)
        diagonal = torch.diagonal(curvature, dim1=1, dim2=2)
        step = torch.linalg.solve(curvature + torch.diag_embed(damping * diagonal), uphill)
        tried = comparison.at((fit.parameters + step).clamp(-largest, largest))
        better = tried.goal > fit.goal
        fit = fit.improved(better, tried)
        damping = torch.where(better[:, None], damping * 0.3, damping * 5)
    return fit


def _slopes(comparison: _Comparison, fit: _Fit) -> Tensor:
    """Differentiate the standardised values by the parameters: (N, 5, P)."""
    rows, columns = fit.slopes[:, 0], fit.slopes[:, 1]
    turn, turned = fit.turn, fit.places
    scales = [
        comparison.places[:, k] * (rows * turn[:, 0, k, None] + columns * turn[:, 1, k, None])
        for k in (0, 1)
    ]
    rotation = turned[:, :, 0] * columns - turned[:, :, 1] * rows
    slopes = torch.stack([rows, columns, *scales, rotation], 1)
    # Correlation ignores brightness and contrast, so changes along these do not count.
    slopes = slopes - (slopes * comparison.window).sum(2, keepdim=True)
    along = (slopes * (fit.values * comparison.window)[:, None]).sum(2, keepdim=True)
    return slopes - along * fit.values[:, None]


def _details(images: NDArray[np.float32], blur: float) -> NDArray[np.float64]:
    """Images (N, H, W) blurred by a share of their sides, minus their slow shading."""
    return _unshaded(_share_blurred(images.astype(np.float64), blur))


def _unshaded(images: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = images.astype(np.float64)
    return wide - _share_blurred(wide, SHADING)


def _share_blurred(images: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    height, width = images.shape[-2:]
    return blurred(images, (share * height, share * width))
