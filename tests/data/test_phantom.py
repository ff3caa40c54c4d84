"""Synthetic chest radiographs: reproducible, true to their masks, and real DICOM on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from anomaly.data.synthetic.phantom import (
    LESION_KINDS,
    VISIBLE,
    LesionKind,
    draw_phantom,
    is_visible,
)
from anomaly.data.synthetic.phantom_dicom import (
    FILM,
    PATIENT,
    PhantomStudies,
    write_phantom_studies,
)
from anomaly.data.synthetic.phantom_thorax import draw_thorax, draw_view
from anomaly.errors import ConfigError

SIZE = (128, 112)
NORMALS, ABNORMALS = 8, 4
PIXEL_MM2 = (400 / SIZE[0]) ** 2


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("size", [(128, 112), (96, 96), (65, 81)])
def test_arrays_have_the_stated_shape_type_and_range(size: tuple[int, int]) -> None:
    phantom = draw_phantom(rng(0), size, "nodule")
    for image in (phantom.image, phantom.twin):
        assert image.shape == size
        assert image.dtype == np.float32
        assert np.isfinite(image).all()
        assert image.min() >= 0
        assert image.max() <= 1
    assert phantom.mask.shape == size
    assert phantom.mask.dtype == np.bool_


@pytest.mark.parametrize("lesion", [None, *LESION_KINDS])
def test_same_seed_same_phantom_other_seed_another(lesion: LesionKind | None) -> None:
    first, again, other = (draw_phantom(rng(seed), SIZE, lesion) for seed in (1, 1, 2))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.mask.tobytes() == again.mask.tobytes()
    assert np.abs(first.image - other.image).mean() > 0.01


def test_a_normal_phantom_is_its_own_twin() -> None:
    phantom = draw_phantom(rng(3), SIZE)
    assert phantom.lesion is None
    assert not phantom.mask.any()
    assert np.array_equal(phantom.image, phantom.twin)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lesion", LESION_KINDS)
def test_the_mask_is_exactly_where_the_lesion_shows(lesion: LesionKind, seed: int) -> None:
    phantom = draw_phantom(rng(seed), SIZE, lesion)
    change = np.abs(phantom.image - phantom.twin)
    assert phantom.mask.any()
    assert np.all(change[phantom.mask] > np.float32(VISIBLE))
    assert np.all(change[~phantom.mask] == 0)
    # The twin is the film that the same patient would have had without the lesion.
    assert np.array_equal(phantom.twin, draw_phantom(rng(seed), SIZE).image)


# What a person could measure on the film, in mm2: a nodule of 30 mm covers 707 of them, and the
# patient may be 15 % larger than the standard one.
AREAS: dict[LesionKind, tuple[float, float]] = {
    "nodule": (20, 1_100),
    "consolidation": (600, 13_000),
    "effusion": (1_500, 18_000),
    "device": (100, 6_000),
}


@pytest.mark.parametrize("lesion", LESION_KINDS)
def test_lesions_have_clinical_sizes(lesion: LesionKind) -> None:
    areas = [draw_phantom(rng(s), SIZE, lesion).mask.sum() * PIXEL_MM2 for s in range(100, 108)]
    low, high = AREAS[lesion]
    assert low <= min(areas)
    assert max(areas) <= high


def test_lesions_absorb() -> None:
    """Every lesion is denser than lung, so it can only brighten."""
    for lesion in LESION_KINDS:
        phantom = draw_phantom(rng(8), SIZE, lesion)
        brighter = (phantom.image > phantom.twin)[phantom.mask]
        assert brighter.mean() > 0.99


def test_it_looks_like_a_chest() -> None:
    """Lungs darker than the mediastinum between them and than the abdomen below."""
    mean = np.stack([draw_phantom(rng(seed), SIZE).image for seed in range(12)]).mean(axis=0)
    right_lung, left_lung = mean[45:65, 25:40].mean(), mean[45:65, 72:87].mean()
    mediastinum, abdomen = mean[45:65, 52:60].mean(), mean[108:120, 40:70].mean()
    assert max(right_lung, left_lung) + 0.15 < min(mediastinum, abdomen)
    assert abs(right_lung - left_lung) < 0.1


def test_patients_differ() -> None:
    upright = (0.0, 0.0, 0.0, 1.0)
    areas = []
    for seed in range(12):
        patient = rng(seed)
        view = draw_view(patient, SIZE, upright)
        areas.append((draw_thorax(patient, view).air > 3).mean())
    assert 0.04 < np.std(areas) / np.mean(areas) < 0.3
    images = [draw_phantom(rng(seed), SIZE).image.ravel() for seed in range(12)]
    likeness = np.asarray(np.corrcoef(images))[np.triu_indices(12, 1)]
    assert likeness.min() > 0.3
    assert likeness.max() < 0.99


@pytest.mark.parametrize("seed", range(3))
def test_another_film_shows_the_same_patient_and_lesion_again(seed: int) -> None:
    """Only the positioning moves the nodule, by a few pixels of some 3 mm."""
    visits = [draw_phantom(rng(seed), SIZE, "nodule", film=rng(film)) for film in (10, 11)]
    assert not np.array_equal(visits[0].image, visits[1].image)
    places = [np.argwhere(visit.mask).mean(axis=0) for visit in visits]
    assert np.abs(places[0] - places[1]).max() < 15


# ------------------------------------------------------------------------------------- DICOM


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> PhantomStudies:
    folder = tmp_path_factory.mktemp("studies")
    return write_phantom_studies(folder, normals=NORMALS, abnormals=ABNORMALS, seed=1, size=SIZE)


def read(studies: PhantomStudies) -> list[tuple[Path, pydicom.FileDataset]]:
    files = studies.normal + studies.abnormal
    return [(file, pydicom.dcmread(studies.folder / file)) for file in files]


def test_same_seed_same_bytes(studies: PhantomStudies, tmp_path: Path) -> None:
    again = write_phantom_studies(
        tmp_path / "a", normals=NORMALS, abnormals=ABNORMALS, seed=1, size=SIZE
    )
    other = write_phantom_studies(tmp_path / "b", normals=2, abnormals=0, seed=2, size=SIZE)
    assert (again.normal, again.abnormal, again.masks) == (
        studies.normal,
        studies.abnormal,
        studies.masks,
    )
    for file in again.normal + again.abnormal + again.masks:
        assert (again.folder / file).read_bytes() == (studies.folder / file).read_bytes()
    first = other.normal[0]
    assert (other.folder / first).read_bytes() != (studies.folder / first).read_bytes()


def test_the_folder_holds_what_is_returned(studies: PhantomStudies) -> None:
    found = {p.relative_to(studies.folder) for p in studies.folder.rglob("*") if p.is_file()}
    assert found == set(studies.normal + studies.abnormal + studies.masks)
    assert {file.parts[0] for file in studies.normal} == {"normal"}
    masks = {Path("masks", file.parent, file.name + ".png") for file in studies.abnormal}
    assert masks == set(studies.masks)


def test_patients_are_normal_or_abnormal_never_both(studies: PhantomStudies) -> None:
    normal = {file.parent.name for file in studies.normal}
    abnormal = {file.parent.name for file in studies.abnormal}
    assert (len(normal), len(abnormal)) == (NORMALS, ABNORMALS)
    assert not normal & abnormal


def test_the_files_vary_as_real_ones_do(studies: PhantomStudies) -> None:
    headers = [header for _, header in read(studies)]
    assert {h.PhotometricInterpretation for h in headers} == {"MONOCHROME1", "MONOCHROME2"}
    assert {h.BitsStored for h in headers} == {12, 16}
    assert {h.file_meta.TransferSyntaxUID.name for h in headers} == {
        "Explicit VR Little Endian",
        "RLE Lossless",
    }
    assert len(headers) > NORMALS + ABNORMALS, "no patient came twice"
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        assert len({h[keyword].value for h in headers}) == len(headers)


def test_headers_are_complete_and_say_synthetic(studies: PhantomStudies) -> None:
    for file, header in read(studies):
        assert header.SyntheticData == "YES"
        assert header.PatientIdentityRemoved == "YES"
        assert "not a patient" in header.DerivationDescription
        assert header.PatientID == file.parent.name
        assert header.Modality == "DX"
        assert header.BurnedInAnnotation == "NO"
        assert (header.Rows, header.Columns) == SIZE
        assert list(header.ImagerPixelSpacing) == [400 / SIZE[0]] * 2
        assert header.HighBit == header.BitsStored - 1
        assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID
        inverse = header.PhotometricInterpretation == "MONOCHROME1"
        assert header.PresentationLUTShape == ("INVERSE" if inverse else "IDENTITY")


def test_stored_values_are_the_image_within_half_a_grey_level(studies: PhantomStudies) -> None:
    """Each patient is drawn again from the documented seeds, then compared with the file."""
    lesions: list[LesionKind | None] = [None] * NORMALS
    lesions += [LESION_KINDS[i % 4] for i in range(ABNORMALS)]
    for file, header in read(studies):
        number, visit = int(file.parent.name[-4:]), int(file.stem[2:])
        lesion, film = lesions[number - 1], rng(1, number, FILM, visit)
        phantom = draw_phantom(rng(1, number, PATIENT), SIZE, lesion, film=film)
        top = 2**header.BitsStored - 1
        stored = header.pixel_array.astype(np.float64)
        if header.PhotometricInterpretation == "MONOCHROME1":
            stored = top - stored
        assert np.abs(stored - phantom.image.astype(np.float64) * top).max() <= 0.5
        if phantom.lesion is not None:
            png = studies.folder / "masks" / file.parent / (file.name + ".png")
            with Image.open(png) as opened:
                assert opened.mode == "L"
                mask = np.asarray(opened)
            assert np.array_equal(mask, np.where(phantom.mask, 255, 0))


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(ConfigError, match="not empty"):
        write_phantom_studies(tmp_path, normals=1, abnormals=0, seed=0)
    with pytest.raises(ConfigError, match="negative"):
        write_phantom_studies(tmp_path / "new", normals=-1, abnormals=0, seed=0)


def test_a_lesion_is_visible_at_a_size_where_six_reduced_pixels_change_enough() -> None:
    phantom = draw_phantom(np.random.default_rng(0), (64, 56), "nodule")
    twin = np.zeros((64, 56), dtype=np.float32)
    image = twin.copy()
    image[:4, :6] = 0.07  # 2 x 3 pixels of the image reduced by 2
    assert is_visible(replace(phantom, image=image, twin=twin), 32)
    image[0, 0] = 0.0  # the first reduced pixel falls to 0.0525
    assert not is_visible(replace(phantom, image=image, twin=twin), 32)
    with pytest.raises(ConfigError, match="30 rows: expected a divisor of the image's 64"):
        is_visible(phantom, 30)


def test_visible_lesions_are_drawn_and_processes_change_no_byte(tmp_path: Path) -> None:
    made = [
        write_phantom_studies(
            tmp_path / str(workers),
            normals=1,
            abnormals=4,
            seed=3,
            size=(128, 112),
            visible_at=64,
            workers=workers,
        )
        for workers in (1, 2)
    ]
    assert made[0].abnormal == made[1].abnormal
    for file in (*made[0].normal, *made[0].abnormal, *made[0].masks):
        one, other = ((studies.folder / file).read_bytes() for studies in made)
        assert one == other
    for mask in made[0].masks:
        seen = np.asarray(Image.open(made[0].folder / mask)) > 0
        # Six reduced pixels of 2 x 2 that change by 0.06 hold at least six changed pixels.
        assert seen.sum() >= 6
