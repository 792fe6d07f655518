"""`lctr import`: checkpoints in the layouts that others write, through the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden
import layouts
import numpy as np
import pytest
import torch
from deployment import lctr, refused
from safetensors.torch import load_file

from toolchain.card import ModelCard
from toolchain.model import checkpoint
from toolchain.model.lctr import Lctr
from toolchain.model.presets import PRESETS
from toolchain.preprocessing import Preprocessing

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(autouse=True)
def mini(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, layouts.MINI.name, layouts.MINI)


def written(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "c.pth")
    return folder / "c.pth"


def told(*arguments: object) -> dict[str, Any]:
    done = lctr("import", *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize(("classes", "tau"), [(200, 0.09), (1000, 0.18)])
def test_the_release_becomes_a_localizer(classes: int, tau: float, tmp_path: Path) -> None:
    saved = layouts.lctr(classes)
    output = tmp_path / "m.safetensors"
    found = told(written(saved, tmp_path), "-o", output)
    # 6 + 2 x 12 parameters of the backbone, 8 of the head.
    assert found == {
        "path": str(output),
        "kind": "model",
        "reused": False,
        "found": "LCTR",
        "classes": classes,
        "preset": "lctr-mini",
        "tensors": 38,
        "parameters": sum(value.numel() for value in saved["model"].values()),
        "converted": [],
        "left_out": ["optimizer", "lr_scheduler", "epoch", "scaler", "args"],
        "missing": [],
        "tau": tau,
        "protocol": "lctr",
    }
    model, card = checkpoint.load(output)
    assert all(torch.equal(value, saved["model"][name]) for name, value in model.state_dict().items())
    names = tuple(f"class {index}" for index in range(classes))
    window = Preprocessing(32, 36, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert card == ModelCard("lctr-mini", names, window, tau, "lctr")


@pytest.mark.parametrize("classes", [200, 1000])
@pytest.mark.parametrize(
    ("layout", "kind", "beside"),
    [(layouts.deit, "DeiT", []), (layouts.ts_cam, "TS-CAM", ["epoch", "best_map"])],
)
def test_a_classifier_becomes_a_backbone(
    layout: Callable[[int], dict[str, Any]], kind: str, beside: list[str], classes: int, tmp_path: Path
) -> None:
    saved = layout(classes)
    output = tmp_path / "b.safetensors"
    found = told(written(saved, tmp_path), "-o", output)
    assert (found["kind"], found["found"], found["classes"], found["tensors"]) == ("backbone", kind, classes, 30)
    assert found["left_out"] == ["head.weight", "head.bias", *beside]
    assert found["missing"] == ["conv3x3.*", "CDM.*"]
    entries = {n.removeprefix("module."): v for n, v in (saved.get("model") or saved["state_dict"]).items()}
    taken = load_file(output)
    assert entries.keys() - taken.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(value, entries[name]) for name, value in taken.items())


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved["model"],
        lambda saved: {f"module.{name}": value for name, value in saved["model"].items()},
        lambda saved: {"state_dict": saved["model"]},
        lambda saved: {**saved, "model": {f"module.{name}": value for name, value in saved["model"].items()}},
        lambda saved: {"model": {name: torch.nn.Parameter(value) for name, value in saved["model"].items()}},
    ],
    ids=["bare", "parallel", "state_dict", "release-parallel", "parameters"],
)
def test_the_layout_around_the_weights_does_not_matter(change: Change, tmp_path: Path) -> None:
    saved = layouts.lctr(3)
    output = tmp_path / "m.safetensors"
    assert told(written(change(saved), tmp_path), "-o", output, "--tau", "0.2")["classes"] == 3
    model, card = checkpoint.load(output)
    assert card.tau == 0.2
    assert all(torch.equal(value, saved["model"][name]) for name, value in model.state_dict().items())


def test_a_legacy_file_and_a_backbone_without_head_are_taken(tmp_path: Path) -> None:
    saved = layouts.drawn(layouts.backbone_shapes())
    torch.save(saved, tmp_path / "old.tar", _use_new_zipfile_serialization=False)
    found = told(tmp_path / "old.tar", "-o", tmp_path / "b.safetensors")
    assert (found["found"], found["classes"], found["left_out"]) == ("vision transformer", None, [])
    assert load_file(tmp_path / "b.safetensors").keys() == saved.keys()


def test_views_of_one_buffer_are_taken(tmp_path: Path) -> None:
    shapes = layouts.backbone_shapes()
    buffer = torch.arange(float(max(np.prod(shape) for shape in shapes.values())))
    saved = {name: buffer[: int(np.prod(shape))].reshape(shape) for name, shape in shapes.items()}
    told(written(saved, tmp_path), "-o", tmp_path / "b.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in load_file(tmp_path / "b.safetensors").items())


def test_other_precisions_become_float32_and_it_is_said(tmp_path: Path) -> None:
    saved = layouts.lctr(3)["model"]
    half = {name: value.half() if "blocks" in name else value.double() for name, value in saved.items()}
    done = lctr("import", written(half, tmp_path), "-o", tmp_path / "m.safetensors", "--tau", "0.2")
    assert "parameters, converted to float32 from float16, float64." in done.stdout
    for name, value in load_file(tmp_path / "m.safetensors").items():
        assert value.dtype == torch.float32
        assert torch.equal(value, half[name].float()), name


@pytest.mark.parametrize(("name", "dim"), [("lctr-tiny", 192), pytest.param("lctr-small", 384, marks=pytest.mark.slow)])
def test_deit_is_told_from_its_size(name: str, dim: int, tmp_path: Path) -> None:
    shapes = layouts.backbone_shapes(dim, depth=12, patch=16, tokens=197) | {"head.weight": (1000, dim)}
    saved = {name: torch.zeros(shape) for name, shape in shapes.items()}
    found = told(written({"model": saved}, tmp_path), "-o", tmp_path / "b.safetensors")
    # DeiT-Ti and DeiT-S without their heads of 1000 x (D + 1): 5,717,416 - 193,000 and 22,050,664 - 385,000.
    assert (found["preset"], found["parameters"]) == (name, {192: 5_524_416, 384: 21_665_664}[dim])


@pytest.mark.slow
def test_the_ilsvrc_release_has_its_published_size(tmp_path: Path) -> None:
    shapes = layouts.lctr_shapes(1000, 384, depth=12, patch=16, tokens=197)
    saved = layouts.released({name: torch.zeros(shape) for name, shape in shapes.items()})
    found = told(written(saved, tmp_path), "-o", tmp_path / "m.safetensors")
    assert (found["preset"], found["parameters"], found["tau"]) == ("lctr-small", 36_821_232, 0.18)


def test_the_release_becomes_the_localizer_of_its_weights(tmp_path: Path) -> None:
    # Which computes what its authors' code does: test_golden.py.
    expected = golden.golden_model()
    weights = golden.weights(layouts.lctr_shapes(expected.num_classes, 384, depth=12, patch=16, tokens=197))
    found = told(written(layouts.released(weights), tmp_path), "-o", tmp_path / "m.safetensors")
    assert (found["preset"], found["parameters"]) == ("lctr-small", int(golden.released()["params"]))
    model, _ = checkpoint.load(tmp_path / "m.safetensors")
    assert (model.preset, model.num_classes) == (expected.preset, expected.num_classes)
    own = expected.state_dict()
    imported = model.state_dict()
    assert imported.keys() == own.keys()
    assert all(torch.equal(value, own[name]) for name, value in imported.items())


def test_what_was_found_is_told_in_words(tmp_path: Path) -> None:
    source = written(layouts.lctr(200), tmp_path)
    output = tmp_path / "m.safetensors"
    expected = [
        "LCTR of 200 classes in the sizes of lctr-mini.",
        "Taken: 38 tensors, 136,848 parameters.",
        "Left out: optimizer, lr_scheduler, epoch, scaler, args.",
        "tau 0.09, protocol lctr.",
        str(output),
    ]
    assert lctr("import", source, "-o", output).stdout.splitlines() == expected
    assert lctr("import", source, "-o", output).stdout.splitlines() == [
        *expected[:4],
        "Unchanged: reused.",
        expected[4],
    ]
    backbone = tmp_path / "b.safetensors"
    done = lctr("import", written(layouts.deit(1000), tmp_path), "-o", backbone)
    assert done.stdout.splitlines()[2:] == [
        "Left out: head.weight, head.bias.",
        "Missing: conv3x3.*, CDM.*. This is a backbone without a localizer; train one on it:",
        f"  lctr train --preset lctr-mini --init {backbone} ...",
        str(backbone),
    ]


@pytest.mark.parametrize("layout", [layouts.lctr, layouts.deit])
def test_the_result_verifies(layout: Callable[[int], dict[str, Any]], tmp_path: Path) -> None:
    told(written(layout(200), tmp_path), "-o", tmp_path / "m.safetensors")
    checked = json.loads(lctr("verify", tmp_path / "m.safetensors", "--json").stdout)
    assert [(parent["role"], parent["kind"]) for parent in checked[0]["parents"]] == [("checkpoint", "file")]
    (tmp_path / "m.safetensors").write_bytes(b"")
    assert lctr("verify", tmp_path / "m.safetensors").exit_code == 1


# Class names and threshold.


def test_class_names_and_tau_become_the_card_s(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\ufeffcat\r\nØlandshest \r\ndog, red\r\n\r\n", "utf-8")
    source = written(layouts.lctr(3), tmp_path)
    told(source, "-o", tmp_path / "m.safetensors", "--class-names", names, "--tau", "0.3")
    card = checkpoint.card_of(tmp_path / "m.safetensors")
    assert (card.class_names, card.tau) == (("cat", "Ølandshest", "dog, red"), 0.3)
    assert told(source, "-o", tmp_path / "m.safetensors", "--class-names", names, "--tau", "0.3")["reused"]
    assert not told(source, "-o", tmp_path / "m.safetensors", "--class-names", names, "--tau", "0.4")["reused"]


@pytest.mark.parametrize(
    ("layout", "options", "complaint"),
    [
        (layouts.lctr, (), "--tau is needed: a box threshold was published for 200 and 1000 classes, not for 3"),
        (layouts.lctr, ("--tau", "0"), "--tau 0 is no share of a map's maximum: give a number between 0 and 1"),
        (layouts.lctr, ("--tau", "nan"), "--tau nan is no share"),
        (layouts.lctr, ("--tau", "0.2", "--class-names", "two.txt"), "two.txt has 2 lines and the model 3 classes"),
        (layouts.lctr, ("--tau", "0.2", "--class-names", "gap.txt"), "gap.txt has no name in line 2"),
        (layouts.lctr, ("--tau", "0.2", "--class-names", "c.pth"), "c.pth cannot be read as UTF-8 text"),
        (layouts.lctr, ("--tau", "0.2", "--class-names", "none.txt"), "none.txt cannot be read as UTF-8 text"),
        (layouts.deit, ("--tau", "0.2"), "is a backbone without a localizer: leave --class-names and --tau out"),
        (layouts.ts_cam, ("--class-names", "two.txt"), "is a backbone without a localizer: leave --class-names and"),
        (layouts.lctr, ("-o", "m.pth"), "m.pth does not end in .safetensors"),
    ],
)
def test_options_that_do_not_go_with_it_are_wrong_usage(
    layout: Callable[[int], dict[str, Any]],
    options: tuple[str, ...],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    written(layout(3), tmp_path)
    Path("two.txt").write_text("cat\ndog\n")
    Path("gap.txt").write_text("cat\n\ndog\n")
    before = sorted(tmp_path.iterdir())
    assert complaint in refused("import", "c.pth", "-o", "m.safetensors", *options, code=2)
    assert sorted(tmp_path.iterdir()) == before


# Checkpoints that cannot be used.


def changed(name: str, change: Callable[[Any], Any]) -> Change:
    """The weights with one of them replaced."""
    return lambda weights: {**weights, name: change(weights[name])}


def without(*prefixes: str) -> Change:
    return lambda weights: {name: value for name, value in weights.items() if not name.startswith(prefixes)}


def of_shape(**sizes: int) -> Change:
    return lambda weights: layouts.drawn(layouts.backbone_shapes(**sizes))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: [w], "holds an object of type list, not weights by name"),
        (lambda w: {}, "is no whole LCTR, DeiT or TS-CAM: it has no 'cls_token' of 3 dimensions, but nothing"),
        (lambda w: {"bn1.batches": torch.tensor(1)}, "it has no 'cls_token' of 3 dimensions, but bn1.batches"),
        (lambda w: {"net": w}, "'net' in {path} is of type dict, where only weights by name belong: lctr looks"),
        (lambda w: {**w, "epoch": 3}, "'epoch' in {path} is of type int, where only weights by name belong"),
        (lambda w: {**w, 7: torch.ones(1)}, "7 in {path} is of type Tensor, where only weights by name belong"),
        (changed("norm.bias", lambda v: v.tolist()), "'norm.bias' in {path} is of type list, where only weights"),
        (
            changed("norm.bias", lambda v: v.long()),
            "'norm.bias' in {path} is no dense tensor of floating-point",
        ),
        (changed("conv3x3.weight", lambda v: v.to_sparse()), "'conv3x3.weight' in {path} is no dense tensor"),
        (changed("CDM.bias", lambda v: torch.ones(1).expand(10**12)), "'CDM.bias' in {path} is no dense tensor"),
        (changed("norm.bias", lambda v: v * torch.nan), "lctr-mini: 'norm.bias' holds NaN or infinity; use a whole"),
        (changed("norm.bias", lambda v: v.double() + 1e300), "'norm.bias' holds NaN or infinity"),
        (
            changed("norm.bias", lambda v: v[:7]),
            "LCTR in the sizes of lctr-mini: 'norm.bias' has shape (7,), not (16,)",
        ),
        (changed("CDM.bias", lambda v: v[:2]), "'CDM.bias' has shape (2,), not (3,)"),
        (changed("CDM.weight", lambda v: v[0]), "has no 'CDM.weight' of 5 dimensions, but float32, (3, 16, 3, 3)"),
        (changed("pos_embed", lambda v: v[0]), "has no 'pos_embed' of 3 dimensions, but float32, (5, 16)"),
        (without("CDM.bias"), "'CDM.bias' is missing"),
        (
            without("blocks.1.mlp"),
            "'blocks.1.mlp.fc1.bias', 'blocks.1.mlp.fc1.weight', 'blocks.1.mlp.fc2.bias' and 1 more",
        ),
        (lambda w: {**w, "blocks.0.ls1.gamma": torch.ones(16)}, "'blocks.0.ls1.gamma' has no place in it"),
        (of_shape(dim=24), "has the sizes of no preset: lctr-mini is the nearest, but there is width 24 instead of 16"),
        (of_shape(depth=3), "lctr-mini is the nearest, but there is depth 3 instead of 2; import"),
        (of_shape(patch=8), "patch size 8 instead of 16"),
        (of_shape(tokens=6), "number of position embeddings 6 instead of 5"),
        (
            of_shape(dim=384, depth=12, patch=8, tokens=785),
            "patch size 8 instead of 16 and number of position embeddings",
        ),
    ],
)
def test_an_unusable_checkpoint_is_refused_in_one_sentence(change: Change, complaint: str, tmp_path: Path) -> None:
    path = written(change(layouts.lctr(3)["model"]), tmp_path)
    said = refused("import", path, "-o", tmp_path / "m.safetensors", "--tau", "0.2")
    assert complaint.replace("{path}", str(path)) in said
    assert str(path) in said
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"some text", b"PK\x03\x04", b"\x80\x02"])
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    path.write_bytes(content)
    assert str(path) in refused("import", path, "-o", tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_of_ours_needs_no_import(tmp_path: Path) -> None:
    told(written(layouts.lctr(200), tmp_path), "-o", tmp_path / "m.safetensors")
    said = refused("import", tmp_path / "m.safetensors", "-o", tmp_path / "n.safetensors")
    assert "m.safetensors is a safetensors file and needs no import" in said


# A backbone is no localizer.


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    told(written(layouts.ts_cam(200), tmp_path), "-o", tmp_path / "b.safetensors")
    return tmp_path / "b.safetensors"


@pytest.mark.parametrize(
    "command",
    [
        ("export", "{file}", "-o", "{out}.onnx"),
        ("evaluate", "{file}"),
        ("statistics", "{file}", "--data", "shapes", "-o", "{out}.safetensors"),
        ("synthesize", "{file}", "--no-statistics", "-o", "{out}"),
        ("deploy", "{file}", "-o", "{out}"),
    ],
    ids=lambda command: command[0],
)
def test_a_backbone_is_refused_where_a_localizer_is_needed(
    command: tuple[str, ...], backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out" / "made"
    said = refused(*(part.format(file=backbone, out=out) for part in command))
    assert said == (
        f"Error: {backbone} is a backbone without a localizer (TS-CAM, c.pth): train one on it with "
        f"`lctr train --preset lctr-mini --init {backbone}`."
    )
    assert not out.parent.exists()


def test_training_starts_from_a_backbone(backbone: Path) -> None:
    model = Lctr(layouts.MINI, 4)
    assert checkpoint.load_start(model, list("abcd"), backbone) == "backbone"
    weights = model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in load_file(backbone).items())


def test_training_from_a_backbone_of_another_preset_says_which(backbone: Path, tmp_path: Path) -> None:
    run = ("--preset", "lctr-nano", "--data", "shapes", "--images", "64", "-o", tmp_path / "t.safetensors")
    said = refused("train", *run, "--init", backbone)
    assert "does not hold the backbone of lctr-nano but of lctr-mini: use --preset lctr-mini." in said
    said = refused("train", *run, "--init", tmp_path / "c.pth")
    assert said.endswith("make one of it with `lctr import`.")
