"""exits.py beside test_acl.py: wrong arguments, extreme logits, and modes."""

import functools

import pytest
import torch

import exits
from tests.small import small_batch, small_model
from tools.errors import InputError

torch.set_num_threads(1)  # small tensors: a second thread only waits


@pytest.mark.parametrize("rule", [
    lambda logits: logits[-1, :, 0],  # numbers
    lambda logits: logits[-1] > 0,  # an answer for every class
])
def test_a_rule_that_answers_something_else(rule):
    with pytest.raises(ValueError, match=r"a rule must return torch.bool \(5,\)"):
        exits.exit_indices(torch.randn(6, 5, 3), rule)
    with pytest.raises(ValueError, match=r"a rule must return torch.bool \(5,\)"):
        exits.early_exit(small_model(), small_batch(5, 6), rule)


def test_a_models_other_arguments():
    with pytest.raises(ValueError, match="pooling must be cls or mean, not 'max'"):
        small_model(pooling="max")
    with pytest.raises(ValueError, match="num_labels must be 2 classes or more"):
        small_model(num_labels=1)
    with pytest.raises(InputError, match="no pooler of .CLS.: use --pooling mean"):
        small_model(kind="electra")


def test_entropy_is_finite_and_right():
    """Also where p = 1 and H = 0 to the last bit."""
    logits = torch.tensor([[1000.0, -1000], [0, 0], [1e30, 0], [60, 0], [3, 1]])
    p = logits.double().softmax(dim=-1)
    expected = -torch.xlogy(p, p).sum(dim=-1) / torch.tensor(2.0).log()
    torch.testing.assert_close(exits.normalised_entropy(logits).double(), expected, atol=1e-6,
                               rtol=1e-6)


def test_a_tie_with_the_threshold_leaves():
    """Also at the strictest thresholds there are, and at 1, which rounding must not exceed."""
    logits = torch.tensor([[[300.0, -300.0], [0.0, 0.0]]])
    assert exits.confidence(logits, threshold=1.0).tolist() == [True, False]
    assert exits.entropy(logits, threshold=0.0).tolist() == [True, False]
    for K in range(2, 40):
        assert exits.entropy(torch.zeros(1, 3, K), threshold=1.0).all(), K


def test_early_exit_in_train_mode_is_that_of_evaluation_mode():
    """Afterwards, or after an error, every part is in the mode it was in, a frozen one too."""
    model = small_model(num_layers=5, num_labels=3, dropout=0.5)
    batch = small_batch(12, 9)
    rule = functools.partial(exits.entropy, threshold=0.7)
    expected = exits.early_exit(model.eval(), batch, rule)
    model.train()
    model.encoder.embeddings.eval()
    modes = [module.training for module in model.modules()]
    found = exits.early_exit(model, batch, rule)
    assert all(map(torch.equal, found, expected))
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ZeroDivisionError):
        exits.early_exit(model, batch, lambda logits: 1 / 0)
    assert [module.training for module in model.modules()] == modes
