"""The gallery, from figures made up."""

import numpy as np
import pytest
from PIL import Image

from ctdb.errors import WriteError
from ctdb.gallery import WIDTH, write_gallery


def test_one_figure_of_each_kind_small_with_its_caption(tmp_path):
    figures = tmp_path / "results/figures"
    figures.mkdir(parents=True)
    names = {"no_states": "latents", "states": "latents", "more_states": "latents", "counts": "raster"}
    wide = np.random.default_rng(0).integers(0, 255, (300, 2200, 3), dtype=np.uint8)
    for name in names:
        Image.fromarray(wide if name == "states" else wide[:, :500]).save(figures / f"{name}.png")
        (figures / f"{name}.txt").write_text(f"What {name} shows.\n\nIts number is 0.5.\n")
    plan = {
        "results": str(tmp_path / "results"),
        "figures": {
            name: {"settings": {"kind": kind}, "missing": [[["fit"], "no fit"]] if name == "no_states" else []}
            for name, kind in names.items()
        },
    }
    page = write_gallery(plan, tmp_path / "docs")
    text = page.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## latents", "## raster"]
    assert "What states shows.\n\nIts number is 0.5." in text
    assert "more_states" not in text
    assert "![Figure states](gallery/latents.png)" in text
    with (
        Image.open(tmp_path / "docs/gallery/latents.png") as small,
        Image.open(tmp_path / "docs/gallery/raster.png") as own,
    ):
        assert small.size == (WIDTH, 150)
        assert own.size == (500, 300)

    (figures / "counts.png").unlink()
    with pytest.raises(WriteError, match=r"counts\.png: is not there; run `snakemake figures`"):
        write_gallery(plan, tmp_path / "docs")
