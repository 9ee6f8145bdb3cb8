"""Pictures: read any photo, write a picture that says how it was made, pixels <-> image, contact sheets.

Convention: ``pixels`` are uint8 (H, W, 3) RGB; an ``image`` is float32 (B, 3, H, W) RGB in [-1, 1].
"""

from limner.media.files import MAX_MEGAPIXELS, WRITABLE, Photo, SourceType, read, read_provenance, write
from limner.media.pixels import (
    check_pixels,
    join_side_by_side,
    make_sheet,
    resize_image,
    resize_pixels,
    to_image,
    to_pixels,
)
from limner.media.sequence import FILMS, READABLE_FILMS, check_film, is_film, read_film, write_film

__all__ = [
    "FILMS",
    "MAX_MEGAPIXELS",
    "READABLE_FILMS",
    "WRITABLE",
    "Photo",
    "SourceType",
    "check_film",
    "check_pixels",
    "is_film",
    "join_side_by_side",
    "make_sheet",
    "read",
    "read_film",
    "read_provenance",
    "resize_image",
    "resize_pixels",
    "to_image",
    "to_pixels",
    "write",
    "write_film",
]
