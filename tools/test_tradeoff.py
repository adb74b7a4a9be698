"""Trade-off and the report of `python exits.py RUN ..`: hand-worked cases, runs of every kind."""

import csv
import errno
import io
import os
import re
import shutil
import sys

import pandas
import pytest
import safetensors.torch
import torch

import exits
import glue
import train
from tools import comparison, exits_command, exits_report, models, tradeoff
from tools.command_line import InputError
from tools.files import mean_sd, read_csv, read_json, write_json, write_table
from tools.made_runs import ODD, make_data, make_run, outcome
from tools.testing import DEMO, Words, call_train, small_model, texts, words_split

torch.set_num_threads(1)  # small tensors: a second thread only waits
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, data):
    return make_run(tmp_path_factory.mktemp("run") / "mine_acl-cl_1", data)


@pytest.fixture
def run(tmp_path, whole_run):
    """A finished run that the test may change."""
    return shutil.copytree(whole_run, tmp_path / "runs" / whole_run.name)


def without_logits(run):
    (run / "dev_logits.safetensors").unlink()
    return run


def change_json(path, **values):
    write_json({**read_json(path), **values}, path)


def report(argv, capsys):
    """What `python exits.py ARGV` prints; it must go well."""
    status, printed, errors = outcome(exits_command.main, argv, capsys)
    assert status == 0, errors
    return printed


def line_of(printed, start):
    """The words behind the first line that starts so."""
    for line in printed.splitlines():
        if line.startswith(start):
            return line.removeprefix(start).split()
    raise AssertionError(f"no line starts with {start!r} in\n{printed}")


# ------------------------------------------------------------------------------ the trade-off


def test_trade_off_by_hand():
    """Two exits, four samples.  Exit 1 is sure and right on samples 0 and 1, unsure and wrong on
    2, sure and wrong on 3."""
    one = torch.tensor([[4.0, -4], [-4, 4], [0.1, 0], [4, -4]])
    two = torch.tensor([[4.0, -4], [-4, 4], [-1, 1], [-1, 1]])
    labels = torch.tensor([0, 1, 1, 1])
    rows = tradeoff.trade_off(torch.stack([one, two]), labels, [1, 2], "accuracy")
    between = []
    for row in rows:
        if row["rule"] == "entropy" and 0.01 < row["threshold"] < 0.9:
            between.append(row)
    assert between
    for row in between:
        assert row["mean_exit_layer"] == 1.25
        assert row["score"] == 75
        assert row["speedup"] == 2 / 1.25
        assert row["pareto"] == 1
    assert {row["rule"] for row in rows} == {"entropy", "confidence", "patience"}
    assert tradeoff.at_speedup(rows, "entropy", 2)["score"] == 50
    assert tradeoff.at_speedup(rows, "entropy", 2.1) is None
    assert tradeoff.at_speedup(rows, "entropy", 1.5)["speedup"] == 1.6


def test_at_speedup_is_chosen_by_speed_alone():
    pairs = ((3, 90), (2.5, 70), (2, 60), (2, 65), (1, 99))
    rows = [{"rule": "entropy", "speedup": speed, "score": score} for speed, score in pairs]
    assert tradeoff.at_speedup(rows, "entropy", 1.5) is rows[2]
    assert tradeoff.at_speedup(rows, "patience", 1) is None


def test_trade_off_settings_speed_and_front():
    torch.manual_seed(0)
    labels = torch.randint(3, (40,))
    rows = tradeoff.trade_off(torch.randn(5, 40, 3), labels, [2, 3, 5, 8, 12], "accuracy")
    assert {(row["rule"], row["patience"]) for row in rows} == {
        ("entropy", None), ("confidence", None), ("patience", 1), ("patience", 2),
        ("patience", 3), ("pcee", 2), ("pcee", 3), ("pcee", 4),
    }
    for row in rows:
        assert row["speedup"] == pytest.approx(12 / row["mean_exit_layer"])
        assert 2 <= row["mean_exit_layer"] <= 12
        others = [other for other in rows if other["rule"] == row["rule"]]
        better = [o for o in others if o["score"] > row["score"] and o["speedup"] >= row["speedup"]]
        faster = [o for o in others if o["score"] >= row["score"] and o["speedup"] > row["speedup"]]
        assert row["pareto"] == (not better and not faster)
    assert max(row["speedup"] for row in rows) == 6
    assert 0 < sum(row["pareto"] for row in rows) < len(rows)


