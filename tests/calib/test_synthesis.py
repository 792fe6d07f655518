"""What every method has in common."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_cnn import tiny_cnn
from tiny_vit import ATTENTION, CLASSES, LAYERS, MEAN, SIZE, STD, VIEW, TinyViT, labelled_images, teacher, tiny_vit

from calib.alignment import batchnorm_alignment, token_alignment
from calib.fdda import FAST, PAPER, Fdda
from calib.generator import GeneratorConfig
from calib.noise import Noise
from calib.patch_similarity import PatchSimilarity, PatchSimilarityConfig
from calib.statistics import collect
from calib.synthesis import synthesize
from toolchain.errors import ModelError, UsageError


def short(config):
    return replace(config, steps=3, batch=4, generator=GeneratorConfig(8, (8, 8), 2, config.generator.contrast))


@pytest.fixture(scope="module")
def statistics():
    return collect(teacher(), VIEW, [labelled_images(10)])


METHODS = {
    "tokens": lambda s: Fdda(short(FAST), token_alignment(VIEW, s, torch.device("cpu"))),
    "tokens, paper": lambda s: Fdda(short(PAPER), token_alignment(VIEW, s, torch.device("cpu"))),
    "no statistics": lambda s: Fdda(short(FAST)),
    "patch similarity": lambda s: PatchSimilarity(PatchSimilarityConfig(steps=4, batch=4), ATTENTION),
    "noise": lambda s: Noise(),
}


@pytest.fixture(params=list(METHODS))
def method(request, statistics):
    return METHODS[request.param](statistics)


def chooses(method):
    """Whether images of one class may stand in for another's."""
    return isinstance(method, Fdda) and method.alignment is not None and method.config.candidates > 1


def test_images_labels_and_judgement(method):
    made = synthesize(method, teacher(), count=7, seed=0)
    assert made.images.shape == (7, SIZE, SIZE, 3)
    assert made.images.dtype == np.uint8
    if not isinstance(method, Noise):
        images_of_class = np.bincount(made.labels, minlength=CLASSES)
        assert images_of_class.sum() == 7
        if not chooses(method):
            assert sorted(images_of_class.tolist()) == [2, 2, 3]
        model = tiny_vit().eval()
        predicted = model(teacher(model).normalized(made.images)).argmax(1).numpy()
        assert made.agreement == pytest.approx((predicted == made.labels).mean())
    else:
        assert made.labels is None
        assert made.agreement is None
    assert list(made.deviation_ratio) == (list(LAYERS) if method.alignment else [])


def test_the_same_seed_gives_the_same_bytes_and_the_global_random_state_is_untouched(method):
    before = torch.get_rng_state()
    first = synthesize(method, teacher(), count=5, seed=0)
    torch.randn(3)
    torch.set_rng_state(before)
    second = synthesize(method, teacher(), count=5, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.images.tobytes() == second.images.tobytes()
    assert first.losses == second.losses
    assert synthesize(method, teacher(), count=5, seed=1).images.tobytes() != first.images.tobytes()


def test_the_teacher_is_left_as_it_was(method):
    model = tiny_vit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    synthesize(method, teacher(model), count=5, seed=0)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_progress_ends_where_it_should(method):
    calls = []
    synthesize(method, teacher(), count=5, seed=0, progress=lambda done, total, note="": calls.append((done, total)))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1]


def test_no_images_asked_for(method):
    with pytest.raises(UsageError, match="count is 0"):
        synthesize(method, teacher(), count=0, seed=0)


def test_noise_is_standard_normal_where_pixels_can_be():
    made = synthesize(Noise(), teacher(), count=60, seed=0)
    pixels = made.images.reshape(-1, 3) / 255
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        # Clipping leaves the median alone, and the quartiles at 0.6745 deviations.
        low, middle, high = np.quantile(pixels[:, channel], [0.25, 0.5, 0.75])
        assert middle == pytest.approx(mean, abs=0.01)
        assert (high - low) / 2 == pytest.approx(0.6745 * std, abs=0.01)
    assert made.missing == ("noise: neither network nor statistics have a part in these images",)


def test_statistics_of_another_network_are_refused(statistics):
    with pytest.raises(ModelError, match="know 3 classes, the model 5"):
        synthesize(METHODS["tokens"](statistics), teacher(TinyViT(classes=5), 5), count=2, seed=0)
    with pytest.raises(ModelError, match=r"'blocks\.0\.norm1' have 8 channels, the model has 12"):
        synthesize(METHODS["tokens"](statistics), teacher(TinyViT(dim=12)), count=2, seed=0)


def test_a_guide_is_a_teacher_like_any_other():
    model = tiny_cnn()
    made = synthesize(
        Fdda(short(PAPER), batchnorm_alignment(model, None, relative=False)), teacher(model), count=4, seed=0
    )
    assert set(made.losses) == {"total", "random_class", "single_class", "bns"}
    assert list(made.deviation_ratio) == ["bn1", "bn2", "bn3"]
    assert made.missing == ("no calibration statistics: L_D and L_C were left out, L_BNS and cross-entropy remain",)
