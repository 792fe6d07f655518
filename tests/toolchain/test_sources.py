import pytest
from data_folders import PREPROCESSING

from toolchain.data import shapes
from toolchain.data.shapes import Shapes
from toolchain.data.sources import files_of, open_data, preprocessing_for
from toolchain.errors import DataError, UsageError
from toolchain.preprocessing import Preprocessing

FORMS = "shapes, cub:DIR, ilsvrc:DIR, wsol:METADATA_DIR:IMAGES_DIR, folder:DIR"


@pytest.mark.parametrize(
    "spec",
    ["", "shape", "shapes:x", "cub", "cub:", "ilsvrc:", "wsol", "wsol:meta", "wsol:meta:", "wsol::images", "a:b"],
)
def test_an_unknown_data_set_is_answered_with_all_forms(spec):
    for look in (lambda: open_data(spec, "test", PREPROCESSING), lambda: files_of(spec, PREPROCESSING)):
        with pytest.raises(UsageError) as caught:
            look()
        assert str(caught.value) == f"unknown data set '{spec}': use one of {FORMS}."


@pytest.mark.parametrize(
    ("spec", "missing"),
    [
        ("cub:/no/birds", "/no/birds"),
        ("ilsvrc:/no/net", "/no/net"),
        ("wsol:/no/meta:/no/images", "/no/meta"),
        ("folder:/no:where", "/no:where"),
    ],
)
def test_a_folder_that_is_not_there_is_named(spec, missing):
    for look in (lambda: open_data(spec, "test", PREPROCESSING), lambda: files_of(spec, PREPROCESSING)):
        with pytest.raises(DataError, match=f"^{missing} is no folder: name the folder"):
            look()


def test_the_home_folder_is_found_behind_a_colon(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=f"^{tmp_path}/birds is no folder"):
        files_of("cub:~/birds", PREPROCESSING)
    with pytest.raises(UsageError, match=r"^~nobody-of-this-name/birds begins with the home of nobody"):
        files_of("cub:~nobody-of-this-name/birds", PREPROCESSING)


def test_shapes_are_drawn_and_need_no_files():
    assert isinstance(open_data("shapes", "val", shapes.PREPROCESSING, 3), Shapes)
    assert files_of("shapes", shapes.PREPROCESSING) == {}
    for look in (lambda: open_data("shapes", "val", PREPROCESSING), lambda: files_of("shapes", PREPROCESSING)):
        with pytest.raises(UsageError, match="drawn at 112 pixels and the model sees 16"):
            look()


@pytest.mark.parametrize("spec", ["cub:a", "ilsvrc:a", "wsol:a:b", "folder:a"])
def test_a_model_of_photographs_sees_seven_eighths_of_the_short_side(spec):
    assert preprocessing_for(spec, 224) == Preprocessing(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert preprocessing_for("shapes", 112) == shapes.PREPROCESSING
