"""`python -m tools.report RUN ..`: one run, several, what is left out, the files it writes."""

import json
import shutil

import pandas
import pytest

import exits
import train
from tests import small
from tools import report, tradeoff
from tools.run import read_run


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    """{name: folder}, not to be changed: a method twice, and one with one exit."""
    root = tmp_path_factory.mktemp("runs")
    return {
        "first": small.make_run(root),
        "second": small.make_run(root, seed=2),
        "one exit": small.make_run(root, "ce", "--exits", "last"),
    }


@pytest.fixture
def runs(whole_runs, tmp_path):
    """The same folders, for the test to change."""
    return {name: shutil.copytree(run, tmp_path / name) for name, run in whole_runs.items()}


def printed(capsys, *argv):
    """What the command prints; it must go well."""
    status, out, errors = small.answer(capsys, report.main, *argv)
    assert status == 0, errors
    return out


def cells(text, name):
    """The words behind the first line that starts with `name`, or has it behind a title."""
    for line in text.splitlines():
        _, found, rest = f" {line}".partition(f" {name} ")
        if found:
            return rest.split()
    raise AssertionError(f"no line has {name!r} in\n{text}")


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# ------------------------------------------------------------------------------------ one run


def test_one_run_at_a_glance(runs, capsys):
    run = read_run(runs["first"])
    text = printed(capsys, run.folder)
    assert "acl-cl on mine, accuracy on 10 dev samples, majority class 50.0\n" in text
    first, last = [f"{score:.1f}" for score in run.result["exit_scores"]]
    assert cells(text, "full model") == [last, "2.00", "1.00x"]
    row = tradeoff.at_speedup(tradeoff.trade_off_of(run), "entropy", 1.5)
    assert cells(text, "entropy at 1.5x") == [
        f"{row.score:.1f}", f"{row.mean_exit_layer:.2f}", f"{row.speedup:.2f}x",
        f"{row.threshold:.4g}",
    ]
    assert "entropy at 3x" not in text  # two layers are never that fast
    assert cells(text, "layer 1") == [first]
    assert cells(text, "layer 2") == [last]


def test_one_exit_says_why_there_is_no_speed_up(runs, capsys):
    text = printed(capsys, runs["one exit"], "--examples")
    assert "With one exit no sample leaves early" in text
    assert "entropy at" not in text
    assert "gradients" not in text  # ce has one
    assert not (runs["one exit"] / "examples.tsv").exists()


def test_the_rule_asked_for_and_all_of_them(runs, capsys):
    text = printed(capsys, runs["first"], "--rule", "confidence")
    assert "confidence at 2x" in text and "entropy at" not in text
    text = printed(capsys, runs["first"], "--all")
    assert "confidence at 2x" in text and "entropy at 2x" in text


# ------------------------------------------------------------------------------- the gradients


def test_angles_by_hand(runs, capsys):
    """A gradient that is not finite is a conflict; 90 degrees is none, and ends its bar."""
    angles = [0, 6, 7, 25, None, 25.5, 90, 180]
    table = pandas.DataFrame({"epoch": [1, 1, 1, 1, 1, 2, 2, 2], "angle": angles})
    table.to_csv(runs["first"] / "steps.csv", index=False)
    text = printed(capsys, runs["first"])
    assert cells(text, "% conflicts") == ["25.0"]
    assert cells(text, "in epoch 1") == ["20.0"]
    assert cells(text, "in epoch 2") == ["33.3"]
    assert cells(text, "mean angle") == ["47.6"]
    assert "Angle between both gradients at 8 steps" in text
    assert "(--conflict discard --conflict-at parameters)" in text
    bars = [line.split() for line in text.splitlines() if line.endswith("#")]
    assert [(bar[0], bar[2], bar[3], len(bar[4])) for bar in bars] == [
        ("0", "10", "3", 50), ("20", "30", "2", 34), ("80", "90", "1", 17), ("170", "180", "1", 17),
    ]


# -------------------------------------------------------------------------------- several runs


def test_methods_side_by_side(runs, capsys):
    """In the papers' order; ce has one exit, and one gradient."""
    text = printed(capsys, runs["second"], runs["first"], runs["one exit"])
    pair = [read_run(runs["first"]), read_run(runs["second"])]
    twice = [tradeoff.at_speedup(tradeoff.trade_off_of(run), "entropy", 2).score for run in pair]
    results = pandas.DataFrame([run.result for run in pair])
    score = read_run(runs["one exit"]).result["score"]
    assert text.index("ce x1") < text.index("acl-cl x2")
    assert cells(text, "full model") == [f"{score:.1f}", report.mean_sd(results.score)]
    assert cells(text, "entropy at 2x") == ["-", report.mean_sd(twice)]
    assert cells(text, "layer 1") == ["-", report.mean_sd(results.exit_scores.str[0])]
    assert cells(text, "mean") == ["-", report.mean_sd(results.mean_exit_score)]
    assert cells(text, "% conflicts") == ["-", report.mean_sd(100 * results.conflict_share)]
    assert "#" in printed(capsys, *runs.values(), "--all")  # each run's histogram


