"""Telemetry of the gate and the report of `python grad_surgery.py RUN ..`; the closing lines."""

import math
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import grad_surgery
from tools import angles, angles_command, comparison
from tools.closing import closing_lines
from tools.files import mean_sd, read_csv, read_json
from tools.made_runs import make_data, make_run, outcome
from tools.testing import DEMO, call_train

torch.set_num_threads(1)  # small tensors: a second thread only waits


def steps(folder, rows):
    """A folder with a steps.csv of (step, epoch, angle)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{step},{epoch},{angle}\n" for step, epoch, angle in rows]
    (folder / "steps.csv").write_text("step,epoch,angle\n" + "".join(lines))
    return folder


def report(argv, capsys):
    status, printed, errors = outcome(angles_command.main, argv, capsys)
    assert status == 0, errors
    return printed


def row_of(printed, method):
    [row] = [line for line in printed.splitlines() if line.startswith(f"{method}  ")]
    return row.removeprefix(method).split()


# ------------------------------------------------------------------------------ telemetry


def test_cosine_is_clamped():
    """Rounding can leave a cosine outside -1..1, where acos has no answer."""
    above = grad_surgery.cosine_of(torch.tensor([[1 + 1e-6, 1.0, 1.0]]))
    below = grad_surgery.cosine_of(torch.tensor([[-1 - 1e-6, 1.0, 1.0]]))
    assert above > 1 and below < -1
    assert angles.angle(above) == 0
    assert angles.angle(below) == 180
    assert angles.kept(below, "project") == 0
    assert math.isnan(angles.angle(math.nan))


@pytest.mark.parametrize("rule, kept", [
    ("observe", [1, 1, 1]), ("discard", [1, 0, 0]), ("weigh", [0.5, 0, 0]),
    ("project", [1, math.sqrt(0.75), 0]),
])
def test_kept_by_hand(rule, kept):
    cosines = [0.5, -0.5, math.nan]
    for cosine, expected in zip(cosines, kept):
        assert angles.kept(cosine, rule) == pytest.approx(expected)
    row = angles.telemetry(cosines[:2], rule)
    assert row["angle"] == pytest.approx((60 + 120) / 2)
    assert row["cosine"] == 0
    assert row["kept"] == pytest.approx(sum(kept[:2]) / 2)
    assert angles.telemetry([], rule) == {"cosine": None, "angle": None, "kept": None}


# ------------------------------------------------------------------------------ one run


def test_angles_count_nan_as_conflict(tmp_path, capsys):
    steps(tmp_path, [(1, 1, 80), (2, 1, "nan"), (3, 2, 100), (4, 2, 90)])
    printed = report([tmp_path], capsys)
    assert "4 steps, 1 not finite" in printed
    assert "over 90 degrees: 50.0 %   by epoch: 50.0 %  50.0 %" in printed
    assert "In 2 of 4 steps the second gradient pointed against cross-entropy's." in printed


def test_the_histogram_by_hand(tmp_path, capsys):
    steps(tmp_path, [(1, 1, 5), (2, 1, 6), (3, 1, 7), (4, 1, 25), (5, 1, 25.5)])
    printed = report([tmp_path], capsys)
    bars = [line.split() for line in printed.splitlines() if " to " in line]
    assert [bar[:4] for bar in bars] == [
        ["0", "to", "10", "3"], ["10", "to", "20", "0"], ["20", "to", "30", "2"],
    ]
    assert [len(bar[4]) if len(bar) > 4 else 0 for bar in bars] == [50, 0, 34]
    assert "mean 13.7   5th percentile 5.2   median 7.0" in printed
    assert len(printed.splitlines()) < 25


def test_no_finite_angle(tmp_path, capsys):
    steps(tmp_path, [(1, 1, "nan"), (2, 1, "nan")])
    printed = report([tmp_path], capsys)
    assert "over 90 degrees: 100.0 %" in printed
    assert "mean" not in printed


def test_many_epochs_are_cut_in_the_middle(tmp_path, capsys):
    steps(tmp_path, [(epoch, epoch, 80) for epoch in range(1, 101)])
    printed = report([tmp_path], capsys)
    assert printed.count("0.0 %") == 9
    assert max(map(len, printed.replace(str(tmp_path), "RUN").splitlines())) <= 100


@pytest.mark.parametrize("rule, word", [
    ("discard", "the gate dropped it there"), ("observe", "the gate only watched"),
])
def test_what_the_gate_did(rule, word, tmp_path, capsys):
    steps(tmp_path, [(1, 1, 80)])
    (tmp_path / "config.json").write_text(f'{{"method": "scl", "conflict": "{rule}"}}')
    assert word in report([tmp_path], capsys)


def test_grad_surgery_command(tmp_path, capsys, monkeypatch):
    """A run that train.py made, through the file's own door; its closing lines."""
    argv = [*DEMO, "--max-steps", "12", "--output", tmp_path]
    assert call_train(argv) == 0
    run = tmp_path / "demo_acl-cl_1"
    assert "\nstep 12  dev accuracy by exit: " in capsys.readouterr().out  # of 16 in an epoch
    monkeypatch.setattr(sys, "argv", ["grad_surgery.py", str(run)])
    with pytest.raises(SystemExit) as stop:
        sys.exit(angles_command.main())
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    result = read_json(run / "result.json")
    share = 100 * result["conflict_share"]
    assert f"over 90 degrees: {share:.1f} %" in printed
    assert "demo_acl-cl_1: angle between both gradients at 12 steps" in printed
    assert len(read_csv(run / "steps.csv")) == 12

    lines = closing_lines(run, result, read_json(run / "config.json"))
    scores = " ".join(f"{score:.1f}" for score in result["exit_scores"])
    assert lines[0] == f"accuracy by exit: {scores}   (majority class 50.0)"
    assert f"{share:.1f} % of 12, where the contrastive gradient was dropped" in lines[1]
    assert lines[2].startswith(f"next: python exits.py {run} ")
    assert len(lines) == 4


