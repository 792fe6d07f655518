"""The sizes LCTR comes in."""

from dataclasses import dataclass

from toolchain.errors import chosen


@dataclass(frozen=True)
class Preset:
    """Hyper-parameters of one LCTR.

    Attributes:
        image_size: side of the square input, pixels.
        patch_size: side of a patch, pixels; `image_size` is a multiple of it.
        dim: width D of the residual stream.
        depth: number of blocks L.
        heads: attention heads; `dim` is a multiple of it.
        mlp_ratio: hidden width of the MLP over `dim`.
        experts: kernels G that CDM routes between.
    """

    name: str
    image_size: int
    patch_size: int
    dim: int
    depth: int
    heads: int
    mlp_ratio: int = 4
    experts: int = 4

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("lctr-small", image_size=224, patch_size=16, dim=384, depth=12, heads=6),
        Preset("lctr-tiny", image_size=224, patch_size=16, dim=192, depth=12, heads=3),
        Preset("lctr-nano", image_size=112, patch_size=8, dim=96, depth=5, heads=3),
    )
}


def preset_named(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        UsageError: there is none.
    """
    return chosen("preset", name, PRESETS)
