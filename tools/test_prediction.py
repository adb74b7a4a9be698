"""`python exits.py RUN --predict ..` and models.predict, on a run of each kind."""

import csv
import functools
import io
import os
import json
import shutil
import sys

import pandas
import pytest
import torch

import exits
import glue
from tools import exits_command, models, tradeoff
from tools.files import read_json, write_json, write_table
from tools.made_runs import ODD, make_data, make_run, outcome
from tools.testing import DEMO, call_train, texts

torch.set_num_threads(1)  # small tensors: a second thread only waits

KINDS = {  # name: (text columns, classes, options of make_run)
    "one text": (("sentence",), ("bad", "good"), {}),
    "two texts": (("question", "sentence"), ("bad", "good"), {}),
    "five classes of one's own": (("review",), ("1", "2", "3", "4", "a b\tc"), {}),
    "one exit": (("sentence",), ("bad", "good"), {"exits_at": "last", "method": "ce"}),
    "some exits": (("one", "two"), ("x", "y", "z"), {"exits_at": "1,3"}),
}


@pytest.fixture(scope="session")
def whole_runs(tmp_path_factory):
    """{kind: (run's folder, data's folder)}, not to be changed."""
    root = tmp_path_factory.mktemp("kinds")
    made = {}
    for number, (kind, (columns, classes, options)) in enumerate(KINDS.items()):
        data = make_data(root / f"data {number}", columns, classes)
        made[kind] = make_run(root / f"run {number}", data, **options), data
    return made


@pytest.fixture(params=KINDS)
def kind(request, whole_runs, tmp_path):
    """(run, data) of each kind, for the test to change."""
    run, data = whole_runs[request.param]
    return shutil.copytree(run, tmp_path / "run"), shutil.copytree(data, tmp_path / "data")


@pytest.fixture
def one_text(whole_runs, tmp_path):
    run, data = whole_runs["one text"]
    return shutil.copytree(run, tmp_path / "run"), shutil.copytree(data, tmp_path / "data")


@pytest.fixture
def two_texts(whole_runs, tmp_path):
    run, data = whole_runs["two texts"]
    return shutil.copytree(run, tmp_path / "run"), shutil.copytree(data, tmp_path / "data")


def predict(run, *options, capsys):
    """Standard output and error of the command; it must go well."""
    argv = [run, "--predict", *options]
    status, printed, errors = outcome(exits_command.main, argv, capsys)
    assert status == 0, errors
    return printed, errors


def read_answers(path, separator="\t"):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=separator))


def dev_samples(data):
    """Tuples of texts, with their quotes, tabs and newlines."""
    return texts(glue.load_task("mine", data)[1]["dev"])


def expected_answers(run, rule):
    """(label, confidence, exit layer) of each dev sample, from the logits the run stored."""
    config, _, logits, _ = tradeoff.load_run(run)
    index = torch.full((logits.shape[1],), len(logits) - 1)
    if rule is not None:
        index = exits.exit_indices(logits, rule)
    p = logits[index, torch.arange(len(index))].softmax(dim=-1)
    answers = []
    for i, row in enumerate(p):
        label = config["labels"][row.argmax()]
        answers.append((label, row.max().item(), config["exit_layers"][index[i]]))
    return answers


# ------------------------------------------------------------------------------ models.predict


@pytest.mark.parametrize("rule", [
    None,
    functools.partial(exits.entropy, threshold=0.6),
    functools.partial(exits.patience, patience=1),
])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_predict_equals_the_stored_logits(kind, rule, batch_size):
    run, data = kind
    loaded = models.load_run(run)
    samples = dev_samples(data)
    if len(loaded.config["text_columns"]) == 1:
        samples = [text for (text,) in samples]
    loaded.model.train()  # the caller's mode is the caller's
    predictions = models.predict(loaded, samples, rule, batch_size)
    assert loaded.model.training
    for prediction, expected in zip(predictions, expected_answers(run, rule), strict=True):
        label, confidence, exit_layer = expected
        assert (prediction.label, prediction.exit_layer) == (label, exit_layer)
        assert prediction.confidence == pytest.approx(confidence, abs=1e-4)


def test_samples_that_leave_are_not_computed(one_text):
    """The samples that each layer sees, counted."""
    run, data = one_text
    loaded = models.load_run(run)
    computed = []
    for layer in loaded.model.encoder.encoder.layer:
        layer.register_forward_hook(lambda module, inputs, output: computed.append(len(inputs[0])))
    rule = functools.partial(exits.entropy, threshold=0.6)
    samples = [text for (text,) in dev_samples(data)]
    models.predict(loaded, samples[:1], rule)  # early_exit looks at the layers once
    computed.clear()
    predictions = models.predict(loaded, samples, rule, batch_size=100)
    layers = [prediction.exit_layer for prediction in predictions]
    assert computed == [sum(layer >= m for layer in layers) for m in (1, 2, 3)]
    assert computed[0] > computed[1] > computed[2] > 0


