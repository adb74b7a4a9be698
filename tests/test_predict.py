"""`python -m tools.predict RUN FILE|-`: answers are those of training's evaluation, row for row."""

import io
import sys
from pathlib import Path

import pandas
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertTokenizer, DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

import exits
from tests import small
from tools import predict, tradeoff
from tools.run import read_run

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *small.WORDS]


def plain_tokenizer(with_special_tokens):
    """Without token types; with special tokens its pairs have them."""
    tokenizer = Tokenizer(models.WordLevel({w: n for n, w in enumerate(VOCABULARY)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if with_special_tokens:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]",
                                   unk_token="[UNK]")


def bert_tokenizer(**habits):
    return BertTokenizer(vocab={w: n for n, w in enumerate(VOCABULARY)}, **habits)


TOKENIZERS = {
    "usual": bert_tokenizer,
    "pads on the left": lambda: bert_tokenizer(padding_side="left"),
    "no mask, no token types": lambda: bert_tokenizer(model_input_names=["input_ids"]),
    "no token types": lambda: bert_tokenizer(model_input_names=["input_ids", "attention_mask"]),
    "plain": lambda: plain_tokenizer(with_special_tokens=False),
    "plain, with special tokens": lambda: plain_tokenizer(with_special_tokens=True),
}


def make_run(root, tokenizer=None, two_texts=True, *options):
    """A run of the small task on an encoder with this tokenizer."""
    small.small_task(root)
    if tokenizer is not None:
        tokenizer.save_pretrained(root / "my model")
    if not two_texts:
        for path in (root / "my data").iterdir():
            pandas.read_csv(path).drop(columns="first").to_csv(path, index=False)
    return small.make_run(root, "acl-cl", *options)


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {texts: make_run(root / str(texts), two_texts=texts == 2) for texts in (1, 2)}


@pytest.fixture
def two_texts(whole_runs, tmp_path, monkeypatch):
    """A run, in the working folder."""
    monkeypatch.chdir(tmp_path)
    return whole_runs[2]


@pytest.fixture
def one_text(whole_runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return whole_runs[1]


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
@pytest.mark.parametrize("name", TOKENIZERS)
def test_predictions_are_those_of_the_stored_logits(name, two_texts, tmp_path):
    """Whatever the tokenizer does by itself, alone and in a batch, with early exit and without."""
    run = predict.load(make_run(tmp_path, TOKENIZERS[name](), two_texts))
    logits = run.finished.logits
    texts = pandas.read_csv(tmp_path / "my data" / "dev.csv").drop(columns="label")
    at_once = tradeoff.make_rule("entropy", exits.normalised_entropy(logits[0]).mean().item())
    for rule in (None, at_once):
        index = torch.ones(10, dtype=torch.int64)  # of the last of two exits
        if rule is not None:
            index = exits.exit_indices(logits, rule)
            assert 0 < index.sum() < 10
        p, classes = logits[index, torch.arange(10)].softmax(dim=-1).max(dim=-1)  # (R,), (R,)
        labels = [run.finished.config["labels"][k] for k in classes]
        for batch_size in (1, 16):
            predictions = predict.predict(run, texts.values.tolist(), rule, batch_size)
            found = pandas.DataFrame(predictions)
            assert found.label.tolist() == labels
            assert found.exit_layer.tolist() == (index + 1).tolist()
            assert found.confidence.tolist() == pytest.approx(p.tolist(), abs=1e-5)


def test_from_python(one_text):
    run = predict.load(one_text)
    assert predict.predict(run, ["anna helped"]) == predict.predict(run, [("anna helped",)])
    assert predict.predict(run, []) == []
    with pytest.raises(TypeError, match="a list"):
        predict.predict(run, "anna helped")


def test_an_encoder_that_cannot_be_walked_answers_in_full(tmp_path, capsys, monkeypatch):
    small.small_task(tmp_path)
    config = DistilBertConfig(vocab_size=14, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    DistilBertModel(config).save_pretrained(tmp_path / "my model")
    run = make_run(tmp_path, None, True, "--pooling", "mean")
    monkeypatch.chdir(tmp_path / "my data")
    line = refused(capsys, run, "dev.csv", "--rule", "entropy", "--threshold", "0.5")
    assert "cannot walk the layers of this distilbert encoder" in line
    assert not Path("dev_predictions.tsv").exists()
    assert len(answers(capsys, run, "dev.csv")) == 10


# -------------------------------------------------------------------------------------- a file


SAMPLES = [("anna helped", 'said "no"'), ("boris\ttab", "clara"), ("never", "two\nlines"),
           ("by", "a\rreturn")]


def test_texts_are_given_back_as_they_were(two_texts, tmp_path, capsys):
    """And what the command wrote can be classified again."""
    pandas.DataFrame(SAMPLES, columns=["first", "second"]).to_parquet("new.parquet")
    found = answers(capsys, two_texts, "new.parquet")
    assert list(found) == ["prediction", "confidence", "exit_layer", "first", "second"]
    assert list(zip(found["first"], found["second"])) == SAMPLES
    expected = predict.predict(predict.load(two_texts), SAMPLES)
    assert found.prediction.tolist() == [prediction.label for prediction in expected]
    (tmp_path / "new_predictions.tsv").rename("again.tsv")
    assert answers(capsys, two_texts, "again.tsv").equals(found)


def test_there_are_as_many_answers_as_rows(one_text, capsys, tmp_path):
    """An empty cell is a text, too."""
    (tmp_path / "new.csv").write_text('second\nfine film\n""\nnasty\n')
    assert answers(capsys, one_text, "new.csv")["second"].tolist() == ["fine film", "", "nasty"]


def test_earlier_answers_are_not_replaced(one_text, capsys, tmp_path):
    (tmp_path / "new.csv").write_text("second\nfine film\n")
    answers(capsys, one_text, "new.csv")
    before = Path("new_predictions.tsv").read_bytes()
    assert "new_predictions.tsv exists" in refused(capsys, one_text, "new.csv")
    assert Path("new_predictions.tsv").read_bytes() == before
    assert small.call(predict.main, one_text, "new.csv", "--output", "other.tsv") == 0
    assert Path("other.tsv").read_bytes() == before


BAD = {  # name: (file name, its bytes or None, options, words of the message)
    "no file": ("new.csv", None, [], "new.csv is missing"),
    "other columns": ("new.csv", b"text\nA\n", [], "first, second; its columns are text"),
    "no rows": ("new.csv", b"first,second\n", [], "has no rows"),
    "no text": ("new.jsonl", b'{"first": ["a"], "second": "a"}', [], "no text"),
    "not UTF-8": ("new.csv", b"first,second\n\xe9,b\n", [], "UnicodeDecodeError"),
    "a threshold for patience": ("new.csv", b"first,second\na,b\n",
                                 ["--rule", "patience", "--threshold", "1"], "needs a patience"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(name, two_texts, tmp_path, capsys):
    file, content, options, words = BAD[name]
    if content is not None:
        (tmp_path / file).write_bytes(content)
    before = set(tmp_path.iterdir())
    assert words in refused(capsys, two_texts, file, *options)
    assert set(tmp_path.iterdir()) == before


# ------------------------------------------------------------------------------ standard input


def give(monkeypatch, content, is_typed=False):
    stdin = io.TextIOWrapper(io.BytesIO(content), encoding="ascii")
    monkeypatch.setattr(stdin, "isatty", lambda: is_typed, raising=False)
    monkeypatch.setattr(sys, "stdin", stdin)


def test_each_line_is_answered(two_texts, capsys, monkeypatch):
    give(monkeypatch, "anna\rby\tboris\r\nnever\tclara ü".encode())
    status, out, _ = small.answer(capsys, predict.main, two_texts, "-", "--rule", "entropy")
    samples = [("anna\rby", "boris"), ("never", "clara ü")]
    rule = tradeoff.make_rule(**tradeoff.choose(read_run(two_texts), "entropy"))
    expected = predict.predict(predict.load(two_texts), samples, rule, batch_size=1)
    assert status == 0
    assert out.splitlines() == [
        f"{label}   confidence {confidence:.2f}   layer {layer}"
        for label, confidence, layer in expected
    ]


def test_who_types_may_err(two_texts, capsys, monkeypatch):
    give(monkeypatch, b"only one\n\na\tb\n", is_typed=True)
    status, out, errors = small.answer(capsys, predict.main, two_texts, "-")
    assert (status, out.count("\n")) == (0, 1)
    assert "A line is first, a tab, second; Ctrl-C ends." in errors
    assert errors.count("a line must hold first, a tab, second") == 2


@pytest.mark.parametrize("content, words", [
    (None, "standard input is closed"),
    (b"a\tb\n\xe9\tb\n", "cannot read standard input: UnicodeDecodeError"),
    (b"a\tb\n\nc\td\n", "standard input, line 2 must hold"),
])
def test_bad_standard_input_is_one_line(content, words, two_texts, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    if content is not None:
        give(monkeypatch, content)
    status, _, errors = small.answer(capsys, predict.main, two_texts, "-")
    assert status == 2
    assert words in errors.splitlines()[-1]
    assert "Traceback" not in errors
