"""All splits decoded to square uint8 images, once."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finesight import cache
from finesight.data.fingerprint import content_hashes

if TYPE_CHECKING:
    from datasets import DatasetDict
    from torch import Tensor

    from finesight.data.images import Fit
    from finesight.engine import Engine


@dataclass
class Decoded:
    """data: the splits without unreadable images; by split, uint8 [N, 3, size, size] and the files' hashes."""

    data: "DatasetDict"
    pixels: "dict[str, Tensor]"
    hashes: dict[str, list[str]]


def decode(data: "DatasetDict", options: Any, size: int, fit: "Fit", engine: "Engine", say: cache.Say) -> Decoded:
    """Decode every split from the cache; `options` has cache_dir, sixteen_bit and skip_bad.

    Raises `DataError` naming every unreadable image of all splits when there are more than `skip_bad`.
    """
    directory = cache.folder(options.cache_dir)
    found = Decoded(data, {}, {})
    faults: dict[str, list[tuple[int, str]]] = {}
    for split in data:
        found.hashes[split] = content_hashes(data[split], directory)
        with engine.first_alone():
            found.pixels[split], faults[split] = cache.pixels(
                data[split], found.hashes[split], directory, size, fit, options.sixteen_bit, say
            )
    cache.refuse([fault for of_split in faults.values() for fault in of_split], options.skip_bad)
    for split in data:
        bad = {row for row, _ in faults[split]}
        if bad:
            say(f"{split}: left out {len(bad)} unreadable images.")
            keep = [row for row in range(len(data[split])) if row not in bad]
            data[split], found.pixels[split] = data[split].select(keep), found.pixels[split][keep]
            found.hashes[split] = [found.hashes[split][row] for row in keep]
    return found
