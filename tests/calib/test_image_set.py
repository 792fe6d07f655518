import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from calib import image_set
from calib.synthesis import SyntheticImages
from toolchain.artifacts import sidecar_of
from toolchain.errors import ArtifactError, DataError, UsageError

NAMES = ("cross", "black/white")


def synthetic():
    random = np.random.default_rng(0)
    return SyntheticImages(
        images=random.integers(0, 256, (5, 8, 8, 3), np.uint8),
        labels=np.array([0, 1, 0, 1, 0]),
        losses={"total": (3.0, 2.0, 1.0), "distorted": (5.0, 4.0, 0.0)},
        agreement=0.8,
        deviation_ratio={"norm": 0.9},
        missing=(),
    )


def squashed(image):
    return np.asarray(image.resize((4, 4)))


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "synthetic"
    return path, image_set.write(synthetic(), path, NAMES, parameters={"count": 5, "seed": 3})


def test_round_trip_is_exact_and_uncropped(made):
    path, _ = made
    assert np.array_equal(image_set.read(path, 8, squashed), synthetic().images)


def test_the_folder_holds_images_only_and_what_is_about_them_stands_beside(made):
    path, _ = made
    assert [f.name for f in sorted(path.iterdir())] == [
        "0000_cross.png",
        "0001_black_white.png",
        "0002_cross.png",
        "0003_black_white.png",
        "0004_cross.png",
    ]
    beside = {f.name for f in path.parent.iterdir()}
    assert beside == {"synthetic", "synthetic.json", "synthetic.preview.png", "synthetic.losses.png"}
    with Image.open(image_set.preview_of(path)) as preview:
        assert preview.size == (3 * 8, 2 * 8)
    with Image.open(image_set.losses_plot_of(path)) as plot:
        assert plot.width > 500


def test_the_sidecar_says_where_the_images_come_from(made):
    path, artifact = made
    record = json.loads(sidecar_of(path).read_text())
    assert record["kind"] == "synthetic"
    assert record["parameters"] == {"count": 5, "seed": 3}
    assert record["metadata"] == {
        "labels": [0, 1, 0, 1, 0],
        "class_names": ["cross", "black/white"],
        "final_losses": {"total": 2.0, "distorted": 3.0},
        "agreement": 0.8,
        "deviation_ratio": {"norm": 0.9},
        "missing": [],
    }
    assert artifact.sha256 == record["sha256"]


def test_images_of_no_class_and_no_training(made):
    path, _ = made
    unlabelled = replace(synthetic(), labels=None, losses={}, agreement=None)
    artifact = image_set.write(unlabelled, path, NAMES)
    assert [f.name for f in sorted(path.iterdir())] == [f"000{index}.png" for index in range(5)]
    assert artifact.metadata["labels"] is None
    assert artifact.metadata["agreement"] is None
    # The plot of the set that stood here before would be taken for this one's.
    assert not image_set.losses_plot_of(path).exists()


def test_the_same_images_are_the_same_artifact(made, tmp_path):
    again = image_set.write(synthetic(), tmp_path / "again", NAMES)
    assert again.sha256 == made[1].sha256


def test_a_changed_set_is_refused(made):
    path, _ = made
    Image.new("RGB", (8, 8)).save(path / "0002_cross.png")
    with pytest.raises(ArtifactError, match="sha256 differs"):
        image_set.read(path, 8, squashed)


def test_a_set_for_another_network_is_refused(made):
    path, _ = made
    with pytest.raises(DataError, match="holds images of 8 x 8 pixels and the network takes 16 x 16: synthesize them"):
        image_set.read(path, 16, squashed)


def test_any_folder_is_read_and_cropped(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").mkdir()
    Image.new("RGB", (20, 30), (255, 0, 0)).save(tmp_path / "b" / "1.JPEG")
    Image.new("L", (9, 9), 7).save(tmp_path / "a" / "2.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    images = image_set.read(tmp_path, 4, squashed)
    assert images.shape == (2, 4, 4, 3)
    assert images[0, 0, 0].tolist() == [7, 7, 7]
    assert images[1, 0, 0, 0] > 250


def test_a_limit_takes_images_from_everywhere(tmp_path):
    for value in range(10):
        Image.new("L", (4, 4), value).save(tmp_path / f"{value}.png")
    assert image_set.read(tmp_path, 4, squashed, limit=3)[:, 0, 0, 0].tolist() == [0, 3, 6]
    assert len(image_set.read(tmp_path, 4, squashed, limit=30)) == 10
    with pytest.raises(UsageError, match="limit is 0"):
        image_set.read(tmp_path, 4, squashed, limit=0)


def test_every_bad_image_is_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "short.png").write_bytes((tmp_path / "good.png").read_bytes()[:45])
    with pytest.raises(DataError, match="2 of 3 images cannot be read") as caught:
        image_set.read(tmp_path, 4, squashed)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        str(tmp_path / "short.png"),
        str(tmp_path / "text.png"),
    ]


def test_a_stream_decodes_one_image_at_a_time(tmp_path):
    for value in range(3):
        Image.new("L", (4, 4), value).save(tmp_path / f"{value}.png")
    decoded = []

    def crop(image):
        decoded.append(image.getpixel((0, 0))[0])
        return squashed(image)

    stream = image_set.stream(tmp_path, 4, crop)
    assert [next(stream)[0, 0, 0], next(stream)[0, 0, 0]] == decoded == [0, 1]


def test_a_stream_ends_with_every_bad_image(tmp_path):
    for name in "ac":
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    for name in "bd":
        (tmp_path / f"{name}.png").write_text("no image")
    stream = image_set.stream(tmp_path, 4, squashed)
    next(stream)
    with pytest.raises(DataError, match="2 of 4 images cannot be read") as caught:
        next(stream)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("batch", [1, 3, 8, 20])
def test_noise_is_the_same_in_any_batches(batch):
    parts = list(image_set.noise_batches(8, 5, 1, batch))
    assert np.array_equal(np.concatenate(parts), image_set.noise(8, 5, 1))
    assert max(map(len, parts)) == min(batch, 8)


def test_no_images_and_no_folder(tmp_path):
    with pytest.raises(DataError, match="holds no image"):
        image_set.read(tmp_path, 4, squashed)
    with pytest.raises(DataError, match="is no folder"):
        image_set.read(tmp_path / "absent", 4, squashed)


def test_noise_is_standard_normal_and_repeats_with_the_seed():
    images = image_set.noise(8, 32, seed=1)
    assert images.shape == (8, 3, 32, 32)
    assert images.dtype == np.float32
    assert abs(images.mean()) < 0.02
    assert abs(images.std() - 1) < 0.02
    assert np.array_equal(images, image_set.noise(8, 32, seed=1))
    assert not np.array_equal(images, image_set.noise(8, 32, seed=2))


def test_grid_fills_up_with_white():
    sheet = image_set.grid(np.zeros((3, 2, 2, 3), np.uint8))
    assert sheet.shape == (4, 4, 3)
    assert sheet[2:, 2:].min() == 255
    assert sheet[:2].max() == 0


def test_matplotlib_is_imported_only_to_plot():
    code = "import sys, calib.image_set; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
