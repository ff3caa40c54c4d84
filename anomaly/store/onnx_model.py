r"""The passes of a bundle's network as one ONNX file, for programs without PyTorch.

The graph takes images in the network's frame and returns what `anomaly.detection.passes` returns:
log densities, norms and errors of the predicted noise, and residual maps, for every noise draw. The
input gradient is a network of forward operations (`anomaly.cdm.layers`), so the graph has ordinary
operations only, and the noise is a part of it. The metadata of the file state what has to be done
to an image before, and which network it is.

A model is written only if ONNX Runtime computes with it what PyTorch computes: the largest error
relative to the largest value of each output is at most `TOLERANCE`. Reading compares the digest of
network and settings with the bundle's, so that no score comes from another network unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from anomaly.detection.passes import NetworkPasses, PassResults
from anomaly.errors import AnomalyError, BundleError
from anomaly.files import whole_path, writing
from anomaly.types import NOTICE
from anomaly.version import __version__

if TYPE_CHECKING:
    from anomaly.store.bundle import Bundle

__all__ = ["TOLERANCE", "OnnxPasses", "network_digest", "read_model", "write_model"]

TOLERANCE = 1e-4
"""Largest error of an output, relative to its largest value, at which a model is written."""

CHECKED = 6
"""Images on which an exported model is compared."""


@dataclass(frozen=True)
class OnnxPasses:
    """Passes of an exported model in ONNX Runtime.

    Attributes
    ----------
    path : Path
    device : str
        "cpu" or "cuda"; ONNX Runtime needs its GPU package for the latter.
    """

    path: Path
    device: str = "cpu"

    def __call__(self, images: Tensor) -> PassResults:
        """Return the results for images (N, C, H, W) in [-1, 1], quantised."""
        values = self._session.run(None, {"images": images.cpu().numpy()})
        return PassResults(*(torch.from_numpy(value) for value in values))

    def metadata(self) -> dict[str, str]:
        """Return the metadata of the file."""
        known: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return known

    @cached_property
    def _session(self) -> Any:
        runtime = _onnxruntime()
        options = runtime.SessionOptions()
        # Batches are scored in parallel threads already (`anomaly.parallel`).
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        provider = f"{self.device.upper()}ExecutionProvider"
        if provider not in runtime.get_available_providers():
            raise AnomalyError(
                f"ONNX Runtime has no {provider} here, only {runtime.get_available_providers()}: "
                "pip install onnxruntime-gpu, or score with --device cpu"
            )
        try:
            return runtime.InferenceSession(self.path.read_bytes(), options, providers=[provider])
        except OSError as error:
            raise BundleError(f"{self.path} cannot be read: {error}") from error
        except Exception as error:  # of ONNX Runtime, which has no class of its own for them
            raise BundleError(f"{self.path} is not an ONNX model: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs; a session cannot be copied."""
        return {"path": self.path, "device": self.device}


def write_model(bundle: Bundle, path: Path) -> float:
    """Write the passes of a bundle's network as an ONNX file.

    Returns
    -------
    float
        Largest error of an output on test images, relative to its largest value.

    Raises
    ------
    AnomalyError
        If onnx, onnxscript or onnxruntime is not installed, or the file cannot be written.
    BundleError
        If ONNX Runtime computes something else; then no file is written.
    """
    content = _exported(bundle)
    with writing(path), whole_path(path) as temporary:
        temporary.write_bytes(content)
        error = _largest_error(OnnxPasses(temporary), bundle)
        if not error <= TOLERANCE:
            raise BundleError(
                "ONNX Runtime computes something else than PyTorch with the exported model "
                f"(relative error {error:.2g}, expected at most {TOLERANCE:g}): no model is "
                "written. Another version of onnxruntime may compute it"
            )
    return error


def read_model(path: Path, bundle: Bundle, device: torch.device) -> OnnxPasses:
    """Return the passes of an exported model, after comparing it with a bundle.

    Raises
    ------
    AnomalyError
        If onnxruntime is not installed, or has no support for the device.
    BundleError
        If the file is no exported model, or one of another network or other settings.
    """
    passes = OnnxPasses(path, device.type)
    known = passes.metadata()
    if "digest" not in known:
        raise BundleError(
            f"{path} does not say which network it is: expected a file by `anomaly export-model`"
        )
    if known["digest"] != network_digest(bundle):
        raise BundleError(
            f"{path} was exported from another network or other settings (bundle "
            f"{known.get('bundle', '')[:12]}) than this bundle's: export it again with "
            "`anomaly export-model`"
        )
    return passes