def test_layers_must_be_the_logits_own():
    with pytest.raises(ValueError, match="3 exits"):
        tradeoff.trade_off(torch.randn(3, 4, 2), torch.tensor([0, 1, 0, 1]), [1, 2], "accuracy")


@pytest.mark.parametrize("K", [2, 5, 150])
@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "matthews"])
def test_any_number_of_classes(K, metric):
    """The first setting of each rule, by the slow way: sample for sample."""
    torch.manual_seed(K)
    logits, labels = 3 * torch.randn(4, 200, K), torch.randint(K, (200,))
    rows = tradeoff.trade_off(logits, labels, [1, 2, 3, 4], metric)
    for name in tradeoff.EXIT_RULES:
        row = [row for row in rows if row["rule"] == name][0]
        rule = tradeoff.make_rule(name, row["threshold"], row["patience"])
        said, layers = [], []
        for i in range(200):
            sample = logits[:, i:i + 1]
            m = next((m for m in range(3) if rule(sample[:m + 1])), 3)
            said.append(sample[m, 0].argmax())
            layers.append(m + 1)
        assert row["mean_exit_layer"] == pytest.approx(sum(layers) / 200)
        assert row["score"] == pytest.approx(glue.METRICS[metric](torch.stack(said), labels))


def test_logits_of_another_device():
    """Every step of the trade-off on a device that is not the CPU; meta has shapes alone."""
    logits = torch.zeros(3, 4, 2, device="meta")
    assert exits.exit_indices(logits, lambda so_far: so_far[-1, :, 0] > 0).device.type == "meta"

    class Elsewhere:
        """A tensor that must be fetched before it can be used."""

        def __init__(self, tensor):
            self.tensor = tensor

        def cpu(self):
            return self.tensor

        def __len__(self):
            return len(self.tensor)

    logits, labels = torch.randn(3, 8, 2), torch.randint(2, (8,))
    rows = tradeoff.trade_off(Elsewhere(logits), Elsewhere(labels), [1, 2, 3], "accuracy")
    assert rows == tradeoff.trade_off(logits, labels, [1, 2, 3], "accuracy")


@pytest.mark.parametrize("labels, metric, score", [
    ([0, 1, 1, 2], "accuracy", 50),
    ([0, 1, 1, 1], "f1", 2 * 3 / (2 * 3 + 1) * 100),
    ([0, 0, 1], "f1", 0),
    ([0, 1, 1, 2], "matthews", 0),
    ([0, 1, 1, 2], "macro_f1", (2 * 2 / (4 + 2)) / 3 * 100),
])
def test_majority_class_by_hand(labels, metric, score):
    assert tradeoff.majority_score(torch.tensor(labels), metric) == pytest.approx(score)


def test_a_rule_of_ones_own_takes_a_function_and_a_line(run, monkeypatch, capsys):
    """The README's margin, in nats: in the table, by --rule, with a threshold beyond 1."""
    def margin(logits, threshold):
        best = logits[-1].float().topk(2, dim=-1).values
        return best[:, 0] - best[:, 1] >= threshold

    monkeypatch.setattr(exits, "margin", margin, raising=False)
    monkeypatch.setitem(exits_command.EXIT_RULES, "margin", ("threshold",))
    assert tradeoff.make_rule("margin", 2.0)(torch.tensor([[[3.0, 0.0], [1.0, 0.0]]])).tolist() == [
        True, False]
    assert exits_command.main([str(run), "--all"]) == 0
    assert "margin" in capsys.readouterr().out
    assert exits_command.main([str(run), "--rule", "margin"]) == 0
    assert "margin at 2x" in capsys.readouterr().out


