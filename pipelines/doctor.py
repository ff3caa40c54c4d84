"""doctor: packages, devices and decoders of this machine, and whether a bundle is intact."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from anomaly.cdm.health import DEAD, network_health
from anomaly.data.readers.dicom import decodable_transfer_syntaxes
from anomaly.pipelines.run import NOTICE
from anomaly.store.bundle import read_bundle
from anomaly.store.bundle_files import bundle_problems
from anomaly.version import __version__

__all__ = ["doctor"]

HEALTH_DRAWS = 4

NOT_STILL = ("MPEG", "HEVC", "SMPTE", "JPIP")

PACKAGES = (
    "torch",
    "monai",
    "numpy",
    "scikit-learn",
    "pydicom",
    "nibabel",
    "pyarrow",
    "matplotlib",
)


def doctor(bundle: Path | None) -> tuple[list[str], bool]:
    """Check the installation, and a bundle if given.

    Returns
    -------
    lines : list of str
        Text for the user.
    healthy : bool
        False if a package is missing or the bundle is not intact.
    """
    lines = [f"anomaly {__version__}, Python {platform.python_version()}. {NOTICE}", ""]
    healthy = True
    for package in PACKAGES:
        try:
            lines.append(f"  {package:<14} {version(package)}")
        except PackageNotFoundError:
            healthy = False
            lines.append(f"  {package:<14} MISSING: install the project again")
    lines += [
        "",
        "devices",
        f"  cpu            {os.cpu_count()} cores, {torch.get_num_threads()} threads",
    ]
    for index in range(torch.cuda.device_count()):
        lines.append(f"  cuda:{index}         {torch.cuda.get_device_name(index)}")
    if not torch.cuda.is_available():
        lines.append("  cuda           none seen by PyTorch")
    lines += ["", "DICOM transfer syntaxes"]
    decoders = decodable_transfer_syntaxes()
    lines += [f"  {name:<58} {', '.join(names)}" for name, names in decoders.items() if names]
    missing = [name for name, names in decoders.items() if not names]
    still = [name for name in missing if not any(word in name for word in NOT_STILL)]
    lines += [f"  {name:<58} cannot be decoded here" for name in still]
    lines.append(f"  and {len(missing) - len(still)} video, audio and streaming syntaxes, not read")
    if bundle is not None:
        problems = bundle_problems(bundle)
        healthy = healthy and not problems
        lines += ["", f"bundle {bundle}"]
        lines += [f"  {problem}" for problem in problems] or _intact(bundle)
    return lines, healthy


def _intact(folder: Path) -> list[str]:
    bundle = read_bundle(folder)
    weights = sum(parameter.numel() for parameter in bundle.network.parameters())
    calibrated = (
        f"calibrated on {bundle.calibrated}"
        if bundle.calibrated
        else "not calibrated: scores only, no flags"
    )
    lines = [f"  intact, hash {bundle.hash[:12]}", f"  {weights} weights", f"  {calibrated}"]
    # A bundle contains no scan, but its mean training image shows the anatomy.
    mean = bundle.reference[None].expand(HEALTH_DRAWS, -1, -1, -1)
    health = network_health(bundle.network, bundle.network.parts, bundle.levels, mean)
    lines += ["", "parts of its network, where each carries most of gradient times activation"]
    lines += [f"  {line}" for line in health.lines()]
    if health.dead:
        lines.append(
            f"  {', '.join(health.dead)}: dead, with less than {DEAD:.0%} of an even share at "
            "every noise level. Scores are those that it was calibrated with; a network without "
            "dead parts may see more. Train one at a lower rate; an encoder needs "
            "network.normalize: true"
        )
    return lines
