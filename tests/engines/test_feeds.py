"""Arrays for a model of which nothing but type and shape is known."""

import numpy as np
import pytest

from engines.backend import Input
from engines.feeds import check_arrays, random_feeds
from toolchain.errors import BackendError, UsageError

IMAGE = Input("image", np.dtype(np.float16), ("batch", 3, 4, 4))
MASK = Input("mask", np.dtype(np.bool_), ("any", 4))
COUNT = Input("count", np.dtype(np.int64), ())


def test_they_are_what_the_session_takes() -> None:
    feeds = random_feeds([IMAGE, MASK, COUNT], 5, 0, "a model")
    check_arrays(feeds, [IMAGE, MASK, COUNT], "a model")
    assert feeds["image"].shape == (5, 3, 4, 4)
    assert feeds["image"].std() > 0.5
    assert set(feeds["mask"].ravel()) == {False, True}


def test_a_seed_gives_the_same_numbers_and_another_one_others() -> None:
    one, same, other = (random_feeds([IMAGE], 2, seed, "a model")["image"] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\[4, 3\]: give --batch 4"):
        random_feeds([Input("x", np.dtype(np.float32), (4, 3))], 1, 0, "a model")
    with pytest.raises(UsageError, match="its batch alone dynamic"):
        random_feeds([Input("x", np.dtype(np.float32), ("batch", "height"))], 1, 0, "a model")
    with pytest.raises(BackendError, match="Nothing says what a model takes"):
        random_feeds([], 1, 0, "a model")
