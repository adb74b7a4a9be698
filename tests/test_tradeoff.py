"""The trade-off from stored logits, the setting next above 2x, the clock."""

import functools

import numpy
import pandas
import pytest
import torch

import exits
import glue
from tests import small
from tools import tradeoff
from tools.errors import InputError
from tools.run import read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(small.make_run(tmp_path_factory.mktemp("run")))


def test_the_setting_is_the_one_next_above_2x(run):
    row = tradeoff.at_speedup(tradeoff.trade_off_of(run), "entropy", 2)
    expected = {"rule": "entropy", "threshold": row.threshold}
    assert tradeoff.setting_at_2x(run, "entropy") == expected
    with pytest.raises(InputError, match="patience never reaches 2x"):
        tradeoff.setting_at_2x(run, "patience")


def test_numbers_of_numpy_are_numbers():
    rule = tradeoff.make_rule("patience", patience=numpy.int64(2))
    assert rule(torch.zeros(3, 4, 2)).all()


# ------------------------------------------------------------------------------ the trade-off


def rule_of(row):
    """The rule of a row, said with the names of exits.py."""
    settings = {"threshold": row.threshold, "times": row.patience}
    settings = {name: value for name, value in settings.items() if not pandas.isna(value)}
    return functools.partial(getattr(exits, row.rule), **settings)


@pytest.mark.parametrize("K, metric", [(2, "accuracy"), (5, "macro_f1")])
def test_each_row_is_what_its_rule_gives(K, metric):
    torch.manual_seed(K)
    logits, labels = 3 * torch.randn(5, 60, K), torch.randint(K, (60,))
    layers = torch.tensor([2, 3, 5, 8, 12])
    rows = tradeoff.trade_off(logits, labels, layers.tolist(), metric)
    for row in rows.astype(object).itertuples():
        index = exits.exit_indices(logits, rule_of(row))
        said = logits.argmax(dim=-1)[index, torch.arange(60)]
        assert row.mean_exit_layer == pytest.approx(layers[index].double().mean().item())
        assert row.speedup == 12 / row.mean_exit_layer
        assert row.score == glue.METRICS[metric](said, labels)
    assert rows.speedup.max() == 6
    assert rows.groupby("rule").size().to_dict() == {
        "entropy": 41, "confidence": 41, "patience": 3, "pcee": 3 * 21
    }
    assert set(rows[rows.rule == "patience"].patience) == {1, 2, 3}
    assert set(rows[rows.rule == "pcee"].patience) == {2, 3, 4}


def test_at_speedup_is_chosen_by_speed_alone():
    rows = pandas.DataFrame({
        "rule": ["entropy"] * 5,
        "speedup": [3, 2.5, 2, 2, 1],
        "score": [90, 70, 60, 65, 99],
    }, index=[7] * 5)  # as where rows of several runs are put together
    assert tradeoff.at_speedup(rows, "entropy", 1.5).score == 60
    assert tradeoff.at_speedup(rows, "entropy", 3.1) is None
    assert tradeoff.at_speedup(rows, "patience", 1) is None


# ----------------------------------------------------------------------------------- the clock


def test_the_clock_takes_turns_and_medians(monkeypatch):
    """The first round does not count, and one round's hiccup changes nothing."""
    calls = []

    def slow_at_times(model, batches, rule):
        calls.append(rule)
        seconds = {1: 90.0, 3: 1.0, 5: 3.0, 7: 90.0}.get(len(calls), 0.5)
        return seconds, 2.5

    monkeypatch.setattr(tradeoff, "time_once", slow_at_times)
    full, early, counted = tradeoff.clock(small.small_model(num_layers=5), [], "rule", rounds=3)
    assert calls == [None, "rule"] * 4
    assert (full, early, counted) == (3.0, 0.5, 2)
