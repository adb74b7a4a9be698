"""Numbers that overflow, vanish or are none: half precision, zero vectors, NaN, shared tensors."""

import functools
import math

import pytest
import torch

import acl
import exits
import grad_surgery
from tools import angles
from tools.testing import small_batch, small_model, two_losses

# -------------------------------------------------------------------------------- losses


def all_losses(h, labels, label_embeddings, tau):
    return [
        acl.scl_loss(h, labels, tau),
        acl.acl_embed_loss(h, labels, label_embeddings, tau),
        acl.acl_cl_loss(h, h, labels, label_embeddings, tau),
    ]


@pytest.mark.parametrize("tau", [0.01, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "case", ["one sample", "all alone", "duplicates", "zero vector", "huge", "tiny"]
)
def test_degenerate_batches_are_finite_with_finite_gradients(case, dtype, tau):
    torch.manual_seed(1)
    h, labels = torch.randn(4, 8), torch.tensor([0, 1, 1, 2])
    if case == "one sample":
        h, labels = h[:1], labels[:1]
    if case == "all alone":
        h, labels = h[:3], torch.tensor([0, 1, 2])
    if case == "duplicates":
        h = h[:1].repeat(4, 1)
    if case == "zero vector":
        h[1] = 0
    h = h * {"huge": 1e15, "tiny": 1e-15}.get(case, 1)
    h = h.to(dtype).requires_grad_()
    label_embeddings = torch.randn(3, 8).requires_grad_()
    for loss in all_losses(h, labels, label_embeddings, tau):
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        gradients = torch.autograd.grad(loss, [h, label_embeddings], allow_unused=True)
        for gradient in gradients:
            assert gradient is None or gradient.isfinite().all()
    if case in ("one sample", "all alone"):
        assert acl.scl_loss(h, labels, tau).item() == 0


def test_a_zero_vector_gets_no_gradient():
    torch.manual_seed(0)
    h, label_embeddings = torch.randn(4, 8), torch.randn(3, 8)
    h[1] = 0
    h.requires_grad_()
    for loss in all_losses(h, torch.tensor([0, 1, 1, 2]), label_embeddings, 0.5):
        [gradient] = torch.autograd.grad(loss, h)
        assert gradient[1].tolist() == [0] * 8
        assert gradient.abs().max() < 100


def test_losses_stay_float32_under_autocast():
    torch.manual_seed(0)
    arguments = torch.randn(8, 16), torch.randint(3, (8,)), torch.randn(3, 16), 0.02
    plain = torch.stack(all_losses(*arguments))
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = torch.stack(all_losses(*arguments))
    assert torch.equal(plain, under_autocast)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_what_the_losses_are_given_is_not_rounded_under_autocast(pooling):
    model = small_model(pooling=pooling)
    with torch.autocast("cpu", torch.bfloat16):
        h, logits = model(small_batch(4, 7))
    assert logits.dtype == torch.bfloat16
    assert h.dtype == torch.float32
    assert (h != h.bfloat16().float()).float().mean() > 0.9


def test_kd_is_float32_for_bf16_logits():
    s, t = torch.randn(64, 3).bfloat16(), torch.randn(64, 3).bfloat16()
    loss = acl.kd_loss(s, t, 3.0)
    assert loss.dtype == torch.float32
    assert loss == acl.kd_loss(s.float(), t.float(), 3.0)
    assert acl.kd_loss(s, s, 3.0).item() == pytest.approx(0, abs=1e-6)


# ------------------------------------------------------------------------------- surgery

GATES = {
    "acl_grad": grad_surgery.acl_grad,
    "apply_rule": functools.partial(grad_surgery.apply_rule, rule="discard"),
}
each_gate = pytest.mark.parametrize("gate", GATES.values(), ids=GATES)


def assert_apart(a, b, gradient):
    """Both have this gradient, and clipping in place would not scale it twice."""
    assert a.grad.tolist() == b.grad.tolist() == [gradient] * 3
    a.grad.mul_(2)
    assert b.grad.tolist() == [gradient] * 3


@each_gate
def test_a_gradient_that_two_parameters_share_is_added_once(gate):
    """d(a + b) hands out one tensor as the gradient of a and of b."""
    a, b, c = (torch.zeros(3, requires_grad=True) for _ in range(3))
    gate((a + b).sum(), 2 * (a + b).sum(), [a, b], 1.0)
    assert_apart(a, b, 3)
    # A conflict; then only CE reaches a and b, and only the second loss.
    gate((a + b).sum(), -2 * (a + b).sum(), [a, b], 1.0)
    assert_apart(a, b, 1)
    gate((a + b).sum(), c.sum(), [a, b, c], 1.0)
    assert_apart(a, b, 1)
    gate(c.sum(), (a + b).sum(), [a, b, c], 1.0)
    assert_apart(a, b, 1)


@pytest.mark.parametrize("rule, gradient", [("observe", 1), ("project", -2), ("discard", -2)])
def test_a_dense_gradient_that_two_parameters_share(rule, gradient):
    """d((a + b - 1)^2) = -2 for both, one dense tensor where d(sum) above was an expanded 1.
    The second gradient, 3, is opposed, and nothing of it is left but under observe."""
    a, b = (torch.zeros(3, requires_grad=True) for _ in range(2))
    ce_loss, acl_loss = ((a + b - 1) ** 2).sum(), 3 * (a + b).sum()
    grad_surgery.apply_rule(ce_loss, acl_loss, [a, b], 1.0, rule)
    assert_apart(a, b, gradient)


@each_gate
def test_a_non_finite_cross_entropy_gradient_shows(gate):
    w = torch.zeros(2, requires_grad=True)
    gate((w * math.nan).sum(), w.sum(), [w], 1.0)
    assert w.grad.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_gate
def test_half_precision_is_summed_in_float32(gate, dtype):
    """In float16 the sum of four 300^2 is infinite and 1e-5^2 is 0."""
    w, ce_loss, acl_loss = two_losses([300.0] * 4, [300.0] * 4, dtype)
    assert gate(ce_loss, acl_loss, [w], 0.5) == pytest.approx(1)
    assert w.grad.tolist() == [450] * 4
    for sign in (1, -1):
        w, ce_loss, acl_loss = two_losses([1e-5], [sign * 1e-5], dtype)
        assert gate(ce_loss, acl_loss, [w], 1.0) == pytest.approx(sign)
        assert w.grad.item() == pytest.approx(2e-5 if sign == 1 else 1e-5, rel=0.01)


SCALES = [
    (torch.float16, (1e-7, 1e-4, 1.0, 3e4)),
    (torch.bfloat16, (1e-18, 1e-5, 1.0, 1e5, 1e17)),
    (torch.float32, (1e-18, 1e-5, 1.0, 1e5, 1e17)),
    (torch.float64, (1e-70, 1e-5, 1.0, 1e5, 1e70)),
]


@pytest.mark.parametrize("dtype, scales", SCALES)
@each_gate
def test_equal_gradients_are_kept_and_opposite_dropped_at_any_scale(gate, dtype, scales):
    for scale in scales:
        g_ce = torch.tensor([scale, -scale, scale], dtype=dtype).tolist()
        for sign in (1, -1):
            w, ce_loss, acl_loss = two_losses(g_ce, [sign * g for g in g_ce], dtype)
            assert gate(ce_loss, acl_loss, [w], 1.0) == pytest.approx(sign)
            expected = [2 * g for g in g_ce] if sign == 1 else g_ce
            assert w.grad.tolist() == expected


def test_an_angle_may_be_a_little_outside():
    assert angles.angle(1 + 1e-7) == 0
    assert angles.angle(-1 - 1e-7) == 180


ENTROPIES = [[1000.0, -1000], [-1000, 1000], [0, 0], [1e30, 0], [60, 0], [3, 1]]


@pytest.mark.parametrize("logits", ENTROPIES)
def test_entropy_is_finite_and_right(logits):
    difference = min(abs(logits[0] - logits[1]), 700)
    p = 1 / (1 + math.exp(-difference))
    expected = -sum(q * math.log(q) for q in (p, 1 - p) if q > 0) / math.log(2)
    value = exits.normalised_entropy(torch.tensor(logits)).item()
    assert value == pytest.approx(expected, abs=1e-6)
    assert 0 <= value <= 1


def test_a_tie_with_the_threshold_leaves():
    """p = 1 and H = 0 to the last bit, at the strictest thresholds there are."""
    logits = torch.tensor([[[300.0, -300.0], [0.0, 0.0]]])
    assert exits.confidence(logits, threshold=1.0).tolist() == [True, False]
    assert exits.entropy(logits, threshold=0.0).tolist() == [True, False]
    assert exits.entropy(logits, threshold=1.0).tolist() == [True, True]
    assert exits.pcee(logits, threshold=0.0, patience=1).tolist() == [True, False]