@pytest.mark.parametrize("samples, word", [
    ("one string", "list"),
    (["a", "b"], "question and sentence"),
    ([("a", "b", "c")], "2 in all"),
    ([("a", None)], "2 in all"),
    ([("a",)], "2 in all"),
])
def test_predict_refuses_other_texts(two_texts, samples, word):
    loaded = models.load_run(two_texts[0])
    with pytest.raises(ValueError, match=word):
        models.predict(loaded, samples)
    assert models.predict(loaded, []) == []


# ------------------------------------------------------------------------------ a file


def test_a_file_of_each_kind(kind, capsys):
    run, data = kind
    options = ["--rule", "entropy", "--threshold", "0.6"]
    printed, _ = predict(run, data / "dev.csv", *options, capsys=capsys)
    answers = read_answers(data / "dev_predictions.tsv")
    rule = tradeoff.make_rule("entropy", 0.6)
    names = read_json(run / "config.json")["text_columns"]
    assert list(answers[0])[:4] == ["prediction", "confidence", "exit_layer", "milliseconds"]
    for answer, expected, sample in zip(answers, expected_answers(run, rule), dev_samples(data)):
        label, confidence, exit_layer = expected
        assert answer["prediction"] == label
        assert float(answer["confidence"]) == pytest.approx(confidence, abs=2e-4)
        assert int(answer["exit_layer"]) == exit_layer
        assert float(answer["milliseconds"]) > 0
        assert tuple(answer[name] for name in names) == sample
    assert len(answers) == 40
    assert f"wrote {data / 'dev_predictions.tsv'}" in printed
    assert "40 samples, mean exit layer" in printed
    table = pandas.read_csv(data / "dev_predictions.tsv", sep="\t", dtype=str)
    assert table.to_dict("records") == answers


def test_without_a_rule_the_full_model_answers(one_text, capsys):
    run, data = one_text
    _, errors = predict(run, data / "dev.csv", capsys=capsys)
    answers = read_answers(data / "dev_predictions.tsv")
    assert {answer["exit_layer"] for answer in answers} == {"3"}
    assert "the full model answers" in errors


def test_a_rule_alone_takes_the_setting_at_twice_the_speed(one_text, capsys):
    run, data = one_text
    _, errors = predict(run, data / "dev.csv", "--rule", "entropy", capsys=capsys)
    _, _, logits, labels = tradeoff.load_run(run)
    rows = tradeoff.trade_off(logits, labels, [1, 2, 3], "accuracy")
    row = tradeoff.at_speedup(rows, "entropy", 2)
    assert f"rule entropy, threshold {row['threshold']}" in errors
    answers = read_answers(data / "dev_predictions.tsv")
    mean = sum(int(answer["exit_layer"]) for answer in answers) / len(answers)
    assert mean == pytest.approx(row["mean_exit_layer"], abs=0.06)  # a tie may fall otherwise


def plain(number):
    return f"anna helped boris {number}", f"boris warned {number}"


def write_kind(path, samples, names):
    """The same samples as .tsv, .csv, .jsonl, .json, .parquet or .txt."""
    rows = [dict(zip(names, sample)) for sample in samples]
    if path.suffix == ".txt":
        text = "\n\n".join("\t".join(sample) for sample in samples) + "\r\n"
        path.write_text(text, newline="")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pandas.DataFrame(rows).to_parquet(path)
    else:
        separator = {".csv": ",", ".tsv": "\t"}[path.suffix]
        pandas.DataFrame(rows).to_csv(path, sep=separator, index=False)
    return path


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".json", ".parquet", ".txt"])
def test_every_kind_of_file(suffix, two_texts, tmp_path, capsys):
    run, _ = two_texts
    samples = [plain(number) for number in range(5)]
    path = write_kind(tmp_path / f"new{suffix}", samples, ["question", "sentence"])
    predict(run, path, "--output", tmp_path / "out.csv", capsys=capsys)
    answers = read_answers(tmp_path / "out.csv", ",")
    assert [(answer["question"], answer["sentence"]) for answer in answers] == samples
    predictions = models.predict(models.load_run(run), samples)
    assert [answer["prediction"] for answer in answers] == [p.label for p in predictions]


def test_a_txt_of_one_text_is_taken_whole(one_text, tmp_path, capsys):
    run, _ = one_text
    path = tmp_path / "new.txt"
    path.write_text("\ufeffa\ttab\n'quoted\" \nlast", encoding="utf-8")
    predict(run, path, capsys=capsys)
    answers = read_answers(tmp_path / "new_predictions.tsv")
    assert [answer["sentence"] for answer in answers] == ["a\ttab", "'quoted\" ", "last"]


