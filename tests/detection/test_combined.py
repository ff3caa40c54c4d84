"""The combined kind: laws of its parts, limits, shares that add up, and what it sees."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from anomaly.detection.detector import FeatureDetector
from anomaly.detection.kinds import CombinedSettings, LedoitWolfSettings
from anomaly.detection.kinds.combined import ENTRY, LIMITS, PARTS
from anomaly.errors import ConfigError

NAMES = (*(f"a{k}" for k in range(20)), "peak", *(f"g{k}" for k in range(5)), "size")
GROUPS = (*("main",) * 20, "place", *("guard",) * 5, "given")
SETTINGS = CombinedSettings(use=("main",), place=("peak",), guard=("guard",), given=("size",))


def normals(count: int, seed: int) -> NDArray[np.float64]:
    """Correlated features, a log extreme, guards, and a size that blows the main ones up."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(20, 20)) / 4 + np.eye(20)
    size = rng.uniform(-1.5, 1.5, (count, 1))
    main = rng.normal(size=(count, 20)) @ mix * (1.3 + 0.3 * size)
    peak = np.log(rng.gumbel(5, 0.6, (count, 1)))
    return np.concatenate([main, peak, rng.normal(size=(count, 5)), size], 1)


def fitted(count: int = 1500, settings: CombinedSettings = SETTINGS) -> FeatureDetector:
    return FeatureDetector.fit(normals(count, 0), NAMES, settings, GROUPS)


def test_a_part_is_minus_the_log_of_the_share_of_normals_beyond() -> None:
    parts = fitted().parts(normals(20_000, 1))
    assert tuple(parts) == PARTS
    for name, values in parts.items():
        for share in (0.1, 0.03, 0.01):
            # 1,500 normals were fitted on; their upper tenth, 150, gives the tail.
            rate = np.mean(values >= -math.log(share))
            assert rate == pytest.approx(share, rel=0.5), (name, share)


def test_the_score_is_the_whole_part_unless_another_is_beyond_its_limit() -> None:
    detector, new = fitted(), normals(4000, 2)
    new[:200, 20] += 1  # an extreme place
    new[200:400, 21:26] *= 6  # an extreme guard
    parts, scores = detector.parts(new), detector.score(new)
    silent = (parts["place"] <= LIMITS["place"]) & (parts["guard"] <= LIMITS["guard"])
    assert 0.8 < silent.mean() < 0.95
    assert_allclose(scores[silent], parts["whole"][silent])
    for name in ("place", "guard"):
        entered = parts[name] - LIMITS[name] + ENTRY
        beyond = parts[name] > LIMITS[name]
        assert (scores[beyond] >= entered[beyond] - 1e-12).all()
    decisive = np.array(detector.decisive(new))
    assert (decisive[:200] == "place").mean() > 0.9
    assert (decisive[200:400] == "guard").mean() > 0.9
    assert (decisive[silent] == "whole").all()


def test_a_given_size_no_longer_tells_what_is_unusual() -> None:
    # Large images have noisier features; given the size, they are as usual as small ones.
    plain = CombinedSettings(use=("main",), place=("peak",), guard=("guard",))
    new = normals(6000, 3)
    large, small = new[:, -1] > 1, new[:, -1] < -1

    def rates(settings: CombinedSettings) -> list[float]:
        columns = [i for i, g in enumerate(GROUPS) if settings.given or g != "given"]
        detector = FeatureDetector.fit(
            normals(2000, 0)[:, columns],
            [NAMES[i] for i in columns],
            settings,
            [GROUPS[i] for i in columns],
        )
        whole = detector.parts(new[:, columns])["whole"]
        return [float(np.mean(whole[part] > math.log(20))) for part in (large, small)]

    unequal, equal = rates(plain), rates(SETTINGS)
    assert unequal[0] > 4 * unequal[1]
    assert equal[0] < 2.5 * equal[1] + 0.02


def test_shares_add_up_and_name_the_features_that_were_changed() -> None:
    detector, new = fitted(), normals(300, 4)
    new[:, 7] += 12
    shares = detector.shares(new)
    assert shares is not None
    assert shares.shape == new.shape
    assert_allclose(shares.sum(1), 1, atol=1e-12)
    assert_allclose(shares[:, 20:], 0)  # of place, guard and given nothing
    assert np.median(shares.argmax(1)) == 7
    # By hand: z_f (P z)_f over z P z, with P of the main features alone.
    z = ((new - detector.mean) / detector.scale)[:, :20]
    precision = detector.density.arrays()["precision"][:20, :20]
    products = z * (z @ precision)
    assert_allclose(shares[:, :20], products / products.sum(1, keepdims=True), rtol=1e-9)


def test_arrays_round_trip() -> None:
    detector, new = fitted(300), normals(50, 5)
    again = FeatureDetector.from_arrays(NAMES, "combined", detector.arrays())
    assert_allclose(again.score(new), detector.score(new))
    assert again.decisive(new) == detector.decisive(new)


def test_kinds_without_parts_explain_nothing() -> None:
    detector = FeatureDetector.fit(normals(100, 0), NAMES, LedoitWolfSettings(use=NAMES), GROUPS)
    new = normals(3, 1)
    assert detector.parts(new) == {}
    assert detector.shares(new) is None
    assert detector.decisive(new) == ["", "", ""]


@pytest.mark.parametrize("name", ["place", "guard"])
def test_a_part_without_features_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"candidates {name} is empty with kind combined"):
        CombinedSettings(use=("energy",), **{name: ()})  # type: ignore[arg-type]


def test_its_name_in_tables_names_every_feature() -> None:
    assert str(SETTINGS) == "combined over main, place peak, guard guard, given size"
