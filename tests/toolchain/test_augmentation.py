"""Random views: decided by their seed, of the right size, and doing what the recipe names."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from toolchain.data.dataset import Sample
from toolchain.preprocessing import Preprocessing
from toolchain.training.augmentation import AugmentedSource, Augmenter, uncropped
from toolchain.training.batches import ImageBatches
from toolchain.training.mixing import CutMix
from toolchain.training.recipes import Augmentation
from toolchain.training.sources import Wanted

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW = Preprocessing(32, 36, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
NOTHING = Augmentation(crop=(1.0, 1.0), operations=0, jitter=0.0, erasing=0.0)
PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def view(
    augmentation: Augmentation, seed: int = 0, flipped: bool = False, picture: np.ndarray = PICTURE
) -> torch.Tensor:
    return Augmenter(augmentation, WINDOW)(picture, flipped, seed)


def plain(picture: np.ndarray = PICTURE) -> torch.Tensor:
    return torch.from_numpy(WINDOW.normalize(picture[None])[0])


def levels(shown: torch.Tensor) -> torch.Tensor:
    """Back to [0, 1]."""
    return shown * torch.tensor(WINDOW.std).view(3, 1, 1) + torch.tensor(WINDOW.mean).view(3, 1, 1)


@pytest.mark.parametrize("flipped", [False, True])
def test_with_nothing_to_do_a_view_is_the_image(flipped):
    expected = plain().flip(-1) if flipped else plain()
    torch.testing.assert_close(view(NOTHING, flipped=flipped), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "augmentation",
    [
        replace(NOTHING, crop=(0.08, 1.0)),
        replace(NOTHING, operations=2),
        replace(NOTHING, jitter=0.4),
        replace(NOTHING, erasing=1.0),
    ],
)
def test_the_seed_decides_the_view_and_another_seed_gives_another(augmentation):
    assert torch.equal(view(augmentation, 3), view(augmentation, 3))
    assert any(not torch.equal(view(augmentation, 3), view(augmentation, seed)) for seed in range(4, 8))


def test_torch_s_own_random_numbers_stay_as_they_are():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    view(Augmentation())
    assert torch.equal(torch.rand(3), expected)


def test_a_crop_keeps_area_and_aspect_within_bounds():
    height, width = 60, 90
    rows, columns = np.mgrid[:height, :width]
    # Red says where across, green where down: the spread of both is the size of the crop.
    picture = np.stack([columns * 255 / width, rows * 255 / height, rows * 0], -1).astype(np.uint8)
    for seed in range(12):
        red, green, _ = levels(view(replace(NOTHING, crop=(0.25, 0.5)), seed, picture=picture)).amax((1, 2))
        low_red, low_green, _ = levels(view(replace(NOTHING, crop=(0.25, 0.5)), seed, picture=picture)).amin((1, 2))
        across, down = float(red - low_red) * width, float(green - low_green) * height
        assert 0.2 < across * down / (width * height) < 0.55
        assert 0.65 < across / down < 1.5


def test_jitter_keeps_the_range_and_erasing_leaves_the_mean_colour():
    assert (
        0 <= levels(view(replace(NOTHING, jitter=0.4))).min() <= levels(view(replace(NOTHING, jitter=0.4))).max() <= 1
    )
    erased = view(replace(NOTHING, erasing=1.0))
    gone = (erased == 0).all(0)
    assert 0.02 < float(gone.float().mean()) < 0.34
    assert torch.equal(erased[:, ~gone], view(NOTHING)[:, ~gone])


def test_the_share_of_erased_images_is_that_of_the_recipe():
    erased = sum(bool((view(replace(NOTHING, erasing=0.25), seed) == 0).all(0).any()) for seed in range(200))
    # Binomial with mean 50: five standard deviations are 31.
    assert 19 < erased < 81


def test_randaugment_works_at_nine_tenths_of_each_operation_s_range():
    # Solarize_add shifts levels under one half by m times 0.43: 9 of 10 is 0.387.
    augmenter = Augmenter(replace(NOTHING, operations=1, magnitude_std=0.0), WINDOW)
    dark = np.full((32, 32, 3), 26, np.uint8)
    shown = {round(float(levels(augmenter(dark, False, seed)).mean()), 2) for seed in range(150)}
    assert round(26 / 255 + 0.9 * 0.43, 2) in shown


class Squares:
    """Four images of different sizes, each of one grey."""

    class_names = ("a", "b")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.full((20 + index, 30, 3), 60 * index, np.uint8), index % 2, (), str(index))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_loads_what_is_wanted_however_many_work_on_it(workers):
    source = AugmentedSource(Squares(), replace(NOTHING, crop=(0.5, 1.0)), WINDOW, workers)
    rows = torch.tensor([2, 0, 3])
    wanted = Wanted(rows, torch.tensor([True, False, True]), torch.tensor([1, 2, 3]))
    ((images, labels),) = source.load([wanted])
    assert labels.tolist() == [0, 0, 1]
    assert [round(float(levels(i).mean() * 255)) for i in images] == [120, 0, 180]


def test_batches_show_another_view_of_an_image_in_each_epoch():
    source = AugmentedSource(Squares(), Augmentation(operations=0), WINDOW)
    batches = ImageBatches(source, 4, CutMix(0), 2, 2)
    first, second = (next(batches.epoch(torch.Generator().manual_seed(seed))).inputs for seed in (0, 1))
    assert not torch.equal(first.sort(0).values, second.sort(0).values)
    (again,) = batches.epoch(torch.Generator().manual_seed(0))
    assert torch.equal(again.inputs, first)


def test_whole_images_keep_size_and_box():
    from PIL import Image

    window = uncropped(WINDOW)
    assert window.crop(Image.new("RGB", (50, 40))).shape == (40, 50, 3)
    assert window.crop_box((1, 2, 3, 4), (50, 40)) == (1, 2, 3, 4)
    assert window.mean == WINDOW.mean
