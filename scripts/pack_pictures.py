"""Pack training pictures into a zip of small JPEGs, for a machine that little can be sent to.

    python scripts/pack_pictures.py ../shared/data/heads-256/photo heads-128.zip --size 128 --select 0-10999

Prints how large the zip is; `limner train gan --data heads-128.zip` reads it as it reads the folder.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

from PIL import Image
from plain_errors import run_script

from limner.files import replacing
from limner.training.data import list_pictures, read_pictures


def main() -> None:
    """Read the command line and write the zip, complete or not at all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder or zip of square pictures")
    parser.add_argument("out", type=Path, help="zip to write")
    parser.add_argument("--size", type=int, default=128, help="side in px (128)")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality, no colour subsampling (90)")
    parser.add_argument("--select", default="", help="FIRST-LAST: only pictures numbered so")
    arguments = parser.parse_args()
    names = list_pictures(arguments.source, arguments.select)
    with replacing(arguments.out) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for name, pixels in zip(names, read_pictures(arguments.source, names, arguments.size), strict=True):
            file = io.BytesIO()
            Image.fromarray(pixels.transpose(1, 2, 0)).save(
                file, "JPEG", quality=arguments.quality, subsampling=0
            )
            archive.writestr(str(Path(name).with_suffix(".jpg")), file.getvalue())
    print(f"{arguments.out}: {len(names)} pictures, {arguments.out.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run_script(main)
