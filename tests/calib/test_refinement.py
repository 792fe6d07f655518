import numpy as np
import pytest
import torch
from tiny_vit import SIZE, teacher

from calib.descent import descended
from calib.refinement import Refinement, refined
from toolchain.errors import TrainingError, UsageError


def grey(count):
    return np.full((count, SIZE, SIZE, 3), 128, np.uint8)


def brightness(images, labels):
    """Up for label 1, down for label 0, each image by itself."""
    sign = torch.where(labels == 1, -1.0, 1.0)
    return {"brightness": (sign * images.mean((1, 2, 3))).sum()}


def run(images, labels, terms=brightness, progress=lambda *_: None, **changes):
    config = Refinement(**{"steps": 2, "learning_rate": 0.1, "batch": 4, **changes})
    random = torch.Generator().manual_seed(0)
    return refined(images, np.asarray(labels), config, terms=terms, teacher=teacher(), random=random, progress=progress)


def test_each_image_follows_the_loss_of_its_label():
    labels = [0, 1, 1, 0, 1, 0]
    found = run(grey(6), labels)
    # Adam's first steps are as long as the learning rate, whatever the gradient: 2 x 0.1 deviations.
    known = teacher()
    before, after = known.normalized(grey(6)), known.normalized(found)
    moved = (after - before).mean((1, 2, 3))
    level = max(1 / 255 / std for std in known.std)
    assert moved.tolist() == pytest.approx([0.2 if label else -0.2 for label in labels], abs=level)


def test_what_was_given_is_left_as_it_was():
    images = grey(4)
    run(images, [1] * 4)
    assert (images == 128).all()


@pytest.mark.parametrize(("most", "changed"), [(1, 1), (3, 3), (5, 5), (9, 7)])
def test_so_many_at_most(most, changed):
    found = run(grey(7), [1] * 7, most=most)
    assert (found != 128).any((1, 2, 3)).sum() == changed


def test_progress_counts_the_steps_of_all_batches():
    told = []
    run(grey(7), [0] * 7, progress=lambda done, total, note="": told.append((done, total)), most=6)
    # Two batches, of 4 and of 2 images.
    assert told == [(step, 4) for step in range(1, 5)]
    assert Refinement(2, 0.1, most=6, batch=4).steps_for(7) == 4


def test_pixels_end_at_black_and_white():
    found = run(grey(2), [0, 1], steps=60, learning_rate=1.0)
    assert {*np.unique(found[0])} == {0}
    assert {*np.unique(found[1])} == {255}


@pytest.mark.parametrize("name", ["steps", "most", "batch"])
def test_impossible_configurations(name):
    with pytest.raises(UsageError, match=f"{name} of the refinement is 0: give at least 1"):
        Refinement(**{"steps": 1, "learning_rate": 0.1, name: 0})


def test_a_loss_that_is_no_number_is_an_error():
    with pytest.raises(TrainingError, match="the loss is nan at step 1: lower the learning rate"):
        run(grey(2), [0, 1], terms=lambda images, _: {"broken": images.sum() * torch.nan})


def test_a_descent_takes_each_rate_and_tells_each_term():
    start = torch.zeros(1, 3, SIZE, SIZE)
    places = []

    def terms(step, images):
        places.append((step, float(images.detach().mean())))
        return {"up": -images.mean(), "double": -2 * images.mean()}

    end, curve = descended(
        start, terms, rates=[0.1, 0.05], betas=(0.5, 0.9), teacher=teacher(), progress=lambda *_: None
    )
    # Adam under an unchanging gradient: every step is as long as its rate.
    assert [step for step, _ in places] == [0, 1]
    assert [place for _, place in places] == pytest.approx([0, 0.1], abs=1e-4)
    assert float(end.mean()) == pytest.approx(0.15, abs=1e-4)
    assert start.abs().sum() == 0
    assert set(curve) == {"total", "up", "double"}
    assert curve["total"] == pytest.approx([0, -0.3], abs=1e-3)
