"""exits.py beside test_acl.py: wrong arguments, extreme logits, and modes."""

import functools
import math

import pytest
import torch

import exits
from tests.small import small_batch, small_model
from tools.errors import InputError

torch.set_num_threads(1)  # small tensors: a second thread only waits
LOGITS = 3 * torch.randn(6, 5, 3)  # six exits, five samples, three classes

WRONG_ANSWERS = {
    "numbers": lambda logits: logits[-1, :, 0],
    "for every class": lambda logits: logits[-1] > 0,
}


@pytest.mark.parametrize("what", WRONG_ANSWERS)
def test_a_rule_that_answers_something_else(what):
    rule = WRONG_ANSWERS[what]
    with pytest.raises(ValueError, match=r"a rule must return torch.bool \(5,\)"):
        exits.exit_indices(LOGITS, rule)
    with pytest.raises(ValueError, match=r"a rule must return torch.bool \(5,\)"):
        exits.early_exit(small_model(), small_batch(5, 6), rule)


def test_a_models_other_arguments():
    with pytest.raises(ValueError, match="pooling must be cls or mean, not 'max'"):
        small_model(pooling="max")
    with pytest.raises(ValueError, match="num_labels must be 2 classes or more"):
        small_model(num_labels=1)
    with pytest.raises(InputError, match="no pooler of .CLS.: use --pooling mean"):
        small_model(kind="electra")


@pytest.mark.parametrize("logits", [[1000.0, -1000], [0, 0], [1e30, 0], [60, 0], [3, 1]])
def test_entropy_is_finite_and_right(logits):
    p = 1 / (1 + math.exp(-min(logits[0] - logits[1], 700)))
    expected = -sum(q * math.log(q) for q in (p, 1 - p) if q > 0) / math.log(2)
    value = exits.normalised_entropy(torch.tensor(logits)).item()
    assert value == pytest.approx(expected, abs=1e-6)


def test_a_tie_with_the_threshold_leaves():
    """p = 1 and H = 0 to the last bit, at the strictest thresholds there are."""
    logits = torch.tensor([[[300.0, -300.0], [0.0, 0.0]]])
    assert exits.confidence(logits, threshold=1.0).tolist() == [True, False]
    assert exits.entropy(logits, threshold=0.0).tolist() == [True, False]
    assert exits.entropy(logits, threshold=1.0).tolist() == [True, True]


def test_early_exit_in_train_mode_is_that_of_evaluation_mode():
    """Afterwards, or after an error, every part is in the mode it was in, a frozen one too."""
    model = small_model(num_layers=5, num_labels=3, dropout=0.5)
    batch = small_batch(12, 9)
    rule = functools.partial(exits.entropy, threshold=0.7)
    expected = exits.early_exit(model.eval(), batch, rule)
    model.train()
    model.encoder.embeddings.eval()
    modes = [module.training for module in model.modules()]
    logits, layers = exits.early_exit(model, batch, rule)
    assert torch.equal(logits, expected[0])
    assert torch.equal(layers, expected[1])
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ZeroDivisionError):
        exits.early_exit(model, batch, lambda logits: 1 / 0)
    assert [module.training for module in model.modules()] == modes


def test_threshold_1_lets_even_the_unsure_leave():
    """Equal logits have the normalised entropy 1, which rounding must not exceed."""
    for K in range(2, 40):
        assert exits.entropy(torch.zeros(1, 3, K), threshold=1.0).all(), K
