"""Tests of figures.py: the committed pictures, one's own runs, many classes, bad input."""

import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

matplotlib = pytest.importorskip("matplotlib")  # results/requirements.txt; nothing else needs it

from matplotlib import pyplot as plt

from results import figures
from tools.files import read_json, write_json
from tools.testing import Words, run_main, small_model

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "results" / "runs"
SCL = RUNS / "pilot_temperature0.1" / "rte_scl_1"
PINNED = (ROOT / "results" / "requirements.txt").read_text().split("==")[1].strip()


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    plt.close("all")


def draw(*argv):
    return figures.main([str(word) for word in argv])


def test_committed_pictures_are_redrawn(tmp_path):
    """Same runs, same matplotlib, same bytes."""
    pilot = [RUNS / "pilot_temperature0.1" / f"rte_{method}_{seed}"
             for method in ("scl", "acl-embed") for seed in (1, 2, 3)]
    multi = [RUNS / "multi" / f"rte_acl-cl_{seed}" for seed in (1, 2, 3)]
    assert draw("angles", *pilot, *multi) == 0
    assert draw("groups", SCL) == 0
    for name in ("angles_rte.png", "groups_rte.png"):
        committed = ROOT / "results" / "figures" / name
        assert (tmp_path / name).stat().st_size > 10_000
        if matplotlib.__version__ == PINNED:
            assert (tmp_path / name).read_bytes() == committed.read_bytes()


def test_nothing_is_written_over_unasked(tmp_path, capsys):
    """The picture lies in the working folder; a second one only where --output names it."""
    picture = tmp_path / "groups_rte.png"
    picture.write_text("mine")
    status, error = run_main(figures.main, ["groups", SCL], capsys)
    assert status == 2 and "exists" in error and error.count("\n") == 1
    assert picture.read_text() == "mine"
    assert draw("groups", SCL, "--output", picture) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert draw("groups", SCL, "--output", tmp_path / "deep" / "er.svg") == 0
    assert "<svg" in (tmp_path / "deep" / "er.svg").read_text()


def test_bad_input(tmp_path, capsys):
    """One line and status 2, no picture."""
    ce = RUNS / "multi" / "rte_ce_1"
    alone = RUNS / "vanilla" / "rte_ce_1"
    cases = [
        (["angles", tmp_path / "nowhere"], "nowhere is no run"),
        (["angles", ce], "no angle was measured"),
        (["groups", ce], "conflict-groups"),
        (["tradeoff", alone], "none of these runs has several exits"),
        (["space", ce, "--exit", "7"], "no exit 7"),
        (["angles", SCL, "--output", tmp_path / "picture"], "ends in .png"),
        (["space", ce], "--exit"),
        (["angles"], "RUN"),
    ]
    for argv, word in cases:
        status, error = run_main(figures.main, argv, capsys)
        assert status == 2 and word in error and error.count("\n") == 1, (argv, error)
    assert not list(tmp_path.glob("*.png"))


def copies(tmp_path, count):
    """Runs that differ in lambda."""
    folders = []
    for number in range(count):
        folder = shutil.copytree(SCL, tmp_path / f"run{number}")
        config = read_json(folder / "config.json")
        write_json(config | {"weight": number / 10}, folder / "config.json")
        folders.append(folder)
    return folders


def test_labels_and_colours(tmp_path):
    """Seeds share a label; runs of one method are told apart by what differs, however many."""
    names = ("rte_kd_1", "rte_kd_2", "rte_ce_1", "rte_ce_2")
    kinds = figures.by_label([RUNS / "multi" / name for name in names])
    counts = {label: len(folders) for label, (_, folders) in kinds.items()}
    assert list(counts.items()) == [("ce", 2), ("kd", 2)]
    assert kinds["ce"][0] == figures.COLOURS["ce"]
    kinds = figures.by_label(copies(tmp_path, 12))
    assert list(kinds)[:2] == ["scl, weight 0.0", "scl, weight 0.1"] and len(kinds) == 12
    assert len({str(colour) for colour, _ in kinds.values()}) == 12


def boxes(figure):
    """Where the legend and the panels lie on a drawn figure, in pixels."""
    figure.canvas.draw()
    [legend] = figure.legends
    panels = [axes.get_tightbbox() for axes in figure.axes]
    return legend.get_window_extent(), panels


