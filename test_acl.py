"""Tests of the paper's part, to be read as a second text: each thing told again, slowly.

    1  losses      the formulas one number at a time, and cases worked by hand
    2  surgery     two gradients of two numbers, then all of a model's against one long vector
    3  the model   every exit against the encoder's own hidden states
    4  early exit  each rule told again for one sample; dropping samples changes no answer
    5  training    what each method adds up, and one whole run of the demo

    pytest test_acl.py          (no network)

The rest is in tests/: data, runs and commands, reports, pages.
"""

import doctest
import functools
import inspect
import math

import pytest
import torch
import torch.nn.functional as F

import acl
import exits
import glue
import grad_surgery
import train
from tests.small import call, gradients_of, small_batch, small_model
from tools import geometry, models
from tools.run import read_run

torch.set_num_threads(1)  # small tensors: a second thread only waits
CPU = torch.device("cpu")


@pytest.mark.parametrize("module", [acl, grad_surgery, exits])
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


# -------------------------------------------------------------------------------- 1 losses


def slow_loss(anchors, keys, anchor_labels, key_labels, tau, same_items):
    """The formula of acl.py's docstring, one number at a time, in float64."""
    losses = []
    for i, anchor in enumerate(anchors):
        others = [j for j in range(len(keys)) if not (same_items and i == j)]
        positives = [j for j in others if key_labels[j] == anchor_labels[i]]
        if not positives:
            continue
        e = {j: torch.exp(slow_cosine(anchor, keys[j]) / tau) for j in others}
        denominator = sum(e.values())
        log_p = [torch.log(e[j] / denominator) for j in positives]
        losses.append(-sum(log_p) / len(positives))
    return sum(losses) / len(losses)


def slow_cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b))
    a_squared = sum(x * x for x in a)
    b_squared = sum(x * x for x in b)
    return dot / (a_squared.sqrt() * b_squared.sqrt())


def slow_scl(h, teacher_h, label_embeddings, labels, tau):
    return slow_loss(h, h, labels, labels, tau, same_items=True)


def slow_acl_embed(h, teacher_h, label_embeddings, labels, tau):
    items = [*h, *label_embeddings]
    item_labels = [*labels, *range(len(label_embeddings))]
    return slow_loss(items, items, item_labels, item_labels, tau, same_items=True)


def slow_acl_cl(h, teacher_h, label_embeddings, labels, tau):
    keys = [*teacher_h.detach(), *label_embeddings.detach()]
    key_labels = [*labels, *range(len(label_embeddings))]
    return slow_loss(h, keys, labels, key_labels, tau, same_items=False)


def fast_scl(h, teacher_h, label_embeddings, labels, tau):
    return acl.scl_loss(h, labels, tau)


def fast_acl_embed(h, teacher_h, label_embeddings, labels, tau):
    return acl.acl_embed_loss(h, labels, label_embeddings, tau)


def fast_acl_cl(h, teacher_h, label_embeddings, labels, tau):
    return acl.acl_cl_loss(h, teacher_h, labels, label_embeddings, tau)


PAIRS = {
    "scl": (fast_scl, slow_scl),
    "embed": (fast_acl_embed, slow_acl_embed),
    "cl": (fast_acl_cl, slow_acl_cl),
}
LABELS = {
    "mixed": [0, 1, 1, 2, 0, 1],
    "class alone": [0, 1, 1, 1, 0, 2],
    "class without samples": [0, 0, 2, 2, 0, 2],
    "one class": [1, 1, 1, 1, 1, 1],
}


