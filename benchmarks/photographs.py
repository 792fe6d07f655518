"""What `make photos finetuned` leaves in its folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Photographs:
    """Real photographs, and the localizer that was trained on them.

    Attributes:
        folder: of both.
    """

    folder: Path = Path(".photos")

    @property
    def images(self) -> Path:
        """CUB-200-2011, as it is unpacked."""
        return self.folder / "CUB_200_2011"

    @property
    def data(self) -> str:
        """The images, as for `--data`."""
        return f"cub:{self.images}"

    @property
    def localizer(self) -> Path:
        """`lctr-small`, with its statistics beside it."""
        return self.folder / "finetuned.safetensors"