def test_batches_give_the_same_answers(one_text, tmp_path, capsys):
    run, data = one_text
    outputs = []
    for batch_size in (1, 16):
        output = tmp_path / f"{batch_size}.tsv"
        options = ["--batch-size", batch_size, "--output", output, "--rule", "confidence"]
        predict(run, data / "dev.csv", *options, "--threshold", "0.8", capsys=capsys)
        answers = read_answers(output)
        outputs.append([(a["prediction"], a["exit_layer"], a["sentence"]) for a in answers])
    assert outputs[0] == outputs[1]


def test_our_own_tables_are_read_back(one_text, tmp_path, capsys):
    """What --predict wrote, with tabs, quotes and line ends in its texts, classified again."""
    run, _ = one_text
    texts = ["a\ttab", 'said "no"', '"quoted"', "two\nlines", "plain"]
    for number, some in enumerate((texts, [*texts, "a\rreturn"])):
        source = tmp_path / f"new{number}.csv"
        write_table([{"sentence": text} for text in some], source)
        answers = []
        for time in ("first", "again"):
            output = tmp_path / f"{time}{number}.tsv"
            predict(run, source, "--output", output, capsys=capsys)
            answers.append(read_answers(output))
            source = output
        for first, again in zip(*answers, strict=True):
            assert first | {"milliseconds": ""} == again | {"milliseconds": ""}
        assert [answer["sentence"] for answer in answers[0]] == some


def test_glues_own_column_names(whole_runs, tmp_path, capsys):
    """The download calls MRPC's columns otherwise than the hub, whose names the run has."""
    run = shutil.copytree(whole_runs["two texts"][0], tmp_path / "run")
    config = read_json(run / "config.json")
    config |= {"task": "mrpc", "text_columns": ["sentence1", "sentence2"]}
    write_json(config, run / "config.json")
    path = write_kind(tmp_path / "test.tsv", [plain(1)], ["#1 String", "#2 String"])
    predict(run, path, capsys=capsys)
    assert read_answers(tmp_path / "test_predictions.tsv")[0]["sentence1"] == plain(1)[0]


def test_a_trained_run(tmp_path, capsys):
    """What train.py leaves is what prediction reads."""
    assert call_train([*DEMO, "--max-steps", "2", "--output", tmp_path]) == 0
    path = tmp_path / "new.txt"
    path.write_text("anna thanked boris\tboris was thanked by anna\n")
    predict(tmp_path / "demo_acl-cl_1", path, "--rule", "patience", "--patience", "1",
            capsys=capsys)
    [answer] = read_answers(tmp_path / "new_predictions.tsv")
    assert answer["prediction"] in ("entailment", "not_entailment")
    assert answer["sentence2"] == "boris was thanked by anna"


# ------------------------------------------------------------------------------ the terminal


def test_lines_are_answered_at_once(two_texts, capsys, monkeypatch):
    """Each answer is there before the next line is asked for."""
    run, _ = two_texts
    capsys.readouterr()
    answers = []

    class Typed:
        lines = ["a\tb\n", "only one\n", "anna\tboris\r\n", "\n", "never\tread\n"]

        def readline(self):
            answers.append(capsys.readouterr().out)
            return self.lines.pop(0)

    monkeypatch.setattr(sys, "stdin", Typed())
    argv = [str(run), "--predict", "-", "--rule", "entropy", "--threshold", "0.6"]
    assert exits_command.main(argv) == 0
    assert Typed.lines == ["never\tread\n"]
    expected = models.predict(
        models.load_run(run), [("a", "b"), ("anna", "boris")],
        functools.partial(exits.entropy, threshold=0.6),
    )
    assert [bool(text) for text in answers] == [False, True, False, True]
    for text, prediction in zip((answers[1], answers[3]), expected):
        assert text.startswith(f"{prediction.label}   confidence {prediction.confidence:.2f}   ")
        assert f"layer {prediction.exit_layer} of 3" in text
        assert text.rstrip().endswith(" ms")


@pytest.mark.parametrize("typed", ["a\tb", "a\tb\n", "\udcff\tb\n", ""])
def test_ends_of_input(typed, two_texts, capsys, monkeypatch):
    raw = typed.encode("utf-8", "surrogateescape")
    stdin = io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    printed, errors = predict(two_texts[0], "-", capsys=capsys)
    assert printed.count("\n") == bool(typed)
    assert "type question, a tab, sentence and Enter" in errors


