"""Samples of a network during training, on a contact sheet that is marked as synthetic."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from anomaly.cdm.levels import NoiseLevels
from anomaly.cdm.sampling import sample
from anomaly.types import DRAWN_PNG

__all__ = ["draw_samples", "write_samples"]


def draw_samples(
    network: nn.Module, levels: NoiseLevels, shape: torch.Size, device: torch.device
) -> Tensor:
    """Nine DDIM samples (9, C, H, W) in [-1, 1], always from the same noise."""
    noise = torch.randn(9, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    steps = min(20, levels.last - 1)
    return sample(network, levels, noise, steps=steps, eta=0.0).cpu()


def write_samples(path: Path, images: Tensor) -> NDArray[np.uint8]:
    """Write a contact sheet, marked as synthetic in its pixels and metadata; return it."""
    side = math.isqrt(len(images))
    rows = [torch.cat(list(images[r * side : (r + 1) * side]), dim=2) for r in range(side)]
    grey = ((torch.cat(rows, dim=1).mean(0) + 1) * 127.5).clamp(0, 255).byte().numpy()
    sheet = Image.new("L", (grey.shape[1], grey.shape[0] + 14))
    sheet.paste(Image.fromarray(grey), (0, 14))
    ImageDraw.Draw(sheet).text((2, 1), "SYNTHETIC: drawn by a model", fill=255)
    info = PngInfo()
    for name, text in DRAWN_PNG.items():
        info.add_text(name, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, pnginfo=info)
    return np.asarray(sheet)
