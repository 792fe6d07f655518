"""How much the full study measures, the quick one and the least that runs.

Seconds are unit costs on two idle cores (Intel Xeon with AMX), for the estimate alone.
"""

from photographs import Photographs

from study.arms import GUIDE, PSAQ, TOKEN
from study.plan import (
    BUNDLED_NAME,
    PHOTOGRAPHS,
    BatchNormPlan,
    FineTuningPlan,
    LocalizerPlan,
    Plan,
    SpeedPlan,
    Synthesis,
)
from study.widths import W6A6, W8A6, W8A8
from toolchain.pipeline import BUNDLED

SHAPES = "shapes"


def full(photos: Photographs) -> Plan:
    """Five seeds, and two of EfficientNet-Lite0, which hardly differ; on photographs less than the presets have."""
    bundled = LocalizerPlan(
        BUNDLED_NAME,
        BUNDLED,
        SHAPES,
        test_images=1600,
        images=128,
        seeds=5,
        routes={
            PSAQ: Synthesis(count=64, steps=60, step_seconds=0.9),
            GUIDE: Synthesis(count=256, steps=150, step_seconds=0.15),
            TOKEN: Synthesis(count=256, steps=150, step_seconds=0.25),
        },
        guide_epochs=6,
        calibration_seconds=0.02,
        evaluation_seconds=0.004,
        widths=(W8A8, W8A6, W6A6),
    )
    photographs = LocalizerPlan(
        PHOTOGRAPHS,
        photos.localizer,
        photos.data,
        test_images=150,
        images=32,
        seeds=5,
        routes={
            PSAQ: Synthesis(count=16, steps=30, step_seconds=2.0),
            GUIDE: Synthesis(count=64, steps=80, step_seconds=1.0),
            TOKEN: Synthesis(count=64, steps=150, step_seconds=1.25),
        },
        deciding_images=800,
        guide_epochs=5,
        guide_seconds=350,
        calibration_seconds=0.22,
        evaluation_seconds=0.05,
        widths=(W8A8, W8A6, W6A6),
    )
    return Plan(
        (bundled, photographs),
        BatchNormPlan(
            seeds=2,
            synthesis=Synthesis(count=64, steps=150, step_seconds=2.6),
            images=64,
            test_images=300,
            evaluation_seconds=0.03,
        ),
        FineTuningPlan(
            train_images=8000,
            train_epochs=8,
            test_images=2400,
            validation_images=2400,
            seeds=5,
            synthesis=Synthesis(count=512, steps=100, step_seconds=0.2),
            epochs=5,
            learning_rates=(1e-6, 1e-5),
            choosing_seeds=2,
            train_seconds=160,
            epoch_seconds=3.5,
        ),
        SpeedPlan(count=256, steps=150, seconds=30),
    )


def quick() -> Plan:
    """Two seeds of the bundled localizer and of the network that is trained here."""
    bundled = LocalizerPlan(
        BUNDLED_NAME,
        BUNDLED,
        SHAPES,
        test_images=600,
        images=64,
        seeds=2,
        routes={
            PSAQ: Synthesis(count=32, steps=40, step_seconds=0.35),
            GUIDE: Synthesis(count=64, steps=60, step_seconds=0.2),
            TOKEN: Synthesis(count=64, steps=60, step_seconds=0.36),
        },
        guide_epochs=1,
        calibration_seconds=0.02,
        evaluation_seconds=0.003,
        widths=(W8A8, W6A6),
    )
    tuning = FineTuningPlan(
        train_images=4000,
        train_epochs=6,
        test_images=600,
        validation_images=300,
        seeds=2,
        synthesis=Synthesis(count=256, steps=50, step_seconds=0.15),
        epochs=4,
        learning_rates=(1e-6, 1e-5),
        train_seconds=40,
        epoch_seconds=1.3,
    )
    return Plan((bundled,), None, tuning, SpeedPlan(count=64, steps=50, seconds=10))


def least() -> Plan:
    """One seed of a few images: whether the study runs."""
    route = Synthesis(count=12, steps=2)
    bundled = LocalizerPlan(
        BUNDLED_NAME,
        BUNDLED,
        SHAPES,
        test_images=12,
        images=12,
        seeds=1,
        routes=dict.fromkeys((PSAQ, GUIDE, TOKEN), route),
        deciding_images=24,
        guide_epochs=1,
        guide_images=120,
        widths=(W8A8, W6A6),
    )
    tuning = FineTuningPlan(
        train_images=120,
        train_epochs=1,
        test_images=12,
        validation_images=12,
        seeds=1,
        synthesis=Synthesis(count=16, steps=2),
        epochs=1,
        learning_rates=(1e-4,),
    )
    return Plan((bundled,), None, tuning, SpeedPlan(count=4, steps=1))