def network_digest(bundle: Bundle) -> str:
    """SHA-256 of all that the passes depend on: weights, levels, features, grey values.

    Calibration and detector do not matter.
    """
    state = {k: v.contiguous().cpu() for k, v in bundle.network.state_dict().items()}
    settings = json.dumps(_settings(bundle), sort_keys=True).encode()
    return hashlib.sha256(save_tensors(state) + settings).hexdigest()


def _settings(bundle: Bundle) -> dict[str, Any]:
    config = bundle.config
    return {
        "network": asdict(config.network),
        "levels": asdict(config.levels),
        "features": asdict(config.features),
        "preprocessing": asdict(config.preprocessing),
        "intensity": asdict(config.intensity),
    }


def _metadata(bundle: Bundle) -> dict[str, str]:
    return {
        "notice": NOTICE,
        "name": bundle.config.name,
        "bundle": bundle.hash,
        "digest": network_digest(bundle),
        "version": __version__,
        **{name: json.dumps(values) for name, values in _settings(bundle).items()},
    }


class _Graph(nn.Module):
    """Passes with a plain tuple as output, as the exporter wants them."""

    def __init__(self, passes: NetworkPasses) -> None:
        super().__init__()
        self.passes = passes

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.passes(images))


def _exported(bundle: Bundle) -> bytes:
    """Content of the file."""
    passes = NetworkPasses(
        bundle.network.cpu(),
        bundle.levels,
        replace(bundle.config.features, precision="float32"),
        bundle.config.preprocessing.grey_levels,
        bundle.reference.cpu(),
        whole=True,
    )
    try:
        from onnxscript import opset18 as op
    except ImportError as error:
        raise _not_installed("onnx and onnxscript") from error

    def silu_gradient(g: Any, a: Any) -> Any:
        s = op.Sigmoid(a)
        one = op.Constant(value_float=1.0)
        return op.Mul(op.Mul(g, s), op.Add(op.Mul(a, op.Sub(one, s)), one))

    with _quiet_exporter():
        program = torch.onnx.export(
            _Graph(passes).eval(),
            (torch.zeros(2, *bundle.reference.shape),),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("images", min=1, max=4096)},),
            input_names=["images"],
            output_names=list(PassResults._fields),
            custom_translation_table={torch.ops.aten.silu_backward.default: silu_gradient},
        )
    if program is None:  # only without dynamo
        raise BundleError("PyTorch exported nothing")
    model = program.model_proto
    model.doc_string = NOTICE
    for name, value in _metadata(bundle).items():
        model.metadata_props.add(key=name, value=value)
    content: bytes = model.SerializeToString()
    return content


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Suppress what PyTorch's exporter says of its own insides, and of torchvision."""
    exporter = logging.getLogger("torch.onnx")
    before = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        exporter.setLevel(before)


def _largest_error(passes: OnnxPasses, bundle: Bundle) -> float:
    """Largest relative error on the mean normal image under noise of several sizes."""
    steps = bundle.config.preprocessing.grey_levels - 1
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((CHECKED, *bundle.reference.shape), generator=generator)
    size = torch.logspace(-2, 0, CHECKED)[:, None, None, None]
    images = (bundle.reference.cpu() + size * noise).clamp(-1, 1)
    images = ((images + 1) / 2 * steps).round() / steps * 2 - 1
    features = replace(bundle.config.features, precision="float32")
    exact = replace(bundle, config=replace(bundle.config, features=features))
    expected = exact.extractor(torch.device("cpu")).passes(images)
    errors = [
        float(np.abs(got - want).max() / np.abs(want).max())
        for got, want in zip(_arrays(passes(images)), _arrays(expected), strict=True)
    ]
    return max(errors)


def _arrays(results: PassResults) -> list[Any]:
    return [part.numpy() for part in results]


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise _not_installed("onnxruntime") from error
    return onnxruntime


def _not_installed(what: str) -> AnomalyError:
    return AnomalyError(f"an exported model needs {what}: pip install 'anomaly[onnx]'")
