"""The trade-off from stored logits: by hand, against slow forms; the rules' settings; the clock."""

import pandas
import pytest
import torch

import exits
import glue
from tests import small
from tools import models, tradeoff
from tools.errors import InputError
from tools.run import read_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(small.make_run(tmp_path_factory.mktemp("run")))


# ---------------------------------------------------------------------------- a rule's setting


@pytest.mark.parametrize("rule, threshold, times, word", [
    ("entropy", None, None, "needs a threshold"),
    ("entropy", 0.5, 2, "no other setting"),
    ("entropy", -0.1, None, "from 0 to 1"),
    ("confidence", float("nan"), None, "from 0 to 1"),
    ("patience", None, 0, "1 or more"),
    ("pcee", None, 2, "a threshold and a patience"),
])
def test_make_rule_refuses(rule, threshold, times, word):
    with pytest.raises(InputError, match=word):
        tradeoff.make_rule(rule, threshold, times)


def test_a_rule_of_your_own_is_a_function_and_a_line(monkeypatch):
    """The README's margin, whose threshold may be above 1; the trade-off tries it, too."""
    def margin(logits, threshold):
        best = logits[-1].topk(2, dim=-1).values
        return best[:, 0] - best[:, 1] >= threshold

    monkeypatch.setattr(exits, "margin", margin, raising=False)
    monkeypatch.setitem(tradeoff.EXIT_RULES, "margin", ("threshold",))
    assert tradeoff.make_rule("margin", 2.0)(torch.tensor([[[3.0, 0.0]]])).tolist() == [True]
    logits = torch.randn(3, 40, 2)
    rows = tradeoff.trade_off(logits, torch.arange(40) % 2, [1, 2, 3], "accuracy")
    assert rows[rows.rule == "margin"].speedup.nunique() > 5


def test_the_setting_is_the_one_given_or_next_above_2x(run):
    given = {"rule": "pcee", "threshold": 0.5, "patience": 1}
    assert tradeoff.choose(run, **given) == given
    row = tradeoff.at_speedup(tradeoff.trade_off_of(run), "entropy", 2)
    expected = {"rule": "entropy", "threshold": row.threshold, "patience": None}
    assert tradeoff.choose(run, "entropy") == expected
    with pytest.raises(InputError, match="patience never reaches 2x"):
        tradeoff.choose(run, "patience")


def test_thresholds_are_shown_with_four_digits():
    setting = {"rule": "pcee", "threshold": 0.123456, "patience": 2}
    assert tradeoff.setting_text(setting) == "rule pcee, threshold 0.1235, patience 2"


# ------------------------------------------------------------------------------ the trade-off


def test_trade_off_by_hand():
    """Two exits, four samples.  Exit 1 is sure and right on samples 0 and 1, unsure and wrong on
    2, sure and wrong on 3."""
    one = torch.tensor([[4.0, -4], [-4, 4], [0.1, 0], [4, -4]])
    two = torch.tensor([[4.0, -4], [-4, 4], [-1, 1], [-1, 1]])
    labels = torch.tensor([0, 1, 1, 1])
    rows = tradeoff.trade_off(torch.stack([one, two]), labels, [1, 2], "accuracy")
    between = rows[(rows.rule == "entropy") & rows.threshold.between(0.01, 0.9)]
    numbers = between[["speedup", "mean_exit_layer", "score"]].drop_duplicates()
    assert numbers.values.tolist() == [[1.6, 1.25, 75]]


def test_at_speedup_is_chosen_by_speed_alone():
    rows = pandas.DataFrame({
        "rule": ["entropy"] * 5,
        "speedup": [3, 2.5, 2, 2, 1],
        "score": [90, 70, 60, 65, 99],
    }, index=[7] * 5)  # as where rows of several runs are put together
    assert tradeoff.at_speedup(rows, "entropy", 1.5).score == 60
    assert tradeoff.at_speedup(rows, "entropy", 3.1) is None
    assert tradeoff.at_speedup(rows, "patience", 1) is None


def test_settings_and_speeds():
    torch.manual_seed(0)
    labels = torch.randint(3, (40,))
    rows = tradeoff.trade_off(torch.randn(5, 40, 3), labels, [2, 3, 5, 8, 12], "accuracy")
    assert set(rows[rows.rule == "patience"].patience) == {1, 2, 3}
    assert set(rows[rows.rule == "pcee"].patience) == {2, 3, 4}
    assert (rows.speedup == 12 / rows.mean_exit_layer).all()
    assert rows.speedup.max() == 6


@pytest.mark.parametrize("K, metric", [(2, "accuracy"), (5, "macro_f1"), (150, "accuracy")])
def test_each_row_by_the_slow_way(K, metric):
    """The middle setting of each rule, sample for sample and exit for exit."""
    torch.manual_seed(K)
    logits, labels = 3 * torch.randn(4, 60, K), torch.randint(K, (60,))
    rows = tradeoff.trade_off(logits, labels, [1, 2, 3, 4], metric)
    for name, some in rows.groupby("rule"):
        row = some.iloc[len(some) // 2]
        setting = row[list(tradeoff.EXIT_RULES[name])]
        rule = tradeoff.make_rule(name, **setting)
        said, layers = [], []
        for sample in logits.split(1, dim=1):  # (4, 1, K)
            m = 0
            while m < 3 and not rule(sample[:m + 1]):
                m += 1
            said.append(sample[m, 0].argmax())
            layers.append(m + 1)
        assert row.mean_exit_layer == pytest.approx(sum(layers) / 60)
        assert row.score == pytest.approx(glue.METRICS[metric](torch.stack(said), labels))
    assert set(rows.rule) == {"entropy", "confidence", "patience", "pcee"}


# ----------------------------------------------------------------------------------- the clock


def test_the_clock_takes_turns_and_medians(run, monkeypatch):
    """One round's hiccup changes nothing, and the full model walks all layers."""
    calls = []

    def slow_at_times(model, batches, rule):
        calls.append(rule)
        seconds = {3: 1.0, 5: 3.0, 7: 90.0}.get(len(calls), 0.5)
        return seconds, 1.25

    monkeypatch.setattr(tradeoff, "time_once", slow_at_times)
    model, tokenizer = models.load_model(run.folder, run.config)
    split = glue.tokenize(tradeoff.dev_split(run), tokenizer, 16)
    rule = object()
    full, early, counted = tradeoff.clock(model, split, tokenizer, rule, 4, CPU, rounds=3)
    assert calls == [None, rule] * 4
    assert (full, early, counted) == (3.0, 0.5, 2 / 1.25)
