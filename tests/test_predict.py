"""`python -m tools.predict RUN FILE|-`: answers are those of training's evaluation, row for row."""

import io
import sys
from pathlib import Path

import pandas
import pytest
import torch
from transformers import BertTokenizer, DistilBertConfig, DistilBertModel

import exits
from tests import small
from tools import predict, tradeoff
from tools.report import write_table
from tools.run import read_run


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    return small.make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(whole_run, tmp_path, monkeypatch):
    """A run of two texts, used from an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return whole_run


def answers(capsys, run, file, *options):
    """The table that the command writes for a file of the working folder."""
    status, _, errors = small.answer(capsys, predict.main, run, file, *options)
    assert status == 0, errors
    written = f"{Path(file).stem}_predictions.tsv"
    return pandas.read_csv(written, sep="\t", dtype=str, na_filter=False)


def refused(capsys, *argv):
    """The one line that the command answers to bad input; nothing is on the screen."""
    status, out, errors = small.answer(capsys, predict.main, *argv)
    assert (status, out) == (2, "")
    [line] = [line for line in errors.splitlines() if line.startswith("tools.predict: ")]
    assert "Traceback" not in errors
    return line


# ------------------------------------------------------------------------ the same as in training


@pytest.mark.parametrize("two_texts", [True, False])
@pytest.mark.parametrize("habits", [
    {}, {"padding_side": "left", "model_input_names": ["input_ids"]},
])
def test_predictions_are_those_of_the_stored_logits(habits, two_texts, tmp_path):
    """Whatever the tokenizer does by itself, alone and in a batch, with early exit and without."""
    small.small_task(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *small.WORDS]
    vocabulary = {word: number for number, word in enumerate(words)}
    BertTokenizer(vocab=vocabulary, **habits).save_pretrained(tmp_path / "my model")
    if not two_texts:
        for path in (tmp_path / "my data").iterdir():
            pandas.read_csv(path).drop(columns="first").to_csv(path, index=False)
    dev = pandas.read_csv(tmp_path / "my data" / "dev.csv")
    texts = list(zip(dev["first"], dev.second)) if two_texts else dev.second.tolist()

    run = predict.load(small.make_run(tmp_path))
    logits = run.finished.logits
    threshold = exits.normalised_entropy(logits[0]).mean().item()
    early = tradeoff.make_rule("entropy", threshold=threshold)
    index = exits.exit_indices(logits, early)
    assert 0 < index.sum() < 10
    for rule, index in {early: index, None: torch.ones_like(index)}.items():
        p, classes = logits[index, torch.arange(10)].softmax(dim=-1).max(dim=-1)  # (R,), (R,)
        for batch_size in (1, 16):
            found = pandas.DataFrame(predict.predict(run, texts, rule, batch_size))
            assert found.label.tolist() == [run.finished.config["labels"][k] for k in classes]
            assert found.exit_layer.tolist() == (index + 1).tolist()
            assert found.confidence.tolist() == pytest.approx(p.tolist(), abs=1e-5)
    assert predict.predict(run, []) == []


def test_an_encoder_that_cannot_be_walked_answers_in_full(tmp_path, capsys, monkeypatch):
    small.small_task(tmp_path)
    config = DistilBertConfig(vocab_size=14, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    DistilBertModel(config).save_pretrained(tmp_path / "my model")
    run = small.make_run(tmp_path, "acl-cl", "--pooling", "mean")
    monkeypatch.chdir(tmp_path / "my data")
    line = refused(capsys, run, "dev.csv", "--rule", "entropy", "--threshold", "0.5")
    assert "cannot walk the layers of this distilbert encoder" in line
    assert not Path("dev_predictions.tsv").exists()
    assert len(answers(capsys, run, "dev.csv")) == 10


# -------------------------------------------------------------------------------------- a file


SAMPLES = [("anna helped", 'said "no"'), ("boris\ttab", "clara"), ("never", "two\nlines"),
           ("by", "a\rreturn"), ("", "by")]


def test_texts_are_given_back_as_they_were(run, tmp_path, capsys):
    """An empty cell is a text, too; and what the command wrote can be classified again."""
    pandas.DataFrame(SAMPLES, columns=["first", "second"]).to_parquet("new.parquet")
    found = answers(capsys, run, "new.parquet")
    assert list(found) == ["prediction", "confidence", "exit_layer", "first", "second"]
    assert list(zip(found["first"], found["second"])) == SAMPLES
    expected = predict.predict(predict.load(run), SAMPLES)
    assert found.prediction.tolist() == [prediction.label for prediction in expected]
    (tmp_path / "new_predictions.tsv").rename("again.tsv")
    assert answers(capsys, run, "again.tsv").equals(found)


def test_a_rule_of_your_own(run, tmp_path, capsys, monkeypatch):
    """The README's margin, whose threshold may be above 1: a function and a line."""
    def margin(logits, threshold):
        best = logits[-1].float().topk(2, dim=-1).values
        return best[:, 0] - best[:, 1] >= threshold

    monkeypatch.setattr(exits, "margin", margin, raising=False)
    monkeypatch.setitem(tradeoff.EXIT_RULES, "margin", ("threshold",))
    (tmp_path / "new.csv").write_text("first,second\nanna,by\n")
    found = answers(capsys, run, "new.csv", "--rule", "margin", "--threshold", "9")
    assert found.exit_layer.tolist() == ["2"]
    rows = tradeoff.trade_off_of(read_run(run))
    assert rows[rows.rule == "margin"].speedup.nunique() > 5