# ------------------------------------------------------------------------------ several runs


def test_the_natural_comparison(tmp_path, capsys):
    """Six methods; ce has no second gradient, scl's was not looked at, kd is still training."""
    data = make_data(tmp_path / "data")
    for method in ("kd", "acl-cl", "acl-grad", "scl", "ce"):
        for seed in (1, 2):
            make_run(tmp_path / f"mine_{method}_{seed}", data, method=method, seed=seed)
    steps(tmp_path / "mine_acl-grad_2", [(1, 1, 95), (2, 1, 95), (3, 2, "nan"), (4, 2, 80)])
    (tmp_path / "mine_kd_2" / "steps.csv").unlink()
    printed = report(sorted(tmp_path.glob("mine_*")), capsys)
    shares, degrees = mean_sd([25, 75]), mean_sd([84.75, 90])
    assert row_of(printed, "acl-grad")[:4] == ["2", "8", shares, degrees]
    assert row_of(printed, "acl-grad")[4:] == ["75.0", "%", "25.0", "%"]
    assert printed.index("acl-grad  ") < printed.index("acl-cl  ")
    left_out = printed.split("Left out:")[1]
    assert "mine_ce_2: measured no angles: ce has one gradient" in left_out
    assert "--conflict observe" in left_out
    assert "mine_kd_2: is no run with a whole steps.csv (FileNotFoundError)" in left_out
    assert "#" not in printed
    assert "#" in report([*sorted(tmp_path.glob("mine_acl*")), "--all"], capsys)


def test_tasks_are_tables_of_their_own(tmp_path, capsys):
    for task in ("rte", "mrpc"):
        steps(tmp_path / task, [(1, 1, 80)])
        config = f'{{"task": "{task}", "method": "scl", "seed": 1}}'
        (tmp_path / task / "config.json").write_text(config)
    printed = report([tmp_path / "rte", tmp_path / "mrpc"], capsys)
    assert "rte: angle" in printed and "mrpc: angle" in printed


def test_committed_runs(capsys):
    """The repository's own, of early versions."""
    folder = comparison.__file__.replace("tools/comparison.py", "results/runs/multi")
    runs = sorted(angles.Path(folder).glob("rte_*_1"))
    if not runs:
        pytest.skip("no committed runs")
    printed = report(runs, capsys)
    assert row_of(printed, "acl-cl")[0] == "1"
    assert "rte_ce_1: measured no angles: ce has one gradient" in printed


# ------------------------------------------------------------------------------ bad input


