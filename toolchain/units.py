"""What `--precision auto` may leave float: a node at a time, or a block."""

import re
from collections.abc import Callable, Mapping

from exporters.placement import Placement, Site

NODE, BLOCK = "node", "block"
Units = dict[str, tuple[Site, ...]]
"""Name -> the products that get one precision, in graph order."""


def node_of(site: Site) -> str:
    """The node's own name."""
    return site.name


def block_of(site: Site) -> str:
    """The path of a product up to and with its first number: `blocks.3.mlp.fc1` belongs to `blocks.3`.

    The torch module's path where the exporter recorded one, the node's name otherwise. What has no number in its path
    stands alone.
    """
    path = site.module or site.name
    parts = re.split(r"[./]", path.strip("/"))
    number = next((k for k, part in enumerate(parts) if part.isdigit()), None)
    return path if number is None else ".".join(parts[: number + 1])


UNITS: Mapping[str, Callable[[Site], str]] = {NODE: node_of, BLOCK: block_of}
"""As `--by` calls them -> the name of a product's unit."""


def units_of(placement: Placement, by: str) -> Units:
    """The products of a placement by the name of their unit; nodes that share a name share a unit."""
    units: Units = {}
    for site in placement.sites:
        name = UNITS[by](site)
        units[name] = (*units.get(name, ()), site)
    return units