def test_methods_of_the_command_are_those_of_the_training():
    assert comparison.METHODS == tuple(train.METHODS)


def test_mean_sd():
    assert mean_sd([1, 2, 3]) == "2.0±1.0"
    assert mean_sd([1]) == "1.0"
    assert mean_sd([1, None]) == "-"


@pytest.mark.parametrize("mode", [True, False])
def test_clock_counts(mode):
    model, split = small_model().train(mode), words_split()

    def rule(logits):
        return logits[-1, :, 0] > logits[-1, :, 1]

    full, early, counted = tradeoff.clock(model, split, Words(), rule, 4, CPU, rounds=1)
    _, logits = exits.all_exits(model, split, Words(), CPU)
    index = exits.exit_indices(logits, rule)
    assert full > 0
    assert early > 0
    assert counted > 1
    assert counted == pytest.approx(3 / (index + 1).double().mean().item())
    assert model.training is mode


def test_the_clock_takes_turns_and_medians(monkeypatch):
    """One round's hiccup changes nothing, and the full model walks all layers."""
    calls = []

    def slow_at_times(model, batches, rule):
        calls.append(rule)
        seconds = {3: 1.0, 5: 3.0, 7: 90.0}.get(len(calls), 0.5)
        return seconds, 2.0

    monkeypatch.setattr(tradeoff, "time_once", slow_at_times)
    model, split, rule = small_model(), words_split(), object()
    full, early, counted = tradeoff.clock(model, split, Words(), rule, 4, CPU, rounds=3)
    assert calls == [None, rule] * 4
    assert (full, early, counted) == (3.0, 0.5, 1.5)


# ------------------------------------------------------------------------------ one run


def test_stored_logits_are_the_models(run, data):
    config, result, logits, labels = tradeoff.load_run(run)
    loaded = models.load_run(run)
    dev = tradeoff.dev_split(run, config, result, labels)
    tokens = glue.tokenize(dev, loaded.tokenizer, config["max_length"])
    _, again = exits.all_exits(loaded.model, tokens, loaded.tokenizer, CPU)
    assert torch.equal(again, logits)
    assert dev["label"][:] == labels.tolist()
    assert not loaded.model.training


def test_the_table_at_a_glance(run, capsys):
    _, result, logits, labels = tradeoff.load_run(run)
    rows = tradeoff.trade_off(logits, labels, [1, 2, 3], "accuracy")
    printed = report([run], capsys)
    assert f"{run}: acl-cl on mine, accuracy on 40 dev samples" in printed
    assert line_of(printed, "full model") == [f"{result['score']:.1f}", "3.00", "1.00x"]
    for speed in ("1.5", "2", "3"):
        row = tradeoff.at_speedup(rows, "entropy", float(speed))
        layer, speedup = f"{row['mean_exit_layer']:.2f}", f"{row['speedup']:.2f}x"
        assert line_of(printed, f"entropy at {speed}x") == [f"{row['score']:.1f}", layer, speedup]
    assert printed.count("majority class") == 2
    assert line_of(printed, "majority class") == ["72.5"]
    assert [line_of(printed, f"{layer}  ") for layer in (1, 2, 3)] == [
        [f"{score:.1f}"] for score in result["exit_scores"]
    ]
    assert "instead of the" in printed
    assert f"python exits.py {run} --all" in printed
    assert len(printed.splitlines()) < 25
    assert max(map(len, printed.replace(str(run), "RUN").splitlines())) <= 100


def test_the_rule_asked_for(run, capsys):
    printed = report([run, "--rule", "pcee"], capsys)
    assert "pcee at 1.5x" in printed
    assert "entropy" not in printed


def test_all_shows_every_rule_and_the_front(run, capsys):
    printed = report([run, "--all"], capsys)
    assert "Pareto front" in printed
    assert "patience" in printed and "pcee" in printed
    assert re.search("^confidence", printed, re.M) is None  # two classes: entropy says it
    rows = read_csv(run / "tradeoff.csv")
    front = [row for row in rows if row["rule"] == "entropy" and row["pareto"] == "1"]
    by_speed = sorted(front, key=lambda row: float(row["speedup"]))
    scores = [float(row["score"]) for row in by_speed]
    assert len(front) > 3
    assert scores == sorted(scores, reverse=True)