BAD = {  # name: (folder -> what is made of it, word that the message must have)
    "angles of no run": (lambda folder: None, "there is no such folder"),
    "angles never measured": (lambda folder: steps(folder, [(1, 1, "")]), "--conflict observe"),
    "an angle that is no number": (lambda folder: steps(folder, [(1, 1, "x")]), "steps.csv"),
    "a torn config": (lambda folder: (steps(folder, [(1, 1, 80)]) / "config.json").write_text("{"),
                      "config.json is torn"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_runs_are_one_line_and_status_2(name, tmp_path, capsys):
    make, word = BAD[name]
    make(tmp_path / "run")
    status, printed, errors = outcome(angles_command.main, [tmp_path / "run"], capsys)
    assert (status, printed, errors.count("\n")) == (2, "", 1)
    assert word in errors


def test_steps_that_may_not_be_read(tmp_path, capsys, monkeypatch):
    steps(tmp_path, [(1, 1, 80)])

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(angles, "read_csv", refuse)
    status, _, errors = outcome(angles_command.main, [tmp_path], capsys)
    assert status == 2
    assert f"{tmp_path / 'steps.csv'} cannot be read: Permission denied" in errors


# ------------------------------------------------------------------------------ closing lines


def test_closing_lines_of_one_exit(tmp_path):
    data = make_data(tmp_path / "data")
    run = make_run(tmp_path / "with space" / "mine_ce_1", data, method="ce", exits_at="last")
    result, config = read_json(run / "result.json"), read_json(run / "config.json")
    lines = closing_lines(run, result, config)
    assert lines[0] == f"accuracy: {result['score']:.1f}   (majority class 72.5)"
    assert len(lines) == 2
    assert f"python exits.py '{run}' --predict -" in lines[1]
    assert shlex.split(lines[1])[3] == str(run)

    (run / "dev_logits.safetensors").unlink()
    assert closing_lines(run, result, config) == lines

    # A run from before result.json had it, without its labels.
    del result["majority_score"]
    assert closing_lines(run, result, config)[0] == f"accuracy: {result['score']:.1f}"


@pytest.mark.parametrize("rule", ["observe", "discard", "project", "weigh"])
def test_closing_lines_say_what_the_gate_did(rule, tmp_path):
    result = {"metric": "accuracy", "exit_scores": [50.0, 60.0], "exit_layers": [1, 2],
              "conflict_share": 0.25, "steps": 8, "dev": {"dev": {}}}
    config = {"conflict": rule, "conflict_at": "parameters"}
    lines = closing_lines(tmp_path, result, config)
    assert lines[1].startswith("steps in conflict (over 90 degrees): 25.0 % of 8, w")
    assert ("dropped" in lines[1]) == (rule == "discard")
    lines = closing_lines(tmp_path, result, {**config, "conflict_at": "features"})
    assert lines[1].endswith("mean angle over 90 degrees): 25.0 % of 8, where each exit decided "
                             "for itself")


def test_made_runs_are_like_real_ones(tmp_path):
    """Else the tests above would test folders that train.py does not make."""
    assert call_train([*DEMO, "--max-steps", "2", "--output", tmp_path]) == 0
    real = tmp_path / "demo_acl-cl_1"
    made = make_run(tmp_path / "made", make_data(tmp_path / "data"))
    for name in ("config.json", "result.json"):
        assert set(read_json(made / name)) <= set(read_json(real / name))
    names = {path.name for path in made.iterdir()} - {"steps.csv"}
    assert names <= {path.name for path in real.iterdir()}


def test_seeds_of_cross_entropy_are_one_setting_whatever_the_weight():
    class Made(NamedTuple):
        config: dict
        folder: Path = Path("runs/made")

    for method, count in {"ce": 1, "scl": 2}.items():
        runs = []
        for seed, weight in ((1, 0.1), (2, 0.5)):
            runs.append(Made({"method": method, "seed": seed, "weight": weight}))
        settings, _ = comparison.settings_of(runs)
        assert len(settings) == count


def test_runs_that_were_not_trained_alike_are_said_so(capsys):
    """100 after 1000 steps beside 50 after 60 would look like a better method."""
    class Made(NamedTuple):
        config: dict
        folder: Path = Path("runs/made")

    runs = [
        Made({"method": "ce", "epochs": 8, "max_steps": 60, "lr": 1e-3}),
        Made({"method": "acl-cl", "epochs": 8, "max_steps": None, "lr": 2e-3}),
    ]
    settings, _ = comparison.settings_of(runs)
    comparison.print_differences(settings)
    assert capsys.readouterr().out == (
        "Not trained alike, max_steps: 60 (ce), not set (acl-cl)\n"
    )
    settings, _ = comparison.settings_of([runs[0], Made({**runs[0].config, "method": "kd"})])
    comparison.print_differences(settings)
    assert capsys.readouterr().out == ""
