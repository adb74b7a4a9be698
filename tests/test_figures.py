"""results/figures.py: the committed pictures, one's own runs, labels, bad input."""

from pathlib import Path

import pytest

from tests.small import answer, call, make_run

matplotlib = pytest.importorskip("matplotlib")  # results/requirements.txt; nothing else needs it
from results import figures

ROOT = Path(__file__).resolve().parents[1]
PINNED = (ROOT / "results" / "requirements.txt").read_text().split("==")[1].strip()


@pytest.mark.parametrize("line", figures.COMMITTED)
def test_committed_pictures_are_redrawn(line, tmp_path):
    """Same runs, same matplotlib, same bytes."""
    *argv, committed = line.split()
    assert call(figures.main, *argv, tmp_path / "new.png") == 0
    new = (tmp_path / "new.png").read_bytes()
    assert len(new) > 10_000
    if matplotlib.__version__ == PINNED:
        assert new == (ROOT / committed).read_bytes()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Runs of one's own: two seeds, and a run with another weight and one exit."""
    folder = tmp_path_factory.mktemp("own")
    runs = [make_run(folder, seed=seed) for seed in (1, 2)]
    return [*runs, make_run(folder, "acl-grad", "--exits", "last", "--weight", "0.3")]


@pytest.mark.parametrize("picture", ["angles", "tradeoff"])
def test_ones_own_runs(picture, own, tmp_path, monkeypatch):
    """Into the working folder, and as SVG; a run of one exit has no trade-off."""
    monkeypatch.chdir(tmp_path)
    assert call(figures.main, picture, *own) == 0
    assert (tmp_path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert call(figures.main, picture, *own, "--rule", "pcee", "--output", "picture.svg") == 0
    assert "<svg" in (tmp_path / "picture.svg").read_text(encoding="utf-8")


def test_labels_and_colours():
    """Seeds share a label; runs of one method are told apart by what differs."""
    runs = figures.read_runs(["multi/rte_kd_*", "multi/rte_ce_*"])["runs"]
    found = {label: (colour, len(names)) for label, colour, names in figures.by_label(runs)}
    assert found == {"kd": (figures.COLOURS["kd"], 5), "ce": (figures.COLOURS["ce"], 5)}
    runs = figures.read_runs(["gate/*/demo_acl-cl_*"])["runs"]
    labels, colours, names = zip(*figures.by_label(runs))
    assert [len(seeds) for seeds in names] == [5, 5, 5, 5] and len(set(colours)) == 4
    assert "acl-cl, conflict discard, change not set" in labels


def test_the_legend_stays_inside():
    """Twelve long labels; it covers no panel."""
    figure = figures.tradeoff(figures.parse_args(["tradeoff", "tries/*/mrpc_acl-cl_1"]))
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
    assert not box.overlaps(figure.axes[0].get_tightbbox())


@pytest.mark.parametrize("argv, word", [
    (["angles"], "of which RUN"),
    (["angles", "nowhere"], "neither a folder nor"),
    (["angles", "."], "result.json"),
    (["angles", "multi/rte_ce_1"], "no angle was measured"),
    (["angles", "multi/*"], "several tasks"),
    (["tradeoff", "vanilla/rte_*"], "none of these runs has several exits"),
])
def test_bad_input(argv, word, tmp_path, monkeypatch, capsys):
    """One line and status 2, no picture."""
    monkeypatch.chdir(tmp_path)
    status, _, error = answer(capsys, figures.main, *argv)
    assert status == 2 and word in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
