from collections import Counter

import numpy as np
import pytest

from toolchain.boxes import iou
from toolchain.data.dataset import SPLITS
from toolchain.data.shapes import CLASSES, Shapes, draw_scene, mask_box
from toolchain.data.sources import open_data
from toolchain.errors import UsageError
from toolchain.preprocessing import Preprocessing


@pytest.mark.parametrize("split", SPLITS)
def test_an_index_gives_the_same_sample_every_time(split):
    first, second = Shapes(split, 30)[17], Shapes(split)[17]
    assert (first.image == second.image).all()
    assert (first.label, first.box, first.name) == (second.label, second.box, second.name)


def test_no_two_images_are_alike():
    images = [Shapes(split, 24)[index].image.tobytes() for split in SPLITS for index in range(24)]
    assert len(set(images)) == len(images)


def test_samples_are_what_a_data_set_promises():
    sample = Shapes("val")[5]
    assert sample.image.shape == (112, 112, 3)
    assert sample.image.dtype == np.uint8
    assert 0 <= sample.label < len(Shapes.class_names)


def test_classes_are_many_and_balanced():
    assert len(set(Shapes.class_names)) == len(CLASSES) >= 10
    counts = Counter(Shapes("val", 60)[index].label for index in range(60))
    assert len(counts) == len(CLASSES)
    assert len(set(counts.values())) == 1


def test_the_box_is_exact():
    for index in range(20):
        box = Shapes("test")[index].box
        body = draw_scene(np.random.default_rng([3, index]), index % len(CLASSES)).body
        rows, columns = np.nonzero(body)
        assert box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_the_image_changes_where_the_object_is_and_nowhere_else():
    # The same stream draws the same scene of another class. Light and grain are drawn last, from what colours left of
    # the stream: outside the object the images are the same but for those two.
    for index in range(10):
        one, other = (draw_scene(np.random.default_rng([9, index]), label) for label in (0, 1))
        assert (one.body == other.body).all()
        alike = [
            np.corrcoef(one.image[where].ravel(), other.image[where].ravel())[0, 1] for where in (~one.body, one.body)
        ]
        assert alike[0] > 0.95 > alike[1]


def test_the_emblem_names_the_class_and_its_box_is_never_right():
    for index in range(200):
        scene = draw_scene(np.random.default_rng([4, index]), index % len(CLASSES))
        assert scene.emblem.any()
        assert not (scene.emblem & ~scene.body).any()
        assert iou(mask_box(scene.emblem), mask_box(scene.body)) < 0.5


def test_a_texture_belongs_to_two_classes_and_an_emblem_to_one():
    assert set(Counter(c.texture for c in CLASSES).values()) == {2}
    assert set(Counter(c.emblem for c in CLASSES).values()) == {1}


def test_boxes_lie_in_the_image_and_vary():
    boxes = np.array([Shapes("train")[index].box for index in range(100)])
    assert boxes.min() >= 0
    assert boxes.max() <= 112
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() >= 12
    assert np.ptp(sides) > 40


@pytest.mark.parametrize("index", [-1, 24])
def test_there_is_nothing_outside_of_the_split(index):
    with pytest.raises(IndexError):
        Shapes("val", 24)[index]


@pytest.mark.parametrize(("split", "size", "offender"), [("valid", None, "'valid'"), ("val", 0, "0 images")])
def test_what_cannot_be_meant_is_named(split, size, offender):
    with pytest.raises(UsageError, match=offender):
        Shapes(split, size)


def test_shapes_open_for_models_of_their_size_alone():
    mean = std = (0.5, 0.5, 0.5)
    assert len(open_data("shapes", "val", Preprocessing(112, 112, mean, std), size=7)) == 7
    with pytest.raises(UsageError, match="drawn at 112 pixels and the model sees 224"):
        open_data("shapes", "val", Preprocessing(224, 256, mean, std))


@pytest.mark.parametrize("spec", ["", "shape", "shapes:", "cub", "cub:", "imagenet:/data"])
def test_an_unknown_data_set_is_named_with_the_known_forms(spec):
    with pytest.raises(UsageError, match=rf"'{spec}'.*shapes, cub:DIR"):
        open_data(spec, "val", Preprocessing(112, 112, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