def test_earlier_answers_are_not_replaced(run, capsys, tmp_path):
    (tmp_path / "new.csv").write_text("first,second\nanna,by\n")
    answers(capsys, run, "new.csv")
    before = Path("new_predictions.tsv").read_bytes()
    assert "new_predictions.tsv exists" in refused(capsys, run, "new.csv")
    assert Path("new_predictions.tsv").read_bytes() == before
    assert small.call(predict.main, run, "new.csv", "--output", "other.tsv") == 0
    assert Path("other.tsv").read_bytes() == before


GOOD = b"first,second\na,b\n"
BAD = [  # file name, its bytes or None, options, words of the message
    ("new.csv", None, "", "new.csv is missing"),
    ("new.csv", b"text\nA\n", "", "first, second; its columns are text"),
    ("new.csv", b"first,second\n", "", "has no rows"),
    ("new.csv", b"first,second\na\n", "", "sample 1: second"),
    ("new.jsonl", b'{"first": ["a"], "second": "a"}', "", "is missing or no text"),
    ("new.csv", b"first,second\n\xe9,b\n", "", "UnicodeDecodeError"),
    ("new.csv", GOOD, "--rule patience", "never reaches 2x"),
    ("new.csv", GOOD, "--rule patience --threshold 1", "needs a patience, and no other"),
    ("new.csv", GOOD, "--rule pcee --patience 2", "needs a threshold and a patience"),
    ("new.csv", GOOD, "--threshold 0.5 --patience 2", "rule entropy needs a threshold, and no"),
    ("new.csv", GOOD, "--threshold nan", "must be from 0 to 1, not nan"),
    ("new.csv", GOOD, "--rule patience --patience 0", "must be 1 or more, not 0"),
    ("new.csv", GOOD, "--output nowhere/a.csv", "nowhere/a.csv exists, or has no folder"),
    ("-", None, "--output a.csv", "--output is for the answers to a FILE"),
]


@pytest.mark.parametrize("file, content, options, words", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(
    file, content, options, words, run, tmp_path, capsys
):
    if content is not None:
        (tmp_path / file).write_bytes(content)
    before = set(tmp_path.iterdir())
    assert words in refused(capsys, run, file, *options.split())
    assert set(tmp_path.iterdir()) == before


# ------------------------------------------------------------------------------ standard input


def test_each_line_has_its_answer(run, capsys, monkeypatch):
    """Or what it lacks: somebody who types may err."""
    typed = "anna\rby\tboris\r\nonly one\n\t\nnever\tclara ü".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="ascii"))
    status, out, errors = small.answer(capsys, predict.main, run, "-", "--rule", "entropy")
    assert status == 0
    assert "A line is first, a tab, second; Ctrl-C ends." in errors
    setting = tradeoff.setting_at_2x(read_run(run), "entropy")
    assert tradeoff.setting_text(setting) in errors
    samples = [("anna\rby", "boris"), ("never", "clara ü")]
    one, two = predict.predict(predict.load(run), samples, tradeoff.make_rule(**setting), 1)
    assert out.splitlines() == [
        f"{one.label}   confidence {one.confidence:.2f}   layer {one.exit_layer}",
        "a line must hold first, a tab, second",
        "a line must hold first, a tab, second",
        f"{two.label}   confidence {two.confidence:.2f}   layer {two.exit_layer}",
    ]


def test_bad_standard_input_is_one_line(run, capsys, monkeypatch):
    latin1 = io.TextIOWrapper(io.BytesIO(b"a\tb\n\xe9\tb\n"), encoding="latin-1")
    for stdin, words in {None: "is closed", latin1: "cannot read standard input: Unicode"}.items():
        monkeypatch.setattr(sys, "stdin", stdin)
        assert words in refused(capsys, run, "-")


def test_a_text_column_of_a_taken_name(tmp_path):
    """The answers stand in front, under names that no text column shares."""
    answers_table = pandas.DataFrame({"prediction": ["good"], "confidence": [0.5]})
    write_table(answers_table, tmp_path / "out.csv", pandas.DataFrame({"prediction": ["a text"]}))
    written = pandas.read_csv(tmp_path / "out.csv")
    assert list(written) == ["prediction", "confidence", "prediction_text"]
