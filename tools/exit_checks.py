"""Wrong input to an exit rule, and a wrong answer of one: a ValueError instead of a wrong exit."""

import torch


def check_rule(logits, threshold=0.0, patience=1):
    """ValueError for input to which a rule would give a wrong answer without an error."""
    check_logits(logits)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be a number from 0 to 1, not {threshold}")
    if not isinstance(patience, int) or patience < 1:
        raise ValueError(f"patience must be a whole number of exits from 1, not {patience}")

    # Probabilities by mistake: one row of logits may be positive and sum to 1 by chance; six
    # rows hardly ever.
    m, n, _ = logits.shape
    if m * n < 6 or logits.is_meta or logits.min() < 0:
        return
    sums = logits.float().sum(dim=-1)
    if torch.allclose(sums, torch.ones_like(sums), atol=1e-2):
        raise ValueError("logits must come before the softmax; these are probabilities")


def check_logits(logits):
    """ValueError unless they are floating point (m, n, K) with two classes or more."""
    wanted = "floating point (m, n, K): exits, samples, two classes or more"
    if not isinstance(logits, torch.Tensor):
        raise ValueError(f"logits must be {wanted}; not {type(logits).__name__}")
    is_stack = logits.dim() == 3 and logits.is_floating_point()
    if not is_stack or logits.shape[0] == 0 or logits.shape[2] < 2:
        found = f"{logits.dtype} {tuple(logits.shape)}"
        raise ValueError(f"logits must be {wanted}; not {found}")


def check_answer(leave, n):
    """ValueError unless a rule's answer is (n,) bool.

    A rule may be user-written, and an answer of another shape would broadcast silently.
    """
    found = type(leave).__name__
    is_mask = False
    if isinstance(leave, torch.Tensor):
        found = f"{leave.dtype} {tuple(leave.shape)}"
        is_mask = leave.dtype == torch.bool and leave.shape == (n,)
    if not is_mask:
        raise ValueError(f"a rule must return torch.bool ({n},), one for each sample; not {found}")
