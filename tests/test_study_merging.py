"""Parts of the calibration study that were measured at different times make one record."""

from study.merging import completed

EARLIER = {
    "localizers": [{"name": "bundled", "runs": ["old"]}, {"name": "photographs", "runs": ["old"]}],
    "batchnorm": {"name": "EfficientNet-Lite0"},
    "speed": [
        {"network": "bundled", "method": "token-FDDA", "seconds": 40.0},
        {"network": "guide-nano", "method": "guide-FDDA", "seconds": 20.0},
    ],
    "code": {"bundled": "a", "photographs": "a", "batchnorm": "a"},
}


def test_what_is_measured_now_takes_the_place_of_what_was() -> None:
    now = {
        "localizers": [{"name": "photographs", "runs": ["new"]}],
        "speed": [{"network": "bundled", "method": "token-FDDA", "seconds": 30.0}],
        "code": {"photographs": "b"},
    }
    record = completed(now, EARLIER)
    assert record["localizers"] == [{"name": "bundled", "runs": ["old"]}, {"name": "photographs", "runs": ["new"]}]
    assert record["batchnorm"] == {"name": "EfficientNet-Lite0"}
    assert {row["network"]: row["seconds"] for row in record["speed"]} == {"bundled": 30.0, "guide-nano": 20.0}
    assert record["code"] == {"bundled": "a", "photographs": "b", "batchnorm": "a"}


def test_without_an_earlier_record_nothing_is_added() -> None:
    record = completed({"localizers": [], "fine-tuning": {"name": "ResNet-20"}, "code": {"fine-tuning": "b"}}, {})
    assert record == {"localizers": [], "fine-tuning": {"name": "ResNet-20"}, "code": {"fine-tuning": "b"}}
