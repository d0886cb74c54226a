"""The gallery of figures in the documentation, made from a finished run.

    python -m ctdb.gallery config/quick.yaml docs

writes ``docs/gallery.md`` and a small picture of one figure of each kind that the configuration draws.
"""

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ctdb import config
from ctdb.errors import CtdbError, WriteError
from ctdb.files import write_bytes, write_text

WIDTH = 1100
"""Largest width of a picture, in pixels."""
COLOURS = 128


def write_gallery(plan: Mapping[str, Any], docs: Path | str) -> Path:
    """Write the gallery of a finished run.

    Parameters
    ----------
    plan
        Of :func:`ctdb.config.load`.
    docs
        Folder of the documentation.

    Returns
    -------
    Path of the page.

    Raises
    ------
    WriteError
        If a figure of the plan is not drawn.
    """
    docs, folder = Path(docs), Path(plan["results"]) / "figures"
    first: dict[str, str] = {}
    for name, figure in sorted(
        plan["figures"].items(), key=lambda item: bool(item[1]["missing"])
    ):  # the whole ones first
        first.setdefault(figure["settings"]["kind"], name)
    lines = [
        "# Gallery",
        "",
        "One figure of each kind, from a run of the quick configuration, with its caption. Made by",
        "`python -m ctdb.gallery config/quick.yaml docs`; the keys of each kind are in",
        "[`config/README.md`](../config/README.md#figures).",
    ]
    for kind, name in sorted(first.items()):
        picture, caption = folder / f"{name}.png", folder / f"{name}.txt"
        if not (picture.exists() and caption.exists()):
            raise WriteError(f"{picture}: is not there; run `snakemake figures` with the same configuration first")
        write_bytes(docs / "gallery" / f"{kind}.png", _small(picture))
        paragraphs = caption.read_text(encoding="utf-8").strip()
        lines += ["", f"## {kind}", "", f"![Figure {name}](gallery/{kind}.png)", "", paragraphs]
    page = docs / "gallery.md"
    write_text(page, "\n".join(lines) + "\n")
    return page


def _small(picture: Path) -> bytes:
    """A picture in fewer pixels and colours."""
    with Image.open(picture) as image:
        whole = image.convert("RGB")
    if whole.width > WIDTH:
        whole = whole.resize((WIDTH, round(whole.height * WIDTH / whole.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    whole.quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    try:
        print(write_gallery(config.load(sys.argv[1]), sys.argv[2]))
    except CtdbError as error:
        sys.exit(f"error: {error}")
    except IndexError:
        sys.exit("usage: python -m ctdb.gallery CONFIG DOCS")