def test_more_than_two_classes_show_confidence(tmp_path, capsys):
    many = make_data(tmp_path / "data", columns=("one", "two"), classes=tuple("abcde"))
    run = make_run(tmp_path / "mine_acl-cl_1", many)
    assert "confidence at 1.5x" in report([run, "--all"], capsys)


def test_tradeoff_csv_reads_back_as_it_was(run, capsys):
    _, _, logits, labels = tradeoff.load_run(run)
    report([run], capsys)
    rows = tradeoff.trade_off(logits, labels, [1, 2, 3], "accuracy")
    assert tradeoff.read_tradeoff(run / "tradeoff.csv") == rows
    assert read_csv(run / "tradeoff.csv")[-1]["patience"] == "2"  # a whole number, not 2.0


def test_one_exit(tmp_path, data, capsys):
    run = make_run(tmp_path / "mine_ce_1", data, method="ce", exits_at="last")
    printed = report([run, "--all"], capsys)
    assert "entropy at" not in printed
    assert "of the speed-ups alone: one exit" in printed
    assert line_of(printed, "majority class") == ["72.5"]
    assert not (run / "tradeoff.csv").exists()


def test_exits_command(tmp_path, capsys, monkeypatch):
    """A run that train.py made, through the file's own door."""
    argv = [*DEMO, "--max-steps", "12", "--output", tmp_path]
    assert call_train(argv) == 0
    run = tmp_path / "demo_acl-cl_1"
    config, result, logits, labels = tradeoff.load_run(run)
    monkeypatch.setattr(sys, "argv", ["exits.py", str(run), "--examples"])
    source = compile(open(exits.__file__).read(), exits.__file__, "exec")
    with pytest.raises(SystemExit) as stop:
        exec(source, {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert "acl-cl on demo, accuracy on 500 dev samples" in printed
    assert line_of(printed, "majority class") == ["50.0"]
    rows = tradeoff.trade_off(logits, labels, config["exit_layers"], "accuracy")
    chosen = tradeoff.at_speedup(rows, "entropy", 2)
    examples = pandas.read_csv(run / "examples.tsv", sep="\t")
    assert len(examples) == 500
    assert examples["exit_layer"].mean() == pytest.approx(chosen["mean_exit_layer"])


# ------------------------------------------------------------------------------ several runs


def test_the_natural_comparison(tmp_path, data, capsys):
    """Six methods with train.py's own defaults: four have one exit, two have all."""
    for method in reversed(comparison.METHODS):
        exits_at = "all" if method in ("acl-cl", "kd") else "last"
        for seed in (1, 2):
            folder = tmp_path / f"mine_{method}_{seed}"
            make_run(folder, data, method=method, exits_at=exits_at, seed=seed)
    runs = sorted(tmp_path.glob("mine_*"))
    printed = report(runs, capsys)
    places = [printed.index(f"\n{method} ") for method in comparison.METHODS]
    assert places == sorted(places)
    assert line_of(printed, "ce  ")[2:] == ["entropy", "-", "-", "-"]
    results = [read_json(tmp_path / f"mine_kd_{seed}" / "result.json") for seed in (1, 2)]
    scores = mean_sd(result["score"] for result in results)
    assert line_of(printed, "kd  ")[:3] == ["2", scores, "entropy"]
    assert "-" not in line_of(printed, "kd  ")
    assert line_of(printed, "exit at layer") == list(comparison.METHODS)
    assert line_of(printed, "1  ")[:4] == ["-"] * 4
    assert line_of(printed, "mean")[:4] == ["-"] * 4
    assert line_of(printed.split("exit at layer")[1], "majority class") == ["72.5"] * 6
    assert "mine_acl-embed_1 and 7 others: of the speed-ups alone: one exit" in printed
    assert max(map(len, printed.replace(str(tmp_path), "runs").splitlines())) <= 100


def test_settings_of_one_method_stand_apart(run, data, tmp_path, capsys):
    other = make_run(tmp_path / "other", data, seed=2, weight=0.5)
    off = make_run(tmp_path / "off", data, seed=3, an_older_option=False)  # as if not there
    printed = report([run, other, off], capsys)
    assert line_of(printed, "acl-cl (1)")[0] == "2"
    assert "acl-cl (1): weight 0.1\nacl-cl (2): weight 0.5" in printed


def test_the_same_run_twice_counts_once(run, data, capsys):
    printed = report([run, run], capsys)
    assert line_of(printed, "acl-cl  ")[0] == "1"
    assert f"{run}: the same options and seed as {run}" in printed


def test_other_dev_data_are_a_table_of_their_own(run, tmp_path, capsys):
    other_data = make_data(tmp_path / "data", count=30)
    other = make_run(tmp_path / "other", other_data, seed=2)
    printed = report([run, other], capsys)
    assert "on 40 dev samples" in printed and "on 30 dev samples" in printed
    assert printed.count("exit at layer") == 2


def test_what_cannot_be_shown_is_said(run, tmp_path, capsys):
    """An unfinished run, a torn one and a file among good ones cost a line each."""
    (tmp_path / "unfinished").mkdir()
    torn = shutil.copytree(run, tmp_path / "torn")
    (torn / "result.json").write_text("{")
    (tmp_path / "a.log").write_text("")
    unfinished = f"{tmp_path / 'unfinished'}/"
    printed = report([run, unfinished, torn, tmp_path / "a.log"], capsys)
    assert line_of(printed, "full model")
    left_out = printed.split("Left out:")[1]
    assert f"{tmp_path / 'unfinished'}, {tmp_path / 'a.log'}: is no finished run" in left_out
    assert "is torn" in left_out
    assert "torn (JSONDecodeError" in left_out

    status, printed, errors = outcome(exits_command.main, [torn, tmp_path / "a.log"], capsys)
    assert (status, printed, errors.count("\n")) == (2, "", 1)
    assert "nothing to show of the other 1" in errors


def test_examples_of_the_runs_that_have_them(run, data, tmp_path, capsys):
    """One exit never reaches 2x, which is no reason to leave the other run out."""
    one_exit = make_run(tmp_path / "one exit", data, method="ce", exits_at="last")
    printed = report([run, one_exit, "--examples"], capsys)
    assert (run / "examples.tsv").exists()
    assert not (one_exit / "examples.tsv").exists()
    assert f"{one_exit}: entropy never reaches 2x" in printed


def test_next_of_several_runs_is_one_that_leaves_early(run, data, tmp_path, capsys):
    """The last run of the command has one exit; the one before it has a trade-off to show."""
    one_exit = make_run(tmp_path / "one_exit", data, method="ce", exits_at="last")
    printed = report([run, one_exit], capsys)
    assert f"Next: python exits.py {run}   one run" in printed


# ------------------------------------------------------------------------------ files


def test_committed_runs_show_what_they_have(run, capsys):
    whole = report([run, "--all"], capsys)
    shutil.rmtree(run / "model")
    (run / "classifiers.safetensors").unlink()
    without_logits(run)
    printed = report([run, "--all"], capsys)
    for start in ("full model", "entropy at 2x", "2  ", "patience  ", "majority class"):
        assert line_of(printed, start) == line_of(whole, start)
    assert f"{run}: dev_logits.safetensors is not there: committed runs keep only" in printed
    assert "--predict" not in printed

    # Older ones do not say what the majority class scores.
    result = read_json(run / "result.json")
    del result["majority_score"]
    write_json(result, run / "result.json")
    assert line_of(report([run], capsys), "majority class") == ["-"]

    status, _, errors = outcome(exits_command.main, [run, "--examples"], capsys)
    assert status == 2
    assert "dev_logits.safetensors is not there" in errors


def test_committed_runs_of_early_versions(capsys):
    """The repository's own: no labels, metrics or text_columns in config.json."""
    folder = tradeoff.Path(__file__).parents[1] / "results" / "runs" / "multi"
    runs = sorted(folder.glob("rte_*_1"))
    if not runs:
        pytest.skip("no committed runs")
    before = {path: path.stat().st_mtime_ns for run in runs for path in run.iterdir()}
    printed = report(runs, capsys)
    assert "torn" not in printed
    assert line_of(printed, "ce  ")[0] == "1"
    assert "-" not in line_of(printed, "ce  ")
    assert {path: path.stat().st_mtime_ns for run in runs for path in run.iterdir()} == before
    assert tradeoff.task_of({"task": "mnli"})[0][1] == "neutral"
    assert tradeoff.task_of({"task": "mrpc"})[1] == ["sentence1", "sentence2"]


@pytest.mark.parametrize("name", ["result.json", "config.json", "dev_logits.safetensors"])
def test_files_that_may_not_be_read(name, run, capsys, monkeypatch):
    """Root may read everything, so the system's answer is made here."""
    opened = io.open

    def refuse(path, *arguments, **options):
        if str(path) == str(run / name):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr("io.open", refuse)
    monkeypatch.setattr("pathlib.Path.open", lambda path, *a, **o: refuse(path, *a, **o))
    monkeypatch.setattr("pathlib.Path.read_text", lambda path, **o: refuse(path, **o).read())
    status, _, errors = outcome(exits_command.main, [run], capsys)
    assert status == 2
    assert f"{run / name} cannot be read: Permission denied" in errors
    assert "torn" not in errors


def test_a_folder_that_may_not_be_written_still_reports(run, capsys, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    for number in (errno.EACCES, errno.EROFS):
        monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
        printed = report([run], capsys)
        assert line_of(printed, "full model")
        assert f"cannot write {run / 'tradeoff.csv'}: {os.strerror(number)}" in printed


def test_examples_say_what_the_exit_said(run, data, capsys):
    """And pandas and csv.reader give back every sample, quotes, tabs and newlines in its text."""
    argv = [run, "--examples", "--rule", "patience", "--patience", "1"]
    assert f"wrote {run / 'examples.tsv'}\n" in report(argv, capsys)
    assert f"{run / 'examples.tsv'}, in place of the earlier one" in report(argv, capsys)
    config, result, logits, labels = tradeoff.load_run(run)
    index = exits.exit_indices(logits, tradeoff.make_rule("patience", patience=1))
    said = logits[index, torch.arange(40)].softmax(dim=-1)
    expected = []
    for i, sample in enumerate(texts(glue.load_task("mine", data)[1]["dev"])):
        confidence = f"{said[i].max():.4f}"
        names = [config["labels"][said[i].argmax()], config["labels"][labels[i]]]
        expected.append([str(index[i].item() + 1), confidence, *names, *sample])
    assert len({row[0] for row in expected}) > 1
    assert all(any(odd in row[4] for row in expected) for odd in ODD)

    with open(run / "examples.tsv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert rows[0] == ["exit_layer", "confidence", "prediction", "label", "sentence"]
    assert rows[1:] == expected
    table = pandas.read_csv(run / "examples.tsv", sep="\t", dtype=str)
    assert table.values.tolist() == expected


@pytest.mark.parametrize("separator", [",", "\t"])
def test_every_table_we_write_reads_back(separator, tmp_path):
    hard = [*ODD, ",", '"', '""', "\t", "a\r\nb", "\\t", " x ", "#", "\ufeff", "'", "ü"]
    rows = [{"number": i, "text": text, 'a "name"': text} for i, text in enumerate(hard)]
    path = tmp_path / "table"
    write_table(rows, path, sep=separator)
    with open(path, newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file, delimiter=separator)) == [
            {name: str(cell) for name, cell in row.items()} for row in rows
        ]
    table = pandas.read_csv(path, sep=separator, encoding="utf-8")
    assert table.to_dict("records") == rows


def test_examples_from_another_folder(run, tmp_path, capsys, monkeypatch):
    """config.json keeps the data's whole path."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    argv = [os.path.relpath(run), "--examples", "--rule", "entropy", "--threshold", "0.5"]
    report(argv, capsys)
    assert (run / "examples.tsv").exists()


def test_text_columns_that_are_called_as_ours(tmp_path, capsys):
    odd = make_data(tmp_path / "data", columns=("prediction", "confidence"))
    run = make_run(tmp_path / "mine_acl-cl_1", odd)
    report([run, "--examples", "--rule", "entropy", "--threshold", "0.5"], capsys)
    header = list(read_csv_with_tabs(run / "examples.tsv")[0])
    assert header[1:4] == ["confidence", "prediction", "label"]
    assert header[4:] == ["prediction_text", "confidence_text"]


def read_csv_with_tabs(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_clock_command(run, capsys):
    printed = report([run, "--clock", "--rule", "entropy", "--threshold", "0.123456789"], capsys)
    assert "median of 5 rounds" in printed
    rows = read_csv(run / "clock.csv")
    assert [row["batch_size"] for row in rows] == ["1", "32"]
    assert rows[0]["threshold"] == "0.123456789"
    assert rows[0]["counted"] == rows[1]["counted"]
    assert list(rows[0])[-4:] == ["batch_size", "counted", "clocked", "full_ms_per_sample"]


def test_a_reader_that_goes_is_no_fault(run, capfd, monkeypatch):
    """python exits.py RUN | head -1"""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert exits_command.main([str(run), "--all"]) == 0
        sys.stdout.flush()  # as Python does when it ends
    assert "Traceback" not in capfd.readouterr().err


def test_a_terminal_of_ascii_alone(run, data, tmp_path, monkeypatch):
    """PYTHONIOENCODING=ascii: ± prints as ?"""
    other = make_run(tmp_path / "other", data, seed=2)
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    assert exits_command.main([str(run), str(other)]) == 0
    sys.stdout.flush()
    assert b"mean?sd over runs" in screen.buffer.getvalue()


# ------------------------------------------------------------------------------ bad input


def swap_json(name, **values):
    return lambda run: change_json(run / name, **values)


def foreign_classifiers(run):
    other = {"x": torch.zeros(1)}
    safetensors.torch.save_file(other, run / "classifiers.safetensors")


BAD_RUNS = {  # name: (what is done to the run, options, word that the message must have)
    "no run": (shutil.rmtree, [], "no finished run"),
    "torn result": (lambda run: (run / "result.json").write_text("{"), [], "torn"),
    "torn logits": (lambda run: (run / "dev_logits.safetensors").write_bytes(b"x" * 20), [],
                    "torn"),
    "config with wrong types": (swap_json("config.json", exit_layers=7), [], "torn"),
    "config of another task": (swap_json("config.json", task="cola"), [], "torn"),
    "logits of another run": (swap_json("result.json", exit_scores=[1, 2, 3]), [], "torn"),
    "unknown metric": (swap_json("result.json", metric="bleu"), [], "torn"),
    "model of another run": (foreign_classifiers, ["--clock"], "torn"),
    "torn tradeoff.csv": (lambda run: (without_logits(run) / "tradeoff.csv").write_text("a\n1\n"),
                          [], "tradeoff.csv is torn"),
    "no model": (lambda run: shutil.rmtree(run / "model"), ["--clock"], "model"),
    "data that changed": (swap_json("config.json", holdout=30), ["--examples"], "have changed"),
    "data that are gone": (swap_json("config.json", data="/nowhere/at/all"), ["--examples"],
                           "nowhere"),
    "gpu absent": (lambda run: None, ["--clock", "--device", "cuda"], "--device cuda"),
    "never that fast": (lambda run: None, ["--examples", "--rule", "patience"], "never reaches 2x"),
}


@pytest.mark.parametrize("name", BAD_RUNS)
def test_bad_runs_are_one_line_status_2_and_nothing_written(name, run, tmp_path, capsys):
    if name == "gpu absent" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    change, options, word = BAD_RUNS[name]
    change(run)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    status, printed, errors = outcome(exits_command.main, [run, *options], capsys)
    lines = [line for line in errors.splitlines() if line.startswith("exits.py:")]
    assert status == 2
    assert printed == ""
    assert len(lines) == 1 and word in lines[0]
    assert "Traceback" not in errors
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_rule_that_exits_py_lacks(monkeypatch):
    monkeypatch.setitem(tradeoff.EXIT_RULES, "margin", ("threshold",))
    with pytest.raises(InputError, match="exits.py has no function margin"):
        tradeoff.make_rule("margin", 2.0)


def test_a_setting_with_which_nobody_can_leave_early():
    """Of 3 exits the last always answers: patience needs 2 exits, and one more to agree."""
    tradeoff.check_early(tradeoff.make_rule("patience", patience=1), 3)
    tradeoff.check_early(tradeoff.make_rule("pcee", 0.0, 2), 3)
    for rule in (tradeoff.make_rule("patience", patience=2), tradeoff.make_rule("pcee", 0.0, 3)):
        with pytest.raises(InputError, match="before the last of the run's 3 exits"):
            tradeoff.check_early(rule, 3)


def test_a_clock_that_cannot_walk_says_so_before_the_table(tmp_path, capsys):
    folder = make_run(tmp_path / "run", make_data(tmp_path / "data"), kind="distilbert")
    setting = ["--rule", "entropy", "--threshold", "0.5"]
    status, printed, errors = outcome(exits_command.main, [folder, "--clock", *setting], capsys)
    assert (status, printed) == (2, "")
    assert "cannot walk the layers of this distilbert encoder" in errors
    assert not (folder / "clock.csv").exists()


BAD_OPTIONS = {  # name: (options, word that the message must have)
    "unknown rule": (["--rule", "guess"], "guess"),
    "patience for entropy": (["--clock", "--rule", "entropy", "--patience", "2"],
                             "rule entropy has no patience"),
    "threshold above 1": (["--clock", "--rule", "entropy", "--threshold", "1.5"], "threshold"),
    "threshold nan": (["--clock", "--rule", "entropy", "--threshold", "nan"], "threshold"),
    "patience 0": (["--clock", "--rule", "patience", "--patience", "0"], "patience"),
    "pcee without patience": (["--clock", "--rule", "pcee", "--threshold", "0.1"], "patience"),
    "a threshold for the table": (["--threshold", "0.1"], "--threshold"),
    "output for the table": (["--output", "x.tsv"], "--predict"),
    "prediction and a clock": (["--predict", "-", "--clock"], "--predict"),
    "output for a terminal": (["--predict", "-", "--output", "x.tsv"], "--output"),
    "batch size 0": (["--predict", "x.tsv", "--batch-size", "0"], "--batch-size"),
    "prediction with two runs": (["another", "--predict", "x.tsv"], "one run"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_one_line_and_status_2(name, tmp_path, capsys):
    options, word = BAD_OPTIONS[name]
    status, printed, errors = outcome(exits_command.main, [tmp_path / "run", *options], capsys)
    assert (status, printed, errors.count("\n")) == (2, "", 1)
    assert word in errors


@pytest.mark.parametrize("rule, threshold, patience", [
    ("guess", 0.5, None), ("entropy", None, None), ("entropy", -0.1, None),
    ("confidence", float("nan"), None), ("patience", None, None), ("patience", None, 1.5),
    ("pcee", 0.5, 0), ("pcee", None, 2),
])
def test_make_rule_refuses(rule, threshold, patience):
    with pytest.raises(InputError):
        tradeoff.make_rule(rule, threshold, patience)


def test_the_loaders_own_words_survive(run, monkeypatch):
    """A transformers release that an encoder does not fit must not be called a torn run."""
    def refuse(name):
        raise InputError("this encoder has no pooler")

    monkeypatch.setattr(models, "load_encoder", refuse)
    with pytest.raises(InputError, match="^this encoder has no pooler$"):
        models.load_run(run)