def test_settings_by_hand():
    """The seed, the machine and the place of the data make no setting; None is not there."""
    configs = pandas.DataFrame([
        {"method": "ce", "seed": 1, "lr": 1e-3, "device": "cpu", "data": "a"},
        {"method": "ce", "seed": 2, "lr": 1e-3, "device": "cuda", "data": "b", "max_steps": None},
        {"method": "scl", "seed": 1, "lr": 1e-3},
        {"method": "scl", "seed": 1, "lr": 2e-3, "max_steps": 9},
    ], dtype=object)
    assert report.settings(configs).tolist() == [
        "ce", "ce", "scl, lr 0.001, max_steps not set", "scl, lr 0.002, max_steps 9",
    ]


def test_what_was_not_trained_alike_stands_apart_and_is_said(runs, capsys):
    assert "Not trained alike" not in printed(capsys, *runs.values())
    change_json(runs["second"] / "config.json", epochs=9)
    text = printed(capsys, runs["first"], runs["second"])
    assert cells(text, "Not trained alike, epochs:") == (
        "2 (acl-cl, epochs 2 x1); 9 (acl-cl, epochs 9 x1)".split()
    )
    assert "  acl-cl, epochs 2 x1 acl-cl, epochs 9 x1\n" in text


def test_other_dev_samples_are_a_table_of_their_own(runs, tmp_path, capsys):
    other = small.make_run(tmp_path / "other", "acl-cl", "--holdout", 8)
    text = printed(capsys, runs["first"], other, runs["second"])
    assert "on 10 dev samples" in text and "on 8 dev samples" in text
    assert "acl-cl x2" in text and "acl-cl x3" not in text


def test_what_is_left_out_and_why(runs, tmp_path, capsys):
    """A folder of runs stands for all of them."""
    assert printed(capsys, tmp_path) == printed(capsys, *sorted(runs.values()))
    (runs["one exit"] / "result.json").unlink()
    shutil.rmtree(runs["second"])
    again = shutil.copytree(runs["first"], runs["second"])
    text = printed(capsys, tmp_path)
    assert f"Left out: {runs['one exit']} is no finished run" in text
    assert f"Left out: {again} has the options and the seed of another run" in text
    assert cells(text, "full model")[1:] == ["2.00", "1.00x"]  # as of one run


def test_methods_stand_in_the_order_of_train_py():
    assert report.METHODS == tuple(train.METHODS)


def test_mean_sd():
    assert report.mean_sd([1, 2, 3]) == "2.0±1.0"
    assert report.mean_sd([1]) == "1.0"
    assert report.mean_sd([1, None]) == report.mean_sd([1, float("nan")]) == "-"


# ---------------------------------------------------------------------------------- the files


def test_examples_say_what_the_exit_said(runs):
    run = read_run(runs["first"])
    threshold = exits.normalised_entropy(run.logits[0]).median().item()
    report.write_examples(run, {"rule": "entropy", "threshold": threshold})
    index = exits.exit_indices(run.logits, tradeoff.make_rule("entropy", threshold=threshold))
    assert 0 < index.sum() < 10
    names = run.config["labels"]
    table = pandas.read_csv(run.folder / "examples.tsv", sep="\t")
    assert len(table) == 10
    for i, sample in enumerate(tradeoff.dev_split(run)[0]):
        p, k = run.logits[index[i], i].softmax(dim=-1).max(dim=-1)
        assert table.loc[i].to_dict() == {
            "exit_layer": index[i] + 1,
            "confidence": round(p.item(), 4),
            "prediction": names[k],
            **sample,
            "label": names[sample["label"]],
        }


def test_the_clock_writes_what_it_measured(runs, capsys):
    text = printed(capsys, runs["first"], "--clock", "--examples")
    assert (runs["first"] / "examples.tsv").exists()
    table = pandas.read_csv(runs["first"] / "clock.csv")
    assert list(table) == ["rule", "threshold", "patience", "device", "batch_size", "counted",
                           "clocked", "full_ms_per_sample"]
    assert table.batch_size.tolist() == [1, 32]
    assert table.counted.tolist() == [2, 2]  # all leave at the first of two layers
    assert table.clocked.min() > 0
    assert "rule entropy, threshold" in text and "full_ms_per_sample" in text


# ----------------------------------------------------------------------------------- bad input


def other_dev_texts(run):
    """One word of a dev sample is another, its label is the same; the data of other runs stay."""
    copy = shutil.copytree(read_run(run).config["data"], run.parent / "other data")
    text = (copy / "dev.csv").read_text()
    (copy / "dev.csv").write_text(text.replace("anna", "clara", 1))
    change_json(run / "config.json", data=str(copy))


@pytest.mark.parametrize("change, options, words", [
    (shutil.rmtree, [], "no finished run"),
    (lambda run: shutil.rmtree(run / "model"), ["--clock"], "model: there is no such"),
    (other_dev_texts, ["--examples"], "have changed"),
])
def test_bad_input_is_one_line_and_nothing_is_written(change, options, words, runs, capsys):
    run = runs["first"]
    change(run)
    before = set(run.rglob("*"))
    status, _, errors = small.answer(capsys, report.main, run, *options)
    [line] = [line for line in errors.splitlines() if line.startswith("tools.report: ")]
    assert status == 2
    assert words in line
    assert "Traceback" not in errors
    assert set(run.rglob("*")) == before