@pytest.mark.parametrize("kinds", [1, 12])
def test_the_legend_covers_no_panel_of_angles(kinds, tmp_path):
    figure = figures.angles(Namespace(runs=copies(tmp_path, kinds)))
    legend, panels = boxes(figure)
    assert not any(legend.overlaps(panel) for panel in panels)
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.width and legend.y1 <= figure.bbox.height


@pytest.mark.parametrize("K", [2, 3, 12, 150])
def test_space_draws_any_number_of_classes(K):
    """All classes in colours of their own; a legend, or a colour bar, that covers nothing."""
    model = small_model(num_labels=K).eval()
    sentences = ["w" * (1 + i % 20) + " w" * (i % 5) for i in range(2 * K)]
    dev = Dataset.from_dict({"sentence": sentences, "label": [i % K for i in range(2 * K)]})
    names = [f"class {k}" for k in range(K)]
    config = {"task": "mine", "labels": names, "text_columns": ["sentence"], "num_labels": K,
              "exit_layers": [1, 2, 3], "max_length": 16}
    panels = [("before", config, dev, model, Words()), ("after", config, dev, model, Words())]
    figure = figures.draw_panels(panels, 3)
    legend, places = boxes(figure)
    assert not any(legend.overlaps(place) for place in places)
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.width and legend.y0 >= 0
    stars = [s for s in figure.axes[0].collections if len(s.get_offsets()) == 1]
    assert len({tuple(star.get_facecolor()[0]) for star in stars}) == K
    names_shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names_shown) == (K if K <= figures.NAMED_CLASSES else 1)


def test_plane_by_hand():
    """Two classes opposite each other lie on one axis, the last label embedding to the right."""
    label_embeddings = torch.tensor([[0.0, 2.0, 0.0], [0.0, -3.0, 0.0]])
    h = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])
    dots, stars, share = figures.plane(h, label_embeddings)
    assert torch.allclose(dots[:, 0], torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert torch.allclose(stars[:, 0], torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert share == pytest.approx(1)


def test_tradeoff_of_ones_own_runs(tmp_path):
    """Every rule, and a task of one's own."""
    folders = []
    for seed in (1, 2):
        folder = shutil.copytree(RUNS / "multi" / f"rte_kd_{seed}", tmp_path / f"mine_{seed}")
        for name in ("config.json", "result.json"):
            content = read_json(folder / name)
            write_json(content | {"task": "mine", "metric": "macro_f1"}, folder / name)
        folders.append(folder)
    assert draw("tradeoff", *folders) == 0
    assert (tmp_path / "tradeoff_mine.png").stat().st_size > 10_000


def test_tradeoff_leaves_out_runs_of_one_exit(tmp_path, capsys):
    one_exit = RUNS / "vanilla" / "rte_ce_1"
    assert draw("tradeoff", one_exit, RUNS / "multi" / "rte_ce_1") == 0
    assert f"left out {one_exit}: it has one exit" in capsys.readouterr().out


def test_tradeoff_is_of_one_task(capsys):
    runs = [RUNS / "multi" / "rte_ce_1", RUNS / "multi" / "mrpc_ce_1"]
    status, error = run_main(figures.main, ["tradeoff", *runs], capsys)
    assert status == 2
    assert "runs of several tasks (mrpc, rte)" in error


def test_a_label_wider_than_the_picture_is_broken(tmp_path):
    """Runs of one method that differ in many options; every label stays inside."""
    folders = []
    for seed, rate in ((1, 0.001), (2, 0.002)):
        folder = shutil.copytree(RUNS / "multi" / f"rte_kd_{seed}", tmp_path / f"mine_{seed}")
        change = {"lr": rate, "head_lr": rate, "weight": rate, "temperature": rate,
                  "model": f"/a/long/way/to/encoder{seed}", "epochs": seed, "exit_weights": seed}
        write_json(read_json(folder / "config.json") | change, folder / "config.json")
        folders.append(folder)
    figure = figures.tradeoff(SimpleNamespace(runs=folders, rule="entropy"))
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert "/a/long" not in figure.legends[0].get_texts()[0].get_text()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_share_below_0_by_hand():
    nan = float("nan")
    assert figures.share_below_0(torch.tensor([-1.0, 0.0, 1.0, -0.5, nan])) == "50 %"
    assert figures.share_below_0(torch.tensor([nan])) == "not shared"
