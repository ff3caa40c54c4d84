"""Exported models: ONNX Runtime computes what PyTorch computes, of the network asked for."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.testing import assert_allclose

import anomaly
from anomaly.data.synthetic.phantom import draw_phantom
from anomaly.detection.passes import NetworkPasses
from anomaly.errors import AnomalyError, BundleError
from anomaly.store.bundle import Bundle, read_bundle, write_bundle
from anomaly.store.bundle_files import SHIPPED
from anomaly.store.onnx_model import (
    TOLERANCE,
    OnnxPasses,
    _largest_error,
    network_digest,
    read_model,
    write_model,
)
from tests.pipelines.road import anomaly as command
from tests.test_bundle import images, make

CPU = torch.device("cpu")
SMALL = {"kind": "encoder", "widths": [4, 6], "features": 5}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return make(SMALL)


@pytest.fixture(scope="module")
def model(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    assert write_model(bundle, path) <= TOLERANCE
    return path


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_batch_of_any_size_has_the_results_of_pytorch(
    bundle: Bundle, model: Path, count: int
) -> None:
    batch = images(count, seed=7)
    expected = bundle.extractor(CPU).passes(batch)
    for found, wanted in zip(read_model(model, bundle, CPU)(batch), expected, strict=True):
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype
        assert_allclose(found, wanted, atol=1e-5 * float(wanted.abs().max()))


def test_the_graph_has_no_gradients_and_says_what_it_is(bundle: Bundle, model: Path) -> None:
    graph = onnx.load(model)
    onnx.checker.check_model(graph)
    assert {node.domain for node in graph.graph.node} == {""}  # standard operations alone
    known = {entry.key: entry.value for entry in graph.metadata_props}
    assert known["digest"] == network_digest(bundle)
    assert json.loads(known["preprocessing"])["size"] == 8
    assert json.loads(known["preprocessing"])["grey_levels"] == 256
    assert json.loads(known["features"])["noise_to_signal"] == [0.25, 1.0]
    assert json.loads(known["intensity"]) == json.loads(json.dumps(asdict(bundle.config.intensity)))
    assert "Not a diagnosis" in graph.doc_string
    assert "/secret/" not in str(known)


def test_any_program_can_run_it(bundle: Bundle, model: Path) -> None:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    batch = images(3, seed=8)
    found = session.run(["residuals"], {"images": batch.numpy()})[0]
    expected = bundle.extractor(CPU).passes(batch).residuals
    assert_allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


def test_another_network_is_refused_and_another_calibration_is_not(
    bundle: Bundle, model: Path
) -> None:
    fewer = replace(bundle, calibrated=None, hash="another")
    assert read_model(model, fewer, CPU).path == model
    torch.manual_seed(1)
    other = make({**SMALL, "features": 6})
    with pytest.raises(BundleError, match="another network or other settings"):
        read_model(model, other, CPU)
    features = replace(bundle.config.features, seed=1)
    moved = replace(bundle, config=replace(bundle.config, features=features))
    with pytest.raises(BundleError, match="export it again"):
        read_model(model, moved, CPU)


def test_what_is_no_exported_model_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    with pytest.raises(BundleError, match="cannot be read"):
        read_model(path, bundle, CPU)
    path.write_bytes(b"no model")
    with pytest.raises(BundleError, match="is not an ONNX model"):
        read_model(path, bundle, CPU)
    identity = onnx.helper.make_node("Identity", ["a"], ["b"])
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "ab"]
    opset = onnx.helper.make_opsetid("", 18)
    graph = onnx.helper.make_graph([identity], "g", values[:1], values[1:])
    path.write_bytes(
        onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()
    )
    with pytest.raises(BundleError, match="does not say which network"):
        read_model(path, bundle, CPU)


def test_the_gate_sees_a_model_that_computes_something_else(bundle: Bundle, model: Path) -> None:
    """A hundredth more of one weight; the bundle's own is far below the bound."""
    state = {k: v.clone() for k, v in bundle.network.state_dict().items()}
    state["network.reads.0.weight"] *= 1.01
    other = make(SMALL).network
    other.load_state_dict(state)
    assert _largest_error(OnnxPasses(model), bundle) < TOLERANCE / 10
    assert _largest_error(OnnxPasses(model), replace(bundle, network=other)) > TOLERANCE


def test_a_model_that_fails_the_gate_is_not_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.store.onnx_model.TOLERANCE", 1e-12)
    path = tmp_path / "x.onnx"
    path.write_bytes(b"before")
    with pytest.raises(BundleError, match="no model is written"):
        write_model(bundle, path)
    assert path.read_bytes() == b"before"
    assert [item.name for item in tmp_path.iterdir()] == ["x.onnx"]


def test_a_copy_for_another_process_finds_the_file_again(bundle: Bundle, model: Path) -> None:
    passes = read_model(model, bundle, CPU)
    copied = copy.deepcopy(passes)
    assert torch.equal(copied(images(2, 1)).residuals, passes(images(2, 1)).residuals)


def test_a_device_without_support_is_refused(bundle: Bundle, model: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has a GPU here")
    with pytest.raises(AnomalyError, match="has no CUDAExecutionProvider"):
        read_model(model, bundle, torch.device("cuda"))


def test_the_rows_of_a_pass_do_not_matter(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, reference = images(3, 5), bundle.reference
    features, results = bundle.config.features, []
    for rows, whole in ((1, False), (4, False), (4, True)):
        monkeypatch.setattr("anomaly.detection.passes.PIXELS", rows * 64)
        passes = NetworkPasses(bundle.network, bundle.levels, features, 256, reference, whole=whole)
        results.append(passes(batch))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_allclose(one, two, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shipped") / "zhanglab.onnx"
    write_model(read_bundle(SHIPPED / "zhanglab"), path)
    return path


def test_the_shipped_detector_gives_the_same_verdicts(shipped: Path) -> None:
    """Flags equal; scores within a thousandth of those in float32, a tenth of those as shipped."""
    rng = np.random.default_rng(0)
    scans = [draw_phantom(np.random.default_rng(number)).image for number in range(12)]
    scans += [np.clip(scan + 0.05 * rng.standard_normal(scan.shape), 0, 1) for scan in scans[:4]]
    plain, exported = anomaly.load("zhanglab"), anomaly.load("zhanglab", model=shipped)
    features = replace(plain.bundle.config.features, precision="float32")
    whole = replace(plain.bundle, config=replace(plain.bundle.config, features=features))
    detectors = (plain, anomaly.Detector(whole), exported)
    for scan in scans:
        usual, one, other = (
            detector.score(scan.astype(np.float64), value_range=(0, 1)) for detector in detectors
        )
        assert usual.flag == one.flag == other.flag
        assert other.score == pytest.approx(usual.score, abs=0.1)
        assert one.p_value == other.p_value
        assert other.score == pytest.approx(one.score, abs=1e-3)
        assert one.evidence is not None
        assert other.evidence is not None
        assert_allclose(one.evidence, other.evidence, atol=1e-3)


def test_the_command_writes_it_and_names_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    written = write_bundle(bundle, tmp_path / "bundle")
    said = command("export-model", tmp_path / "bundle", tmp_path / "model.onnx")
    assert said.code == 0, said
    assert written.hash[:12] in said.out
    assert "Not a diagnosis" in said.out
    assert OnnxPasses(tmp_path / "model.onnx").metadata()["bundle"] == written.hash
    refused = command("export-model", tmp_path / "bundle", tmp_path / "model.bin")
    assert refused.code == 1
    assert "ends in .onnx" in refused.err