def test_a_rule_that_lets_nobody_leave_is_said(one_text, capsys):
    run, data = one_text
    strict = ["--rule", "entropy", "--threshold", "0"]
    printed, _ = predict(run, data / "dev.csv", *strict, capsys=capsys)
    assert "no sample left early; without --threshold" in printed
    (data / "dev_predictions.tsv").unlink()
    printed, _ = predict(run, data / "dev.csv", capsys=capsys)
    assert "no sample left early" not in printed


# ------------------------------------------------------------------------------ bad input


def test_an_encoder_that_early_exit_cannot_walk(tmp_path, capsys):
    data = make_data(tmp_path / "data")
    run = make_run(tmp_path / "run", data, kind="distilbert")
    argv = [run, "--predict", data / "dev.csv", "--rule", "entropy", "--threshold", "0.5"]
    status, _, errors = outcome(exits_command.main, argv, capsys)
    assert status == 2
    assert "distilbert" in errors
    assert "without --rule the full model answers" in errors
    assert not (data / "dev_predictions.tsv").exists()
    predict(run, data / "dev.csv", capsys=capsys)
    answers = read_answers(data / "dev_predictions.tsv")
    assert [answer["prediction"] for answer in answers] == [
        label for label, _, _ in expected_answers(run, None)
    ]


BAD = {  # name: (file name, its bytes or None for no file, options, word of the message)
    "no file": ("new.tsv", None, [], "no file"),
    "another kind": ("new.doc", b"x", [], ".txt"),
    "other columns": ("new.tsv", b"text\nA\n", [], "question and sentence"),
    "no rows": ("new.tsv", b"question\tsentence\n", [], "no rows"),
    "empty txt": ("new.txt", b"\n\n", [], "no lines"),
    "one text of two": ("new.txt", b"a\tb\nonly one\n", [], "line 2"),
    "a number for a text": ("new.jsonl", b'{"question": 3, "sentence": "a"}', [], "line 1"),
    "no text": ("new.jsonl", b'{"question": null, "sentence": "a"}', [], "line 1"),
    "not UTF-8": ("new.txt", b"\xff\xfe\tb\n", [], "UTF-8"),
    "a short row": ("new.tsv", b"question\tsentence\na\n", [], "line 2"),
    "threshold of the wrong rule": ("new.txt", b"a\tb\n", ["--rule", "patience", "--threshold",
                                                            "0.5"], "patience"),
    "more patience than exits": ("new.txt", b"a\tb\n", ["--rule", "patience", "--patience", "9"],
                                 "smaller --patience"),
    "threshold above 1": ("new.txt", b"a\tb\n", ["--threshold", "2"], "threshold"),
    "output without a folder": ("new.txt", b"a\tb\n", ["--output", "no/such/out.tsv"], "no/such"),
    "output of another kind": ("new.txt", b"a\tb\n", ["--output", "out.xlsx"], ".tsv or .csv"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line_status_2_and_nothing_written(name, two_texts, tmp_path, capsys,
                                                             monkeypatch):
    run, _ = two_texts
    monkeypatch.chdir(tmp_path)
    file, content, options, word = BAD[name]
    if content is not None:
        (tmp_path / file).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    status, printed, errors = outcome(exits_command.main, [run, "--predict", file, *options],
                                      capsys)
    lines = [line for line in errors.splitlines() if line.startswith("exits.py:")]
    assert (status, printed) == (2, "")
    assert len(lines) == 1 and word in lines[0]
    assert "Traceback" not in errors
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_may_not_be_written_is_said_first(one_text, capsys, monkeypatch):
    run, data = one_text
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    argv = [run, "--predict", data / "dev.csv"]
    status, printed, errors = outcome(exits_command.main, argv, capsys)
    assert (status, printed, errors.count("\n")) == (2, "", 1)
    assert f"{data} may not be written" in errors


@pytest.mark.parametrize("options", [[], ["--output", "mine.tsv"]])
def test_nothing_is_overwritten(options, one_text, tmp_path, capsys, monkeypatch):
    run, data = one_text
    monkeypatch.chdir(data)
    there = data / (options[1] if options else "dev_predictions.tsv")
    there.write_text("precious")
    status, _, errors = outcome(exits_command.main, [run, "--predict", "dev.csv", *options], capsys)
    assert status == 2
    assert f"{there.name} exists; remove it or choose another --output" in errors
    assert there.read_text() == "precious"


def test_a_run_without_its_model(one_text, capsys):
    run, data = one_text
    shutil.rmtree(run / "model")
    status, _, errors = outcome(exits_command.main, [run, "--predict", data / "dev.csv"], capsys)
    assert status == 2
    assert "does not hold its model" in errors


def test_odd_texts_are_in_the_samples(whole_runs):
    """Else the tests above would say nothing about quotes, tabs and newlines."""
    samples = dev_samples(whole_runs["one text"][1])
    assert all(any(odd in text for (text,) in samples) for odd in ODD)
