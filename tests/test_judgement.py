"""Whether a result is doubted: what went wrong is named in a sentence, what is well is not."""

import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from test_registration import FIXED, GRID, MOVING

from diffreg.cli.main import main
from diffreg.data.geometry import Image
from diffreg.data.images import read_image
from diffreg.data.prepare import prepare
from diffreg.fields import identity_grid
from diffreg.losses import usual_objective
from diffreg.registration import register, write_registration
from diffreg.registration.judgement import LIMITS, LOW_IN_MASK, judged, sentences, warnings_of
from diffreg.registration.result import registration_of
from diffreg.registration.second_start import displacement_of, second_start
from diffreg.registration.signs import motion_of, signs_of

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = Path(__file__).parents[1] / "diffreg" / "demo" / "heads"


def head(name, index=10):
    return read_image(HEADS / f"{name}.nii.gz", index)


def moved(image, degrees, shift):
    """The image's place in space turned about its middle, then shifted, mm."""
    angle = np.radians(degrees)
    move = np.eye(4)
    move[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = image.affine @ [(image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2, 0, 1]
    move[:3, 3] = middle[:3] - move[:3, :3] @ middle[:3] + [*shift, 0]
    return replace(image, affine=move @ image.affine)


def given(displacement, moving=MOVING, fixed=FIXED, similarity="ncc", **masks):
    """A result with a displacement that somebody gave."""
    pair = prepare(moving, fixed, **masks)
    field = torch.as_tensor(displacement, dtype=torch.float32).expand(1, 2, *fixed.shape)
    return registration_of(pair, field.clone(), "given", similarity, 0.0, {})


def said(result, limits=LIMITS):
    return sentences(signs_of(result), limits)


def save(path, image):
    nib.save(nib.Nifti1Image(image.data[0, 0, ..., None].numpy(), image.affine), path)


def test_a_turned_and_shifted_head_is_doubted(tmp_path, monkeypatch, capsys):
    """By 20 mm, which a displacement should not have to mend."""
    monkeypatch.chdir(tmp_path)
    save("moving.nii.gz", moved(head("colin27_t1"), 15, (16, 12)))
    save("fixed.nii.gz", head("mni152_t1"))
    assert main(["register", "moving.nii.gz", "fixed.nii.gz", "-o", "out"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    aligning = [words for words in metrics["warnings"] if "not aligned" in words]
    turned = re.compile("one motion of the whole image, a turn by [78] degrees")  # 7.5 or so
    assert any(map(turned.search, aligning))
    output = capsys.readouterr()
    assert [f"diffreg: warning: {words}" for words in metrics["warnings"]] == [
        line for line in output.err.splitlines() if "warning" in line
    ]
    count = len(metrics["warnings"])
    assert output.out.startswith(f"out/report.html: doubtful ({count} warning")
    assert metrics["folded_percent"] == 0
    assert 'class="warnings"' in (tmp_path / "out" / "report.html").read_text()


def test_png_files_of_different_sizes_are_doubted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = head("colin27_t1").data[0, 0].numpy()
    grey = (255 * values / values.max()).astype(np.uint8)
    Pillow.fromarray(np.pad(grey, 24)).save("moving.png")
    Pillow.fromarray(grey).save("fixed.png")
    words = ["register", "moving.png", "fixed.png", "-o", "out"]
    assert main(words) == 0
    assert "warning" not in capsys.readouterr().err  # the affine start found it
    assert main([*words, "--affine", "none"]) == 0
    errors = capsys.readouterr().err
    assert "a shift of 34 pixels" in errors  # 24 along both axes
    assert "144 x 160 and 96 x 112 pixels, were laid corner on corner" in errors


@pytest.mark.parametrize("similarity", ["ncc", "pls"])
@pytest.mark.parametrize("index", [3, 10, 17])
def test_good_heads_are_not_doubted(index, similarity):
    fixed = head("mni152_t1" if similarity == "ncc" else "mni152_gm", index)
    objective = usual_objective(similarity)
    result = register(head("colin27_t1", index), fixed, objective=objective)
    assert result.metrics["warnings"] == []
    assert result.verdict.startswith("NCC ")


@pytest.mark.parametrize("similarity", ["ncc", "mi"])
def test_an_image_on_itself_is_only_called_that(similarity):
    result = register(FIXED, FIXED, objective=usual_objective(similarity), levels=1, iterations=5)
    (words,) = result.metrics["warnings"]  # most likely a file that was named twice
    assert words.startswith("Moving and fixed are one image")


def test_a_displacement_that_is_right_is_not_doubted_however_large():
    """The registration brought home what lay wrong: the second start ends there, too."""
    away = moved(FIXED, 0, (12, 0))
    right = given(np.array([12, 0.0]).reshape(1, 2, 1, 1), away)
    signs = signs_of(right)
    assert signs.moved > LIMITS.moved * signs.extent
    assert signs.motion.length > LIMITS.affine * signs.extent
    assert not {"second start", "affine", "moved"} & set(said(right))
    assert {"second start"} <= set(said(given(0 * right.displacement, away)))
    wrong = said(given(-right.displacement, away))
    assert {"second start", "affine", "moved"} <= set(wrong)


def test_a_turn_is_named():
    angle = np.radians(7)
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    grid = identity_grid(FIXED.shape, torch.float64)
    length = torch.tensor(FIXED.spacing, dtype=torch.float64)[:, None, None]
    x = (grid[0] - grid[0].mean((1, 2), keepdim=True)) * length
    u = ((1.1 * torch.einsum("dk,kij->dij", turn, x) - x) / length)[None]
    u += torch.tensor([2.0, 4.0]).reshape(1, 2, 1, 1)  # by 2 mm and by 5 mm
    motion = motion_of(u, FIXED, torch.ones(FIXED.shape, dtype=torch.bool))
    found = motion.turn, motion.shift, motion.growth, motion.share
    assert found == pytest.approx((7, 29**0.5, 1.1, 1))
    (words,) = [words for name, words in said(given(u)).items() if name == "affine"]
    assert "mostly (100 %) one motion of the whole image, a turn by 7 degrees" in words
    assert "a change of lengths by +10 %" in words


def test_waves_are_no_motion_of_the_whole_image():
    i, j = np.indices(FIXED.shape)
    waves = np.stack([5 * np.sin(i / 2), 5 * np.cos(j / 2)])[None]
    motion = motion_of(torch.from_numpy(waves), FIXED, torch.ones(FIXED.shape, dtype=torch.bool))
    assert motion.share < 0.1
    assert "affine" not in said(given(waves))


def test_large_displacements_are_named():
    signs = signs_of(given(np.array([6, 0.0]).reshape(1, 2, 1, 1)))
    assert signs.moved == pytest.approx(6.0)
    words = sentences(signs)["moved"]
    assert words == "The displacement is large: 6 mm on average, 9 % of the image's 67 mm."


def test_few_voxels_are_no_large_displacement():
    """Of an image of 20 voxels, 2 are a tenth."""
    x = torch.linspace(-1, 1, 20)
    blob = torch.exp(-((x[:, None] - 0.1) ** 2 + x**2) / 0.1)[None, None]
    small = Image(blob, np.eye(4))
    result = given(np.array([0, 2.0]).reshape(1, 2, 1, 1), small, small)
    assert signs_of(result).moved > LIMITS.moved * signs_of(result).extent
    assert not {"moved", "affine"} & set(said(result))


def test_a_low_agreement_is_named():
    noise = torch.rand(FIXED.data.shape, generator=torch.Generator().manual_seed(0))
    other = replace(MOVING, data=noise)
    assert said(given(0, other))["agreement"].startswith("The images hardly agree where they were")
    across = said(given(0, other, similarity="mi"))["agreement"]
    assert "normalised mutual information, from 1 to 2, 1." in across
    assert "agreement" not in said(given(0, similarity="mi"))


def test_hardly_a_gain_is_named_unless_the_images_agree():
    noise = torch.randn(FIXED.data.shape, generator=torch.Generator().manual_seed(0))
    result = given(0, replace(MOVING, data=MOVING.data + 14 * noise))
    signs = signs_of(result)
    assert LIMITS.ncc.low < signs.after < LIMITS.ncc.good
    assert said(result)["agreement"].startswith("The images agree hardly better than before: NCC 0")
    gained = replace(signs, before=0.2)
    assert "agreement" not in sentences(gained)
    assert "agreement" not in sentences(replace(signs, before=0.95, after=0.95))


def test_what_was_gained_is_of_what_was_missing():
    """To 1 of NCC, and to 2 of normalised mutual information."""
    signs = signs_of(given(0))
    within = replace(signs, measure="ncc", before=0.5, after=0.8)
    across = replace(signs, measure="normalized_mutual_information", before=1.2, after=1.6)
    assert (within.gained, across.gained) == pytest.approx((0.6, 0.5))
    assert replace(signs, measure="ncc", before=1.0, after=1.0).gained == 1


def test_volumes_in_a_mask_have_no_background_to_agree_on():
    """Of a ball of four tissues, seen in another contrast under noise."""
    places = np.indices((24, 22, 20)) - 11
    shell = np.digitize(np.sqrt((places**2).sum(0)), [3, 5, 7, 9])
    noise = 0.25 * np.random.default_rng(0).normal(size=(2, *shell.shape))
    tables = np.array([[1.0, 2.0, 1.0, 1.7, 0.0], [1.5, 0.6, 1.4, 1.0, 0.0]])
    painted = torch.from_numpy(tables[:, shell] + noise).float()
    images = [Image(values[None, None], np.eye(4)) for values in painted]
    brain = Image(torch.from_numpy((shell < 4).astype(np.uint8))[None, None], np.eye(4))
    field = torch.zeros(1, 3, *shell.shape)

    def shown(moving, **masks):
        pair = prepare(moving, images[1], **masks)
        return registration_of(pair, field, "given", "mi", 0.0, {})

    whole, within = (signs_of(shown(images[0], **masks)) for masks in ({}, {"mask": brain}))
    assert (whole.in_mask, within.in_mask) == (False, True)
    dark = [replace(image, data=image.data * brain.data) for image in images]
    view = replace(brain, data=torch.ones_like(brain.data))  # with the background
    pair = prepare(*dark, mask=view)
    assert not signs_of(registration_of(pair, field, "given", "mi", 0.0, {})).in_mask
    assert LOW_IN_MASK < within.after < LIMITS.information.low < whole.after
    named = [sentences(replace(signs, before=1.0)) for signs in (whole, within)]
    assert not any("agreement" in found for found in named)
    other = replace(images[0], data=images[0].data.flip(2).roll(5, 3))
    assert "hardly agree" in said(shown(other, moving_mask=brain))["agreement"]
    assert not signs_of(given(0, mask=replace(FIXED, data=torch.ones_like(FIXED.data)))).in_mask


def test_a_small_cover_is_named():
    part = Image(MOVING.data[:, :, 36:].contiguous(), GRID.copy())
    part.affine[:3, 3] += 36 * part.affine[:3, 0]
    assert said(given(0, part))["covered"] == (
        "The moving image covers 44 % of the fixed image only."
    )
    chosen = replace(FIXED, data=torch.zeros(FIXED.data.shape, dtype=torch.uint8))
    chosen.data[:, :, 40:] = 1  # of what counts, all is covered
    assert "covered" not in said(given(0, part, mask=chosen))


def test_voxels_led_out_of_the_image_are_named():
    words = said(given(np.array([8, 0.0]).reshape(1, 2, 1, 1)))["led out"]
    assert "leads 12 % of the voxels out of the moving image" in words  # 8 of 64 rows
    assert "led out" not in said(given(np.array([4, 0.0]).reshape(1, 2, 1, 1)))


@pytest.mark.parametrize(("smallest", "named"), [(1.5e-3, True), (0.01, False), (-0.5, False)])
def test_the_line_searchs_floor_is_named(smallest, named):
    """One row of cells shrinks to that; where it is not positive, there is a fold instead."""
    u = torch.zeros(1, 2, *FIXED.shape)
    u[:, 0, 30:] = smallest - 1
    result = given(u)
    assert signs_of(result).smallest_determinant == pytest.approx(smallest, abs=1e-5)
    assert ("floor" in said(result)) == named


@pytest.mark.parametrize("degrees", [-15, 0, 22.5])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_second_start_finds_where_an_image_belongs(degrees, inverted):
    """Within a contrast and across: what is bright may be dark."""
    fixed = head("mni152_t1")
    moving = replace(fixed, data=fixed.data.max() - fixed.data if inverted else fixed.data)
    moving = moved(moving, degrees, (20, -12))
    place = second_start(prepare(moving, fixed))
    there = moved(fixed, degrees, (20, -12)).affine @ np.linalg.inv(fixed.affine)
    grid = identity_grid(fixed.shape, torch.float64)[0].flatten(1).numpy()
    world = fixed.affine @ np.vstack([grid, np.zeros_like(grid[:1]), np.ones_like(grid[:1])])
    expected = (np.linalg.solve(fixed.affine, there @ world)[:2] - grid).reshape(2, *fixed.shape)
    apart = displacement_of(place, fixed)[0].numpy() - expected
    assert np.linalg.norm(apart, axis=0).mean() < 3  # voxels, which is what its grid has
    assert place.score - place.as_given > 0.3


def test_a_second_start_stays_in_the_masks():
    """Two squares, of which the mask chooses the one that did not move."""
    square = torch.zeros(1, 1, 48, 64)
    square[..., 10:22, 8:20] = 1
    fixed, moving = square.clone(), square.clone()
    fixed[..., 20:40, 38:58] = 3
    moving[..., 26:46, 38:58] = 3
    images = [Image(data, np.eye(4)) for data in (moving, fixed)]
    mask = Image((torch.arange(64) < 30).to(torch.uint8).expand(1, 1, 48, 64), np.eye(4))
    assert second_start(prepare(*images)).shift == (6.0, 0.0)
    assert second_start(prepare(*images, mask, None, mask)).shift == (0.0, 0.0)


@pytest.mark.parametrize("shape", [(1, 40), (12, 40), (16, 17)])
def test_small_images_are_judged_too(shape):
    data = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    image, brighter = Image(data, np.eye(4)), Image(data + 1, np.eye(4))
    assert warnings_of(given(0, image, brighter)) == []


def test_one_image_at_two_places_is_not_one():
    elsewhere = replace(FIXED, affine=FIXED.affine + np.eye(4)[:, 3:] * [[0.0, 0, 0, 1]])
    assert not any("one image" in said for said in warnings_of(given(0, elsewhere, FIXED)))


def test_warnings_are_always_in_the_file(tmp_path):
    brighter = replace(FIXED, data=FIXED.data + 1)
    result = given(0, brighter)
    result = replace(result, metrics=register(brighter, FIXED, levels=1, iterations=1).metrics)
    del result.metrics["warnings"]
    write_registration(result, tmp_path, report=False)
    assert json.loads((tmp_path / "metrics.json").read_text())["warnings"] == []


def test_warnings_that_a_result_has_stay():
    result = replace(given(0), metrics={"warnings": ["So it was."]})
    assert judged(result) is result