@pytest.mark.parametrize("tau", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("name", PAIRS)
def test_loss_and_gradients_equal_the_slow_version(name, labels, tau):
    torch.manual_seed(0)
    tensors = [torch.randn(n, 5, dtype=torch.float64) for n in (6, 6, 3)]
    values, gradients = [], []
    for loss in PAIRS[name]:
        inputs = [x.clone().requires_grad_() for x in tensors]
        value = loss(*inputs, torch.tensor(labels), tau)
        values.append(value)
        gradients.append(torch.autograd.grad(value, inputs, allow_unused=True))

    fast, slow = values
    assert fast.dtype == torch.float32
    assert fast.shape == ()
    assert fast.item() == pytest.approx(slow.item(), rel=1e-5)
    for gradient, expected in zip(*gradients):
        assert (gradient is None) == (expected is None)
        assert gradient is None or torch.allclose(gradient, expected, atol=1e-5)


def test_losses_of_many_exits_are_those_of_each_exit():
    """h (.., N, d) gives (..): each loss and gradient as if the exit were alone."""
    torch.manual_seed(0)
    h = torch.randn(2, 3, 6, 5, requires_grad=True)
    label_embeddings = torch.randn(2, 3, 4, 5, requires_grad=True)
    teacher_h, teacher_label_embeddings = torch.randn(6, 5), torch.randn(4, 5)
    labels = torch.tensor([0, 1, 1, 3, 0, 1])

    def all_losses(h, label_embeddings):
        return torch.stack([
            acl.scl_loss(h, labels, 0.5),
            acl.acl_embed_loss(h, labels, label_embeddings, 0.5),
            acl.acl_cl_loss(h, teacher_h, labels, teacher_label_embeddings, 0.5),
            acl.kd_loss(h, teacher_h, 2.0),  # any numbers will do as logits
        ])

    together = all_losses(h, label_embeddings)
    assert together.shape == (4, 2, 3)
    weights = torch.arange(1.0, 25).view(4, 2, 3)
    gradients = torch.autograd.grad((weights * together).sum(), [h, label_embeddings])
    for i in range(2):
        for j in range(3):
            alone = [x[i, j].detach().requires_grad_() for x in (h, label_embeddings)]
            losses = all_losses(*alone)
            assert torch.allclose(together[:, i, j], losses, atol=1e-6)
            expected = torch.autograd.grad((weights[:, i, j] * losses).sum(), alone)
            for gradient, one in zip(gradients, expected):
                assert torch.allclose(gradient[i, j], one, atol=1e-5)


WRONG = [
    ("temperature", {"temperature": 0.0}),
    ("temperature", {"temperature": math.nan}),
    ("h must", {"h": [[1.0, 2.0]]}),
    ("h must", {"h": torch.zeros(3, 4, dtype=torch.int64)}),
    ("h must", {"h": torch.zeros(0, 4)}),
    ("label_embeddings must", {"label_embeddings": torch.zeros(4)}),
    ("label_embeddings", {"label_embeddings": torch.zeros(2, 5)}),
    ("labels must be int64", {"labels": [0, 1, 1]}),
    ("labels must be int64", {"labels": torch.eye(3, 2)}),
    ("labels must be int64", {"labels": torch.zeros(3, dtype=torch.int32)}),
    ("labels must be int64", {"labels": torch.zeros(2, dtype=torch.int64)}),
    ("labels must be 0..1", {"labels": torch.tensor([0, 1, 2])}),
    ("labels must be 0..1", {"labels": torch.tensor([0, 1, -100])}),
]


@pytest.mark.parametrize("words, change", WRONG)
def test_a_wrong_argument_is_named(words, change):
    arguments = {
        "h": torch.randn(3, 4),
        "labels": torch.tensor([0, 1, 1]),
        "label_embeddings": torch.randn(2, 4),
        "temperature": 0.5,
    }
    acl.acl_embed_loss(**arguments)
    with pytest.raises(ValueError, match=words):
        acl.acl_embed_loss(**(arguments | change))
    with pytest.raises(ValueError, match="teacher_h"):
        acl.acl_cl_loss(torch.randn(3, 4), torch.randn(2, 4), *list(arguments.values())[1:])


def test_scl_by_hand():
    """Class 0: two samples at right angles.  Class 1: one sample opposite the first.  tau 1.

    The first two are anchors: -log e^0 / (e^0 + e^-1) = log(1 + e^-1), and
    -log e^0 / (e^0 + e^0) = log 2.
    """
    h = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    loss = acl.scl_loss(h, torch.tensor([0, 0, 1]), 1.0)
    expected = (math.log(1 + math.exp(-1)) + math.log(2)) / 2
    assert loss.item() == pytest.approx(expected)


def test_acl_embed_by_hand():
    """One sample on its own label embedding, the other label embedding opposite.  tau 1.

    The sample and label embedding 0 are anchors, each log(1 + e^-2).  Label embedding 1 has no
    sample: no anchor, but a negative of both.
    """
    h = torch.tensor([[5.0, 0.0]])
    label_embeddings = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    loss = acl.acl_embed_loss(h, torch.tensor([0]), label_embeddings, 1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_acl_cl_by_hand():
    """One student on the label embedding of its class, its teacher at right angles.  tau 1.

    Keys: the teacher (cosine 0) and label embedding 0 (cosine 1), both positives, and label
    embedding 1 (cosine -1).  -log p is log s - 0 and log s - 1 with s = e^0 + e^1 + e^-1.
    """
    student = torch.tensor([[2.0, 0.0]])
    teacher = torch.tensor([[0.0, 1.0]])
    label_embeddings = torch.tensor([[3.0, 0.0], [-1.0, 0.0]])
    loss = acl.acl_cl_loss(student, teacher, torch.tensor([0]), label_embeddings, 1.0)
    s = 1 + math.exp(1) + math.exp(-1)
    assert loss.item() == pytest.approx(math.log(s) - 1 / 2)


def test_acl_cl_leaves_the_teacher_alone_and_moves_the_student():
    student, teacher = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    label_embeddings = torch.randn(2, 4, requires_grad=True)
    labels = torch.tensor([0, 1, 1])
    acl.acl_cl_loss(student, teacher, labels, label_embeddings, 0.5).backward()
    assert teacher.grad is None
    assert label_embeddings.grad is None
    assert student.grad.abs().sum() > 0


def test_label_embeddings_get_gradient_unless_detached():
    h = torch.randn(3, 4, requires_grad=True)
    label_embeddings = torch.randn(2, 4, requires_grad=True)
    labels = torch.tensor([0, 1, 1])
    acl.acl_embed_loss(h, labels, label_embeddings, 0.5).backward()
    assert label_embeddings.grad.abs().sum() > 0
    assert h.grad.abs().sum() > 0
    label_embeddings.grad = None
    acl.acl_embed_loss(h, labels, label_embeddings.detach(), 0.5).backward()
    assert label_embeddings.grad is None


def test_kd_equals_the_slow_version_and_detaches_the_teacher():
    torch.manual_seed(0)
    s = torch.randn(4, 3, requires_grad=True)
    t = torch.randn(4, 3, requires_grad=True)
    tau = 2.0
    loss = acl.kd_loss(s, t, tau)
    p, q = (t / tau).softmax(-1), (s / tau).softmax(-1)
    total = 0
    for i in range(4):
        for k in range(3):
            total += p[i, k] * (p[i, k] / q[i, k]).log()
    assert loss.item() == pytest.approx(tau**2 * total.item() / 4, rel=1e-5)

    # d/ds of KL(p || softmax(s / tau)) is (q - p) / tau; tau^2 in front, the mean over 4.
    loss.backward()
    assert t.grad is None
    assert torch.allclose(s.grad, (tau * (q - p) / 4).detach(), atol=1e-6)


# ------------------------------------------------------------------------------- 2 surgery


AGREE = ((1.0, 0.0), (3.0, 4.0))
OPPOSE = ((1.0, 0.0), (-1.0, 1.0))
RIGHT = ((1.0, 0.0), (0.0, 2.0))
ZERO = ((1.0, 0.0), (0.0, 0.0))
NAN = ((1.0, 0.0), (math.nan, 1.0))
INF = ((1.0, 0.0), (math.inf, 1.0))
AT_135 = -(0.5**0.5)


def two_losses(g_ce, g_acl, dtype=torch.float32):
    """A parameter of some numbers, and losses over it whose gradients are g_ce and g_acl."""
    w = torch.zeros(len(g_ce), dtype=dtype, requires_grad=True)
    ce_loss = (w * torch.tensor(g_ce, dtype=dtype)).sum()
    acl_loss = (w * torch.tensor(g_acl, dtype=dtype)).sum()
    return w, ce_loss, acl_loss


# Both gradients, whether a conflict drops the second, what .grad must be with lambda = 0.5, and
# the cosine.
BY_HAND = [
    (AGREE, True, (2.5, 2), 0.6),
    (AGREE, False, (2.5, 2), 0.6),
    (OPPOSE, True, (1, 0), AT_135),
    (OPPOSE, False, (0.5, 0.5), AT_135),
    (RIGHT, True, (1, 1), 0),
    (ZERO, True, (1, 0), 0),
    (NAN, True, (1, 0), math.nan),
    (NAN, False, (math.nan, 0.5), math.nan),
    (INF, True, (1, 0), math.nan),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("pair, drop, gradient, cosine", BY_HAND)
def test_surgery_by_hand(pair, drop, gradient, cosine, dtype):
    w, ce_loss, acl_loss = two_losses(*pair, dtype)
    value = grad_surgery.acl_grad(ce_loss, acl_loss, [w], 0.5, drop)
    assert w.grad.dtype == dtype
    assert w.grad.tolist() == pytest.approx(gradient, nan_ok=True)
    assert value == pytest.approx(cosine, nan_ok=True)
    degrees = math.nan if math.isnan(cosine) else math.degrees(math.acos(cosine))
    assert geometry.angle(value) == pytest.approx(degrees, nan_ok=True)
    assert geometry.telemetry([value], drop)["kept"] == (cosine >= 0 or not drop)


def test_parameters_of_one_loss_or_none():
    """The inner product runs over shared parameters.  Where one loss does not reach, the other's
    gradient stands alone; where none does, None: AdamW would decay a parameter with gradient 0."""
    for sign in (1, -1):
        shared, ce_only, acl_only, neither = (torch.zeros(1, requires_grad=True) for _ in range(4))
        parameters = [shared, ce_only, acl_only, neither]
        ce_loss = shared.sum() + 100 * ce_only.sum()
        acl_loss = sign * 2 * shared.sum() + 3 * acl_only.sum()
        assert grad_surgery.acl_grad(ce_loss, acl_loss, parameters, 0.5) == sign
        assert ce_only.grad.item() == 100
        assert neither.grad is None
        if sign == 1:
            assert shared.grad.item() == 2
            assert acl_only.grad.item() == 1.5
        else:
            assert shared.grad.item() == 1
            assert acl_only.grad is None


def test_no_shared_parameter_is_no_conflict():
    a, b = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    assert grad_surgery.acl_grad(a.sum(), b.sum(), [a, b], 1.0) == 0
    assert a.grad.item() == b.grad.item() == 1


def test_frozen_and_tied_parameters():
    """A frozen parameter is left out; one that is given twice counts once."""
    a, b = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    frozen = torch.zeros(1)
    ce_loss = (a + b + frozen).sum()
    acl_loss = (3 * a - 2 * b).sum()
    cosine = grad_surgery.acl_grad(ce_loss, acl_loss, [b, a, frozen, b, b], 1.0)
    assert cosine == pytest.approx(1 / (2 * 13) ** 0.5)  # <(1, 1), (3, -2)>
    assert (a.grad.item(), b.grad.item()) == (4, -1)
    assert frozen.grad is None


def test_gradients_of_a_sum_do_not_share_memory():
    """autograd gives the two terms of a + b one gradient; .grad must be two."""
    for drop_b in (1.0, -1.0):
        a, b = torch.zeros(3, 2, requires_grad=True), torch.zeros(3, 2, requires_grad=True)
        c = torch.arange(6.0).view(3, 2)
        grad_surgery.acl_grad((c * (a + b)).sum(), drop_b * (c * (a + b)).sum(), [a, b], 1.0)
        b_before = b.grad.clone()
        a.grad.mul_(5)
        assert torch.equal(b.grad, b_before)
        assert torch.equal(b.grad, c * (2 if drop_b > 0 else 1))

    # An expanded gradient becomes one that can be changed in place.
    a = torch.zeros(4, requires_grad=True)
    grad_surgery.acl_grad(a.sum(), -a.sum(), [a], 1.0)
    a.grad.mul_(2)
    assert a.grad.tolist() == [2, 2, 2, 2]


def test_a_gradient_is_laid_out_as_its_parameter():
    """Fused optimizers read both in the order of memory; autograd may return a transposed view.
    Five steps of AdamW must be those after .backward()."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3)
    after = []
    for gate in (False, True):
        torch.manual_seed(1)
        weights = [torch.randn(4, 3, requires_grad=True) for _ in range(2)]
        unused_by_ce = torch.randn(3, 4, requires_grad=True)
        parameters = [*weights, unused_by_ce]
        optimizer = torch.optim.AdamW(parameters, lr=0.1, fused=True)
        for _ in range(5):
            optimizer.zero_grad()
            y = x @ torch.stack(weights).mT  # (2, 5, 4)
            ce_loss, acl_loss = (y**2).sum(), (y + (x @ unused_by_ce)).tanh().sum()
            if gate:
                grad_surgery.acl_grad(ce_loss, acl_loss, parameters, 0.5, drop=False)
            else:
                (ce_loss + 0.5 * acl_loss).backward()
            for p in parameters:
                assert p.grad.stride() == p.stride()
            optimizer.step()
        after.append(torch.cat([p.detach().flatten() for p in parameters]))
    assert torch.allclose(*after, atol=1e-5)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("gate", ["acl_grad", "features"])
def test_micro_batches_add_up_like_backward(gate, set_to_none):
    """Two calls leave the sum of both; zero_grad starts anew, whichever way it clears."""
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=1.0)

    def add(sign):
        h = w[None, None, :] * torch.ones(1, 3, 2)  # (M, N, d) with M = 1
        ce_loss, acl_loss = (h * torch.tensor([1.0, 0.0])).sum(), sign * h.sum()
        if gate == "acl_grad":
            grad_surgery.acl_grad(ce_loss, acl_loss, [w], 0.5)
        else:
            grad_surgery.acl_grad_features(ce_loss, acl_loss[None], h, [w], 0.5)

    add(1)  # agrees: (3, 0) + 0.5 (3, 3)
    assert w.grad.tolist() == [4.5, 1.5]
    add(-1)  # conflicts: (3, 0)
    assert w.grad.tolist() == [7.5, 1.5]
    optimizer.zero_grad(set_to_none=set_to_none)
    add(1)
    assert w.grad.tolist() == [4.5, 1.5]


def test_lbfgs_calls_it_again_and_again():
    """A closure, as for .backward(): the minimum of w^2 + 0.5 (w - 2)^2 lies at w = 2 / 3."""
    w = torch.tensor([5.0], requires_grad=True)
    optimizer = torch.optim.LBFGS([w], line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        ce_loss, acl_loss = (w**2).sum(), ((w - 2) ** 2).sum()
        grad_surgery.acl_grad(ce_loss, acl_loss, [w], 0.5, drop=False)
        return (ce_loss + 0.5 * acl_loss).detach()

    optimizer.step(closure)
    assert w.item() == pytest.approx(2 / 3, abs=1e-4)


def test_wrong_arguments_leave_grad_alone():
    layer = torch.nn.Linear(2, 1)
    sparse = torch.nn.Embedding(3, 2, sparse=True)
    numbers = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    loss = layer(torch.ones(1, 2)).sum() + sparse(torch.tensor([1])).sum() + numbers.abs().sum()
    parameters = [*layer.parameters(), *sparse.parameters(), numbers]
    wrong = [
        (layer, 1.0),
        (layer.named_parameters(), 1.0),
        ([2 * layer.weight], 1.0),
        (sparse.parameters(), 1.0),
        ([numbers], 1.0),
        (layer.parameters(), -1.0),
        (layer.parameters(), math.nan),
    ]
    for given, weight in wrong:
        with pytest.raises(ValueError):
            grad_surgery.acl_grad(loss + 0, loss + 0, given, weight)
    with pytest.raises(ValueError, match="acl_loss"):
        grad_surgery.acl_grad(loss, torch.stack([loss, loss]), layer.parameters(), 1.0)
    assert all(p.grad is None for p in parameters)


def test_acl_grad_runs_when_pasted_alone():
    """As a reader copies it: the function, its two imports, nothing else."""
    source = inspect.getsource(grad_surgery.acl_grad)
    alone = {}
    exec("from collections import Counter\nimport torch\n" + source, alone)
    w, ce_loss, acl_loss = two_losses(*OPPOSE)
    assert alone["acl_grad"](ce_loss, acl_loss, [w], 0.5) == pytest.approx(AT_135)
    assert w.grad.tolist() == [1, 0]


def step_losses(model, method="acl-cl"):
    """h, L_CE and the summands of L_ACL of one batch; the same dropout in every call."""
    [args] = train.parse_args(["--task", "rte", "--method", method, "--exits", "all"])
    torch.manual_seed(3)
    h, logits = model.train()(small_batch(6, 9))
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    ce_loss, acl_losses = train.losses(args, model, h, logits, labels)
    return h, ce_loss, acl_losses


def assert_gradients(model, expected):
    for name, gradient in gradients_of(model).items():
        assert (gradient is None) == (expected[name] is None), name
        assert gradient is None or torch.allclose(gradient, expected[name], atol=1e-6), name


def test_without_dropping_both_gates_give_the_gradient_of_the_sum():
    model = small_model()
    _, ce_loss, acl_losses = step_losses(model)
    (ce_loss + 0.3 * acl_losses.sum()).backward()
    expected = gradients_of(model)

    model.zero_grad()
    _, ce_loss, acl_losses = step_losses(model)
    parameters = model.parameters()
    grad_surgery.acl_grad(ce_loss, acl_losses.sum(), parameters, 0.3, drop=False)
    assert_gradients(model, expected)

    model.zero_grad()
    h, ce_loss, acl_losses = step_losses(model)
    parameters = model.parameters()
    grad_surgery.acl_grad_features(ce_loss, acl_losses, h, parameters, 0.3, drop=False)
    assert_gradients(model, expected)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_models_gradients_equal_flat_vectors(sign):
    """Against one long vector of all parameters that both losses reach; with the second loss
    turned round as well, so that both cases come up."""
    model, weight = small_model(), 0.3
    pair = []
    for which in (0, 1):
        _, ce_loss, acl_losses = step_losses(model)
        model.zero_grad()
        [ce_loss, sign * acl_losses.sum()][which].backward()
        pair.append(gradients_of(model))
    g_ce, g_acl = pair
    shared = [name for name in g_ce if g_ce[name] is not None and g_acl[name] is not None]
    assert 0 < len(shared) < len(g_ce)  # the classifiers' biases are not among them
    a = torch.cat([g_ce[name].flatten() for name in shared]).double()
    b = torch.cat([g_acl[name].flatten() for name in shared]).double()
    cosine = (a @ b / a.norm() / b.norm()).item()

    model.zero_grad()
    _, ce_loss, acl_losses = step_losses(model)
    acl_loss = sign * acl_losses.sum()
    value = grad_surgery.acl_grad(ce_loss, acl_loss, model.parameters(), weight)
    assert value == pytest.approx(cosine, abs=1e-5)
    gradients = gradients_of(model)
    together = torch.cat([gradients[name].flatten() for name in shared]).double()
    assert torch.allclose(together, a + weight * b * (cosine >= 0), atol=1e-5)


def test_features_gate_decides_exit_by_exit():
    """Exit 0's loss agrees with CE, exit 1's opposes it, exit 2's is at a right angle to it: the
    first and the last are kept."""
    w = torch.randn(4, requires_grad=True)
    c = torch.randn(3, 5, 4)

    def forward():
        h = c * w  # (M, N, d)
        ce_loss = (h[:2] ** 2).sum()
        acl_losses = [2 * (h[0] ** 2).sum(), -(h[1] ** 2).sum(), h[2].sum()]
        return h, ce_loss, torch.stack(acl_losses)

    h, ce_loss, acl_losses = forward()
    cosines = grad_surgery.acl_grad_features(ce_loss, acl_losses, h, [w], 0.5)
    gradient, w.grad = w.grad, None
    assert cosines == pytest.approx([1, -1, 0])
    assert geometry.telemetry(cosines, drop=True)["kept"] == pytest.approx(2 / 3)

    h, ce_loss, acl_losses = forward()
    (ce_loss + 0.5 * (acl_losses[0] + acl_losses[2])).backward()
    assert torch.allclose(gradient, w.grad)


# ----------------------------------------------------------------------------- 3 the model

ENCODERS = [("bert", "cls"), ("roberta", "cls"), ("albert", "cls")]
ENCODERS += [("bert", "mean"), ("electra", "mean"), ("modernbert", "mean")]
each_encoder = pytest.mark.parametrize("kind, pooling", ENCODERS)


@pytest.mark.parametrize("ragged", [True, False])
@each_encoder
def test_every_exit_is_the_encoders_own_hidden_state_pooled(kind, pooling, ragged):
    model = small_model(kind=kind, pooling=pooling).eval()
    batch = small_batch(5, 8, ragged=ragged)
    h, logits = model(batch)
    assert h.shape == (3, 5, 16)
    assert logits.shape == (3, 5, 2)

    outputs = model.encoder(**batch, output_hidden_states=True)
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    for m in range(3):
        hidden = outputs.hidden_states[m + 1]  # 0 is the embeddings'
        if pooling == "cls":
            dense = getattr(model.encoder.pooler, "dense", model.encoder.pooler)
            expected = torch.tanh(hidden[:, 0] @ dense.weight.T + dense.bias)
        else:
            means = [tokens[:length].mean(dim=0) for tokens, length in zip(hidden, lengths)]
            expected = torch.stack(means)
        assert torch.allclose(h[m], expected, atol=1e-5)
        assert torch.allclose(logits[m], model.classifiers[m](expected), atol=1e-5)
    if pooling == "cls":
        assert torch.allclose(h[-1], outputs.pooler_output, atol=1e-6)


def test_classifiers_see_dropout_and_the_contrastive_losses_do_not():
    model = small_model(dropout=0.0).train()
    model.dropout.p = 0.5
    h, logits = model(small_batch(3, 6))
    torch.manual_seed(7)
    again, other_logits = model(small_batch(3, 6))
    assert torch.equal(h, again)
    assert not torch.allclose(logits, other_logits)
    torch.manual_seed(7)
    dropped = F.dropout(h, 0.5)
    for m, classifier in enumerate(model.classifiers):
        assert torch.allclose(other_logits[m], classifier(dropped[m]), atol=1e-5)


def test_one_exit_is_the_same_class_and_chosen_exits_are_numbered():
    assert small_model(exits_at="last").exit_layers == [3]
    model = small_model(exits_at="1,3").eval()
    assert model.exit_layers == [1, 3]

    # The same weights in a model with every exit.
    every = small_model().eval()
    weights = model.state_dict()
    weights["classifiers.2.weight"] = model.classifiers[1].weight
    weights["classifiers.2.bias"] = model.classifiers[1].bias
    weights["classifiers.1.weight"] = torch.zeros(2, 16)
    weights["classifiers.1.bias"] = torch.zeros(2)
    every.load_state_dict(weights)
    batch = small_batch(3, 6)
    assert torch.allclose(model(batch)[1], every(batch)[1][[0, 2]])


# ---------------------------------------------------------------------------- 4 early exit


# A rule by its name, with its settings; behind them the index of the exit that every sample takes,
# of five, where the settings leave no choice.
EXIT_RULES = [
    ("entropy", {"threshold": 0.7}, None),
    ("entropy", {"threshold": 1.0}, 0),
    ("entropy", {"threshold": 0.0}, 4),
    ("confidence", {"threshold": 0.8}, None),
    ("confidence", {"threshold": 0.0}, 0),
    ("confidence", {"threshold": 1.0}, None),
    ("patience", {"times": 1}, None),
    ("patience", {"times": 2}, None),
    ("patience", {"times": 9}, 4),
    ("pcee", {"threshold": 0.8, "times": 2}, None),
    ("pcee", {"threshold": 1.0, "times": 1}, 0),
    ("pcee", {"threshold": 1.0, "times": 4}, 3),
    ("pcee", {"threshold": 0.0, "times": 1}, None),
]
each_rule = pytest.mark.parametrize("number", range(len(EXIT_RULES)), ids=str)


def make_rule(number):
    name, settings, _ = EXIT_RULES[number]
    return functools.partial(getattr(exits, name), **settings)


def slow_exit(logits, name, threshold=None, times=None):
    """The exit's index for one sample, told again from the rule's definition.  logits: M lists."""
    same = low = 0
    before = None
    for m, numbers in enumerate(logits[:-1]):
        p = torch.tensor(numbers, dtype=torch.float64).softmax(dim=-1).tolist()
        entropy = -sum(q * math.log(q) for q in p if q > 0) / math.log(len(p))
        prediction = p.index(max(p))
        same = same + 1 if prediction == before else 0
        before = prediction
        if threshold is not None:
            low = low + 1 if entropy <= threshold else 0
        leaves = {
            "entropy": low >= 1,
            "confidence": threshold is not None and max(p) >= threshold,
            "patience": times is not None and same >= times,
            "pcee": times is not None and low >= times,
        }
        if leaves[name]:
            return m
    return len(logits) - 1


@each_rule
def test_rules_equal_the_slow_version(number):
    torch.manual_seed(4)
    logits = 2 * torch.randn(5, 60, 3)
    index = exits.exit_indices(logits, make_rule(number)).tolist()
    name, settings, only_exit = EXIT_RULES[number]
    assert index == [slow_exit(logits[:, i].tolist(), name, **settings) for i in range(60)]
    if only_exit is not None:
        assert set(index) == {only_exit}
    if settings.get("threshold") in (0.7, 0.8):
        assert len(set(index)) > 2  # the setting is a real one


CASES = [
    ("bert", "all", "cls", "ragged"),
    ("bert", "all", "mean", "ragged"),
    ("bert", "2,4,5", "cls", "ragged"),
    ("roberta", "all", "cls", "ragged"),
    ("electra", "all", "mean", "ragged"),
    ("bert", "all", "cls", "full"),
    ("bert", "all", "cls", "no mask"),
    ("bert", "all", "mean", "no mask"),
    ("bert", "all", "mean", "one sample"),
]


@each_rule
@pytest.mark.parametrize("kind, exits_at, pooling, case", CASES)
def test_early_exit_equals_stored_logits_and_one_by_one(kind, exits_at, pooling, case, number):
    rule = make_rule(number)
    model = small_model(5, exits_at, pooling, num_labels=3, kind=kind).eval()
    N = 1 if case == "one sample" else 12
    batch = small_batch(N, 9, ragged=case == "ragged")
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    if case == "no mask":
        del batch["attention_mask"]
    logits, layers = exits.early_exit(model, batch, rule)

    # From the logits of all exits.
    with torch.no_grad():
        _, stored = model(batch)
    index = exits.exit_indices(stored, rule)
    assert layers.tolist() == [model.exit_layers[i] for i in index.tolist()]
    assert torch.allclose(logits, stored[index, torch.arange(N)], atol=1e-4)

    # Alone and without padding.
    for i in range(N):
        sample = {name: tokens[i:i + 1, :lengths[i]] for name, tokens in batch.items()}
        alone, layer = exits.early_exit(model, sample, rule)
        assert layer.item() == layers[i].item()
        assert torch.allclose(alone[0], logits[i], atol=1e-4)


def test_finished_samples_are_dropped():
    """The samples that each layer computes, counted: no waiting until all agree."""
    model, batch = small_model(num_layers=5, num_labels=3).eval(), small_batch(12, 9)
    rule = functools.partial(exits.entropy, threshold=0.7)
    _, layers = exits.early_exit(model, batch, rule)
    counts = []
    for layer in model.encoder.encoder.layer:
        layer.register_forward_hook(lambda module, inputs, output: counts.append(len(inputs[0])))
    exits.early_exit(model, batch, rule)
    inside = [(layers >= number).sum().item() for number in range(1, 6)]
    assert counts == [n for n in inside if n > 0]
    assert len(set(counts)) > 2

    # Nobody leaves early.
    counts.clear()
    exits.early_exit(model, batch, None)
    assert counts == [12] * 5


def test_early_exit_remembers_all_exits_passed():
    """A rule over the whole history: samples dropped on the way must not disturb what the
    others' earlier exits said."""
    model, batch = small_model(num_layers=6, num_labels=3).eval(), small_batch(24, 9)
    with torch.no_grad():
        _, stored = model(batch)
    so_far = torch.arange(1, 7)[:, None]
    limit = (stored[..., 0].cumsum(dim=0) / so_far).quantile(0.8)
    passed = []

    def rule(logits):
        passed.append(len(logits))
        return logits[..., 0].mean(dim=0) > limit

    _, layers = exits.early_exit(model, batch, rule)
    assert passed == [1, 2, 3, 4, 5]
    assert len(layers.unique()) > 3
    assert (layers - 1).tolist() == exits.exit_indices(stored, rule).tolist()


# -------------------------------------------------------------------------------- 5 training

LABELS_OF_STEP = torch.tensor([0, 1, 1, 0, 1, 0])


def slow_losses(args, model, h, logits):
    """Cross-entropy and the second loss of each exit: two lists of M scalars."""
    tau = args.temperature
    label_embeddings = model.label_embeddings()
    ce_losses, second_losses = [], []
    for m in range(len(h)):
        ce_losses.append(F.cross_entropy(logits[m], LABELS_OF_STEP))
        second = 0 * h[m].sum()
        is_student = m < len(h) - 1
        if args.method == "scl":
            second = acl.scl_loss(h[m], LABELS_OF_STEP, tau)
        if args.method == "kd" and is_student:
            second = acl.kd_loss(logits[m], logits[-1], tau)
        if args.method.startswith("acl") and (args.students_embed or not is_student):
            second = acl.acl_embed_loss(h[m], LABELS_OF_STEP, label_embeddings[m], tau)
        if args.method == "acl-cl" and is_student:
            guide = acl.acl_cl_loss(h[m], h[-1], LABELS_OF_STEP, label_embeddings[-1], tau)
            second = second + guide
        second_losses.append(second)
    return ce_losses, second_losses


def gradients(loss, tensors):
    """The gradient for each tensor, None where there is none, as one forward's graph gives it."""
    return torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)


def cosine_of(g_ce, g_acl):
    """Over the tensors that both losses reach."""
    pairs = [(a, b) for a, b in zip(g_ce, g_acl) if a is not None and b is not None]
    a = torch.cat([a.flatten() for a, _ in pairs])
    b = torch.cat([b.flatten() for _, b in pairs])
    return F.cosine_similarity(a, b, dim=0).item()


STEPS = [
    ("ce", "", "none parameters"),
    ("scl", "--weight 0.3", "none parameters"),
    ("scl", "--weight 0.3", "observe parameters"),
    ("scl", "--weight 0.3", "discard parameters"),
    ("scl", "--weight 0.3 --exit-weights uniform", "observe features"),
    ("scl", "--weight 0.3", "discard features"),
    ("acl-embed", "", "none parameters"),
    ("acl-grad", "--temperature 0.1", "discard parameters"),
    ("acl-grad", "--exit-weights uniform", "discard features"),
    ("acl-cl", "", "none parameters"),
    ("acl-cl", "--exit-weights uniform", "discard parameters"),
    ("acl-cl", "--no-students-embed", "observe parameters"),
    ("acl-cl", "", "discard features"),
    ("kd", "", "none parameters"),
    ("kd", "--exit-weights uniform", "discard parameters"),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method, words, gate", STEPS)
def test_a_step_told_slowly(method, words, gate, seed):
    """The losses, the cosines and each parameter's gradient."""
    rule, place = gate.split()
    gate = ["--conflict", rule, "--conflict-at", place]
    argv = ["--task", "rte", "--method", method, *gate, *words.split()]
    [args] = train.parse_args(argv)
    model = small_model(5, "1,3,5", dropout=0.0, seed=seed).train()
    batch = small_batch(6, 9) | {"label": LABELS_OF_STEP}
    h, logits = model(batch)
    w = [1, 1, 1] if args.exit_weights == "uniform" else [1, 3, 5]
    ce_losses, second_losses = slow_losses(args, model, h, logits)
    ce_loss = sum(w[m] * ce_losses[m] for m in range(3)) / sum(w)
    acl_losses = [w[m] * second_losses[m] / sum(w) for m in range(3)]
    ce_term = (1 - args.weight) * ce_loss if method == "scl" else ce_loss

    # Who is compared with whom, and what is left of the second loss.
    parameters = list(model.parameters())
    cosines = []
    kept = acl_losses
    if rule != "none" and place == "features":
        g_ce = gradients(ce_term, [h])[0]
        for m in range(3):
            g_acl = gradients(acl_losses[m], [h])[0]
            cosines.append(cosine_of([g_ce[m]], [g_acl[m]]))
        kept = [loss for loss, cosine in zip(acl_losses, cosines) if cosine >= 0]
    elif rule != "none":
        g_ce = gradients(ce_term, parameters)
        cosines = [cosine_of(g_ce, gradients(sum(acl_losses), parameters))]
        kept = acl_losses if cosines[0] >= 0 else []
    if rule == "observe":
        kept = acl_losses
    expected = gradients(ce_term + args.weight * sum(kept), parameters)

    found = train.training_step(args, model, batch, bf16=False)
    assert found[0].item() == pytest.approx(ce_loss.item(), rel=1e-5)
    assert found[1].item() == pytest.approx(sum(acl_losses).item(), rel=1e-5)
    assert found[2] == pytest.approx(cosines, abs=1e-4)
    for p, gradient in zip(parameters, expected):
        assert torch.allclose(p.grad, gradient, atol=1e-6)


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    """The README's first command, whole."""
    output = tmp_path_factory.mktemp("demo")
    argv = ["--task", "demo", "--method", "acl-cl", "--output", output, "--predict"]
    assert call(train.main, *argv) == 0
    return read_run(output / "demo_acl-cl_1")


def test_the_demo_learns_and_depth_pays(demo_run):
    result, config = demo_run.result, demo_run.config
    assert result["score"] > 70  # a guess: 50; a bag of words: below 65
    assert result["exit_scores"][0] < result["score"]
    samples = len(glue.load_task("demo", "unused")[1]["train"])
    per_epoch = math.ceil(samples / config["batch_size"])
    assert result["steps"] == config["epochs"] * per_epoch

    steps = demo_run.steps
    assert steps.step.tolist() == list(range(1, result["steps"] + 1))
    for row in steps.itertuples():
        assert row.kept == (row.cosine >= 0)
        assert row.angle == pytest.approx(math.degrees(math.acos(row.cosine)), abs=1e-2)
    assert result["kept"] == pytest.approx(1 - result["conflict_share"])

    # exits.csv: a line an epoch and exit, the last epoch's are the scores reported.
    assert len(demo_run.exits) == config["epochs"] * len(result["exit_layers"])
    scores = demo_run.exits.accuracy[-len(result["exit_layers"]):]
    assert scores.tolist() == pytest.approx(result["exit_scores"])
    predictions = (demo_run.folder / "demo.tsv").read_text().splitlines()
    assert len(predictions) == 501
    assert predictions[0] == "index\tprediction"

    # Up over a tenth of the steps, then down.
    rates = steps.lr.tolist()
    assert max(rates) == rates[len(rates) // 10] == config["lr"]
    assert rates[0] == 0
    assert rates[-1] < 0.01 * config["lr"]


def test_stored_logits_are_the_models(demo_run):
    """What was saved answers as it did in training, exit for exit."""
    model, tokenizer = models.load_model(demo_run.folder, demo_run.config)
    assert not model.training
    dev = glue.load_task("demo", "unused")[1]["dev"]
    split = glue.tokenize(dev, tokenizer, demo_run.config["max_length"])
    _, logits = exits.all_exits(model, split, tokenizer, CPU)
    assert torch.equal(logits, demo_run.logits)
    assert split["label"][:] == demo_run.labels.tolist()
