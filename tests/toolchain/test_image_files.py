from pathlib import Path

from PIL import Image

from toolchain.data.image_files import BLOCK, contents_of, missing_files, read_headers


def test_headers_of_many_files_are_each_of_their_own_file(tmp_path: Path):
    # More than one thread's task, and each image as wide as its number.
    for number in range(1, BLOCK + 20):
        Image.new("1", (number, 2)).save(tmp_path / f"{number}.png")
    (tmp_path / "7.png").write_bytes(b"no image")
    (tmp_path / "9.png").unlink()
    headers = read_headers(tmp_path, [f"{number}.png" for number in range(1, BLOCK + 20)])
    assert headers.sizes == {f"{n}.png": (n, 2) for n in range(1, BLOCK + 20) if n not in (7, 9)}
    assert headers.faults.keys() == {"7.png", "9.png"}
    assert headers.faults["9.png"] == "is missing"


def test_no_files_have_no_headers(tmp_path: Path):
    headers = read_headers(tmp_path, [])
    assert (headers.sizes, headers.faults) == ({}, {})


def test_of_a_missing_folder_the_uppermost_is_told(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").touch()
    (tmp_path / "0.png").touch()
    missing = missing_files(tmp_path, ["0.png", "9.png", "a/1.png", "a/2.png", "b/c/3.png", "b/d/4.png", "a/e/5.png"])
    assert missing.files == {"9.png", "a/2.png"}
    assert missing.folders == {"b": 2, "a/e": 1}


def test_links_count_as_what_they_lead_to(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "folder")
    (tmp_path / "a.png").touch()
    (tmp_path / ".hidden").touch()
    found = contents_of(tmp_path)
    assert (found.folders, found.files) == (("b", "folder"), ("a.png",))
