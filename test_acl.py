"""Tests: every loss and gradient against a slow version written here, hand-worked cases, faults of other repositories.

    pytest                 (no network; a minute or two on two cores; --durations 5 shows where it goes)

Where a folder `data` holds GLUE's download, its real files are read too.
"""

import doctest
import itertools
import json
import math
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import datasets
import filelock
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from transformers import BatchEncoding, BertConfig, BertModel, BertTokenizer, ElectraConfig, ElectraModel, RobertaConfig, RobertaModel

import acl
import exits
import glue
import grad_surgery
import train

sys.path.append(str(Path(__file__).parent / "results"))
import angles
import tables
import tradeoff
import variants

torch.set_num_threads(1)                # small tensors: a second thread only waits
ROOT = Path(__file__).parent
REAL = ROOT / "data"
real_data = pytest.mark.skipif(not (REAL / "RTE" / "train.tsv").is_file(), reason="no GLUE download in data/")


DEMO = ["--task", "demo", "--method", "acl-cl", "--limit-train", "256", "--batch-size", "16"]


# ------------------------------------------------------------------------------------------------------------ acl: losses

def slow_loss(anchors, keys, anchor_labels, key_labels, tau, same_items):
    """The formula of acl.py's docstring, one number at a time, in float64."""
    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b)) / (sum(x * x for x in a).sqrt() * sum(y * y for y in b).sqrt())

    terms = []
    for i, a in enumerate(anchors):
        others = [j for j in range(len(keys)) if not (same_items and i == j)]
        positives = [j for j in others if key_labels[j] == anchor_labels[i]]
        if positives:
            denominator = sum(torch.exp(cosine(a, keys[j]) / tau) for j in others)
            terms.append(-sum(torch.log(torch.exp(cosine(a, keys[j]) / tau) / denominator) for j in positives) / len(positives))
    return sum(terms) / len(terms)


def slow_scl(h, labels, tau):
    return slow_loss(h, h, labels, labels, tau, True)


def slow_embed(h, labels, rows, tau):
    items, item_labels = [*h, *rows], [*labels, *range(len(rows))]
    return slow_loss(items, items, item_labels, item_labels, tau, True)


def slow_cl(student, teacher, labels, rows, tau):
    keys = [*teacher.detach(), *rows.detach()]
    return slow_loss(student, keys, labels, [*labels, *range(len(rows))], tau, False)


LABELS = {"mixed": [0, 1, 1, 2, 0, 1], "class alone": [0, 1, 1, 1, 0, 2], "class without samples": [0, 0, 2, 2, 0, 2],
          "one class": [1, 1, 1, 1, 1, 1]}


@pytest.mark.parametrize("tau", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("name", ["scl", "embed", "cl"])
def test_loss_and_gradients_equal_the_slow_version(name, labels, tau):
    torch.manual_seed(0)
    h, teacher, rows = (torch.randn(n, 5, dtype=torch.float64) for n in (6, 6, 3))
    fast = {"scl": lambda h, t, r, y: acl.scl_loss(h, y, tau), "embed": lambda h, t, r, y: acl.acl_embed_loss(h, y, r, tau),
            "cl": lambda h, t, r, y: acl.acl_cl_loss(h, t, y, r, tau)}[name]
    slow = {"scl": lambda h, t, r, y: slow_scl(h, y, tau), "embed": lambda h, t, r, y: slow_embed(h, y, r, tau),
            "cl": lambda h, t, r, y: slow_cl(h, t, y, r, tau)}[name]
    results = []
    for loss in (fast, slow):
        inputs = [x.clone().requires_grad_() for x in (h, teacher, rows)]
        value = loss(*inputs, torch.tensor(labels))
        results.append((value, torch.autograd.grad(value, inputs, allow_unused=True)))
    (value, gradients), (expected, expected_gradients) = results
    assert value.dtype == torch.float32 and value.shape == ()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    for got, want in zip(gradients, expected_gradients):
        assert (got is None) == (want is None)
        assert got is None or torch.allclose(got, want, atol=1e-5)


def test_scl_by_hand():
    """Two samples of class 0 at right angles, one of class 1 opposite the first; tau 1.  Anchors: the first two.
    -log e^0/(e^0+e^-1) = log(1 + e^-1);  -log e^0/(e^0+e^0) = log 2."""
    h = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    loss = acl.scl_loss(h, torch.tensor([0, 0, 1]), 1.0)
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(2)) / 2)


def test_acl_embed_by_hand():
    """One sample on its own row, the other row opposite; tau 1.  Anchors: the sample and row 0, each log(1 + e^-2).
    Row 1 has no sample: no anchor, but a negative of both."""
    loss = acl.acl_embed_loss(torch.tensor([[5.0, 0.0]]), torch.tensor([0]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_acl_cl_leaves_the_teacher_alone_and_moves_the_student():
    student, teacher, rows = (torch.randn(n, 4, requires_grad=True) for n in (3, 3, 2))
    acl.acl_cl_loss(student, teacher, torch.tensor([0, 1, 1]), rows, 0.5).backward()
    assert teacher.grad is None and rows.grad is None and student.grad.abs().sum() > 0


def test_label_embeddings_get_gradient_unless_detached():
    h, rows = torch.randn(3, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    acl.acl_embed_loss(h, torch.tensor([0, 1, 1]), rows, 0.5).backward()
    assert rows.grad.abs().sum() > 0 and h.grad.abs().sum() > 0
    rows.grad = None
    acl.acl_embed_loss(h, torch.tensor([0, 1, 1]), rows.detach(), 0.5).backward()
    assert rows.grad is None


def losses_of(h, labels, rows, tau):
    return [acl.scl_loss(h, labels, tau), acl.acl_embed_loss(h, labels, rows, tau), acl.acl_cl_loss(h, h, labels, rows, tau)]


@pytest.mark.parametrize("tau", [0.01, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["one sample", "all alone", "duplicate rows", "zero vector", "huge", "tiny"])
def test_degenerate_batches_are_finite_with_finite_gradients(case, dtype, tau):
    torch.manual_seed(1)
    h, labels = torch.randn(4, 8), torch.tensor([0, 1, 1, 2])
    if case == "one sample":
        h, labels = h[:1], labels[:1]
    if case == "all alone":
        h, labels = h[:3], torch.tensor([0, 1, 2])
    if case == "duplicate rows":
        h = h[:1].repeat(4, 1)
    if case == "zero vector":
        h[1] = 0
    h = h * {"huge": 1e15, "tiny": 1e-15}.get(case, 1)
    h, rows = h.to(dtype).requires_grad_(), torch.randn(3, 8).requires_grad_()
    for loss in losses_of(h, labels, rows, tau):
        assert loss.dtype == torch.float32 and torch.isfinite(loss) and loss.requires_grad
        gradients = torch.autograd.grad(loss, [h, rows], allow_unused=True)
        assert all(torch.isfinite(g).all() for g in gradients if g is not None)
    if case in ("one sample", "all alone"):
        assert acl.scl_loss(h, labels, tau).item() == 0


def test_losses_stay_float32_under_autocast():
    torch.manual_seed(0)
    h, rows, labels = torch.randn(8, 16), torch.randn(3, 16), torch.randint(3, (8,))
    plain = torch.stack(losses_of(h, labels, rows, 0.02))
    with torch.autocast("cpu", torch.bfloat16):
        under = torch.stack(losses_of(h, labels, rows, 0.02))
    assert torch.equal(plain, under)
    for pooling in ("cls", "mean"):                             # nor is what the losses are given rounded to bf16
        model = small_model(pooling=pooling)
        with torch.autocast("cpu", torch.bfloat16):
            h, logits = model(**small_batch(4, 7))
        assert logits.dtype == torch.bfloat16 and h.dtype == torch.float32 and (h != h.bfloat16().float()).float().mean() > 0.9


H, Y, L = torch.randn(3, 4), torch.tensor([0, 1, 1]), torch.randn(2, 4)


@pytest.mark.parametrize("call, word", [
    (lambda: acl.scl_loss(H[0], Y, 0.5), "h "), (lambda: acl.scl_loss(H.long(), Y, 0.5), "h "),
    (lambda: acl.scl_loss(H[:0], Y[:0], 0.5), "h "), (lambda: acl.scl_loss(H, Y[:2], 0.5), "labels"),
    (lambda: acl.scl_loss(H, Y.float(), 0.5), "labels"), (lambda: acl.scl_loss(H, Y, 0.0), "temperature"),
    (lambda: acl.scl_loss(H, Y, math.nan), "temperature"), (lambda: acl.acl_embed_loss(H, Y, L, -1), "temperature"),
    (lambda: acl.acl_embed_loss(H, Y, L[:, :3], 0.5), "label_embeddings"),
    (lambda: acl.acl_embed_loss(H, Y + 1, L, 0.5), "labels"), (lambda: acl.acl_embed_loss(H, Y - 1, L, 0.5), "labels"),
    (lambda: acl.acl_cl_loss(H, H[:2], Y, L, 0.5), "labels"), (lambda: acl.acl_cl_loss(H[0], H, Y, L, 0.5), "student_h"),
    (lambda: acl.acl_cl_loss(H, H[:, :3], Y, L, 0.5), "label_embeddings"),
    (lambda: acl.kd_loss(H, H[:2], 2.0), "teacher_logits"), (lambda: acl.kd_loss(H, H, 0), "temperature")])
def test_wrong_arguments_are_named(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_kd_equals_the_slow_version_and_detaches_the_teacher():
    torch.manual_seed(0)
    s, t, tau = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True), 2.0
    loss = acl.kd_loss(s, t, tau)
    p, q = (t / tau).softmax(-1), (s / tau).softmax(-1)
    want = tau**2 * sum(p[i, k] * (p[i, k] / q[i, k]).log() for i in range(4) for k in range(3)) / 4
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    loss.backward()
    # d/ds of KL(p || softmax(s / tau)) is (q - p) / tau; with tau^2 in front and the mean over 4
    assert t.grad is None and torch.allclose(s.grad, (tau * (q - p) / 4).detach(), atol=1e-6)


def test_center_makes_two_label_embeddings_opposite():
    h, rows = variants.centered(torch.randn(5, 3) + 7, torch.randn(2, 3) + 7)
    assert torch.allclose(h.sum(0), torch.zeros(3), atol=1e-5) and torch.allclose(rows[0], -rows[1], atol=1e-6)


def test_geometry_by_hand():
    """Two classes, each at one point, at right angles; row 0 on its class, row 1 opposite its class."""
    h = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3]])
    g = acl.geometry(h, torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0, 0], [0, -1]]))
    assert g["label_cosine"] == pytest.approx(0) and g["alignment"] == pytest.approx(0)
    assert g["uniformity"] == pytest.approx(math.log((2 * 1 + 4 * math.exp(-4)) / 6))      # 2 pairs at 0, 4 at distance^2 2


def test_a_zero_vector_gets_no_gradient():
    h, rows, labels = torch.randn(4, 8), torch.randn(3, 8), torch.tensor([0, 1, 1, 2])
    h[1] = 0
    h.requires_grad_()
    for loss in losses_of(h, labels, rows, 0.5):
        gradient, = torch.autograd.grad(loss, h)
        assert gradient[1].tolist() == [0] * 8 and gradient.abs().max() < 100


def test_kd_is_float32_for_bf16_logits():
    s, t = torch.randn(64, 3).bfloat16(), torch.randn(64, 3).bfloat16()
    loss = acl.kd_loss(s, t, 3.0)
    assert loss.dtype == torch.float32 and loss == acl.kd_loss(s.float(), t.float(), 3.0)
    assert acl.kd_loss(s, s, 3.0).item() == pytest.approx(0, abs=1e-6)


def test_infinite_temperature():
    with pytest.raises(ValueError, match="temperature"):
        acl.scl_loss(H, Y, math.inf)


def test_geometry_alignment_of_a_spread_class():
    """One class at right angles: one pair, ||z_i - z_j||^2 = 2; a sample is no pair with itself."""
    g = acl.geometry(torch.tensor([[1.0, 0], [0, 2], [-1, 0]]), torch.tensor([0, 0, 1]), torch.eye(2))
    assert g["alignment"] == pytest.approx(2)


# ------------------------------------------------------------------------------------------------------------ grad_surgery

def two_losses(g_ce, g_cl):
    """Losses over one 2-vector whose gradients are g_ce and g_cl."""
    p = torch.zeros(2, requires_grad=True)
    return p, p @ torch.tensor(g_ce), p @ torch.tensor(g_cl)


AGREE, OPPOSE, RIGHT = ((1.0, 0.0), (3.0, 4.0)), ((1.0, 0.0), (-1.0, 1.0)), ((1.0, 0.0), (0.0, 2.0))
ZERO, NAN, INF = ((1.0, 0.0), (0.0, 0.0)), ((1.0, 0.0), (math.nan, 1.0)), ((1.0, 0.0), (math.inf, 1.0))


@pytest.mark.parametrize("pair, rule, gradient, cosine, kept", [
    (AGREE, "discard", (2.5, 2.0), 0.6, 1), (AGREE, "project", (2.5, 2.0), 0.6, 1), (AGREE, "observe", (2.5, 2.0), 0.6, 1),
    (AGREE, "weigh", (1.9, 1.2), 0.6, 0.6),
    (OPPOSE, "discard", (1, 0), -0.5**0.5, 0), (OPPOSE, "weigh", (1, 0), -0.5**0.5, 0),
    (OPPOSE, "project", (1, 0.5), -0.5**0.5, 0.5**0.5), (OPPOSE, "observe", (0.5, 0.5), -0.5**0.5, 1),
    (RIGHT, "discard", (1, 1), 0, 1), (RIGHT, "project", (1, 1), 0, 1), (RIGHT, "weigh", (1, 0), 0, 0),
    (ZERO, "discard", (1, 0), 0, 1), (ZERO, "project", (1, 0), 0, 1),
    (NAN, "discard", (1, 0), math.nan, 0), (NAN, "project", (1, 0), math.nan, 0), (NAN, "weigh", (1, 0), math.nan, 0),
    (INF, "discard", (1, 0), math.nan, 0)])
def test_surgery_by_hand(pair, rule, gradient, cosine, kept):
    """lambda = 0.5 throughout."""
    p, ce, cl = two_losses(*pair)
    seen = grad_surgery.acl_grad(ce, cl, [p], 0.5, rule)
    assert p.grad.tolist() == pytest.approx(gradient)
    assert seen.cosine == pytest.approx(cosine, nan_ok=True) and seen.kept == pytest.approx(kept)
    assert seen.angle == pytest.approx(math.degrees(math.acos(cosine)) if not math.isnan(cosine) else math.nan, nan_ok=True)


def test_parameters_of_one_loss_or_none():
    """The dot runs over shared parameters; a loss that does not reach a parameter leaves its None, or the other's gradient."""
    both, ce_only, cl_only, neither = (torch.zeros(1, requires_grad=True) for _ in range(4))
    seen = grad_surgery.acl_grad(both.sum() + 100 * ce_only.sum(), -both.sum() + 3 * cl_only.sum(),
                                 [both, ce_only, cl_only, neither], 0.5)
    assert seen.cosine == -1 and [p if p is None else len(p) for p in seen.products] == [3, None, None, None]
    assert both.grad.item() == 1 and ce_only.grad.item() == 100 and cl_only.grad is None and neither.grad is None
    seen = grad_surgery.acl_grad(both.sum() + 100 * ce_only.sum(), 2 * both.sum() + 3 * cl_only.sum(),
                                 [both, ce_only, cl_only, neither], 0.5)
    assert seen.cosine == 1 and both.grad.item() == 2 and cl_only.grad.item() == 1.5 and neither.grad is None


def test_no_shared_parameter_is_no_conflict():
    a, b = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    seen = grad_surgery.acl_grad(a.sum(), b.sum(), [a, b], 1.0)
    assert seen.kept == 1 and a.grad.item() == b.grad.item() == 1


def test_a_gradient_that_two_parameters_share_is_added_once():
    """d(a + b) hands out one tensor as the gradient of a and of b; adding to it in place would count twice."""
    a, b = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    grad_surgery.acl_grad((a + b).sum(), 2 * (a + b).sum(), [a, b], 1.0)
    assert a.grad.tolist() == b.grad.tolist() == [3, 3, 3]
    a.grad.mul_(2)
    assert b.grad.tolist() == [3, 3, 3]
    # d((a + b - 1)^2) = -2 for both, one dense tensor where d(sum) above was an expanded 1
    grad_surgery.acl_grad(((a + b - 1) ** 2).sum(), 3 * (a + b).sum(), [a, b], 1.0, rule="observe")
    assert a.grad.tolist() == b.grad.tolist() == [1, 1, 1]
    grad_surgery.acl_grad(((a + b - 1) ** 2).sum(), 3 * (a + b).sum(), [a, b], 1.0, rule="project")      # opposed: nothing is left
    assert a.grad.tolist() == b.grad.tolist() == [-2, -2, -2]


def small_model(num_layers=3, exits_at="all", pooling="cls", num_labels=2, kind="bert", seed=0, dropout=0.1):
    torch.manual_seed(seed)
    sizes = dict(vocab_size=40, hidden_size=16, num_hidden_layers=num_layers, num_attention_heads=2, intermediate_size=32,
                 max_position_embeddings=64, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
                 initializer_range=0.3)
    encoder = BertModel(BertConfig(**sizes)) if kind == "bert" else RobertaModel(RobertaConfig(type_vocab_size=1, **sizes))
    model = exits.MultiExitBert(encoder, num_labels, exits_at, pooling)
    for classifier in model.classifiers:
        torch.nn.init.normal_(classifier.weight, std=0.5)
    return model


def small_batch(rows, length, seed=0, ragged=True):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, length + 1, (rows,), generator=g) if ragged else torch.full((rows,), length)
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = torch.where(mask.bool(), torch.randint(5, 40, (rows, length), generator=g), 1)
    return {"input_ids": ids, "attention_mask": mask}


def step_losses(model, method="acl-cl", seed=3):
    args = train.parse_args(["--task", "rte", "--method", method, "--exits", "all"])
    torch.manual_seed(seed)
    h, logits = model.train()(**small_batch(6, 9))
    return h, *train.compute_losses(args, model, h, logits, torch.tensor([0, 1, 1, 0, 1, 0]))


def gradients_of(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def test_observe_and_features_give_the_gradient_of_the_sum():
    model = small_model()
    h, ce, cl = step_losses(model)
    (sum(ce) + 0.3 * sum(cl)).backward()
    want = gradients_of(model)
    for way in ("parameters", "features"):
        model.zero_grad()
        h, ce, cl = step_losses(model)
        seen = (grad_surgery.acl_grad(sum(ce), sum(cl), model.parameters(), 0.3, "observe") if way == "parameters" else
                grad_surgery.acl_grad_features(sum(ce), cl, h, 0.3, "observe"))
        got = gradients_of(model)
        assert seen.kept == 1 and all(torch.allclose(got[n], want[n], atol=1e-6) for n in want if want[n] is not None)
        assert [n for n in want if want[n] is None] == [n for n in got if got[n] is None]


def test_cosine_equals_flat_vectors():
    """Against one long vector of all parameters that both losses reach: cosine, and each rule's gradient."""
    model, weight = small_model(), 0.3
    _, ce, cl = step_losses(model)
    sum(ce).backward()
    g_ce = gradients_of(model)
    model.zero_grad()
    _, ce, cl = step_losses(model)
    sum(cl).backward()
    g_cl = gradients_of(model)
    shared = [n for n in g_ce if g_ce[n] is not None and g_cl[n] is not None]
    a, b = (torch.cat([g[n].flatten() for n in shared]).double() for g in (g_ce, g_cl))
    cosine = (a @ b / a.norm() / b.norm()).item()
    assert 0 < len(shared) < len(g_ce)                       # the classifiers' biases are not among them
    for flip in (1, -1):                                     # so that both cases come up
        for rule in ("discard", "project", "weigh"):
            _, ce, cl = step_losses(model)
            seen = grad_surgery.acl_grad(sum(ce), flip * sum(cl), model.parameters(), weight, rule)
            assert seen.cosine == pytest.approx(flip * cosine, abs=1e-5)
            conflict = flip * cosine < 0
            left = {"discard": 0 * b if conflict else flip * b, "weigh": flip * b * max(0, flip * cosine),
                    "project": flip * (b - (a @ b) / (a @ a) * a) if conflict else flip * b}[rule]
            got = torch.cat([dict(model.named_parameters())[n].grad.flatten() for n in shared]).double()
            assert torch.allclose(got, a + weight * left, atol=1e-5)
            assert seen.kept == pytest.approx((left.norm() / b.norm()).item(), abs=1e-4)


def test_features_gate_decides_exit_by_exit():
    """Exit 0's term agrees with CE, exit 1's opposes it, exit 2's is NaN: the first alone is kept, as if the others were not."""
    w = torch.randn(4, requires_grad=True)
    c = torch.randn(3, 5, 4)
    def forward():
        h = c * w                                                              # (M, N, d)
        return h, (h * h).sum(), [2 * (h[0] ** 2).sum(), -(h[1] ** 2).sum(), (h[2] * math.nan).sum()]
    h, ce, cl = forward()
    seen = grad_surgery.acl_grad_features(ce, cl, h, 0.5)
    got, w.grad = w.grad, None
    h, ce, cl = forward()
    (ce + 0.5 * cl[0]).backward()
    assert torch.allclose(got, w.grad) and seen.kept == pytest.approx(1 / 3)
    assert [grad_surgery.cosine([triple]) for triple in seen.products][:2] == pytest.approx([1, -1])


def test_a_non_finite_cross_entropy_gradient_shows():
    p = torch.zeros(2, requires_grad=True)
    grad_surgery.acl_grad((p * math.nan).sum(), p.sum(), [p], 1.0)
    assert p.grad.isnan().all()


def test_unknown_rule():
    p, ce, cl = two_losses(*AGREE)
    with pytest.raises(ValueError, match="rule"):
        grad_surgery.acl_grad(ce, cl, [p], 1.0, "drop")
    with pytest.raises(ValueError, match="rule"):
        grad_surgery.acl_grad_features(ce, cl, p, 1.0, "project")


def test_observe_keeps_a_nan_too():
    p, ce, cl = two_losses(*NAN)
    assert grad_surgery.acl_grad(ce, cl, [p], 0.5, "observe").kept == 1
    assert p.grad.tolist() == pytest.approx([math.nan, 0.5], nan_ok=True)


def test_frozen_parameters_are_left_out():
    a, frozen = torch.zeros(1, requires_grad=True), torch.zeros(1)
    grad_surgery.acl_grad(a.sum() + frozen.sum(), a.sum(), [a, frozen], 1.0)
    assert a.grad.item() == 2 and frozen.grad is None


def test_shared_gradient_of_ce_alone():
    a, b, c = (torch.zeros(3, requires_grad=True) for _ in range(3))
    grad_surgery.acl_grad((a + b).sum(), c.sum(), [a, b, c], 1.0)      # the clone's other branch: only CE reaches a and b
    a.grad.mul_(2)
    assert b.grad.tolist() == [1, 1, 1]


def test_cosine_is_clamped():
    assert grad_surgery.cosine([(1 + 1e-7, 1.0, 1.0)]) == 1 and grad_surgery.cosine([(-1 - 1e-7, 1.0, 1.0)]) == -1


def test_angles_count_nan_as_conflict(tmp_path, capsys):
    (tmp_path / "steps.csv").write_text("step,epoch,angle\n1,1,80\n2,1,nan\n3,2,100\n4,2,90\n")
    assert angles.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "4 steps, 1 not finite" in printed and "over 90 degrees: 50.0 %   by epoch: 50.0 %  50.0 %" in printed


# ------------------------------------------------------------------------------------------------------------------- exits

@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("ragged", [True, False])
def test_walk_equals_the_encoders_own_forward(kind, ragged):
    model, batch = small_model(kind=kind, pooling="cls").eval(), small_batch(5, 8, ragged=ragged)
    h, logits = model(**batch)
    own = model.encoder(**batch, output_hidden_states=True)
    assert h.shape == (3, 5, 16) and logits.shape == (3, 5, 2)
    for m in range(3):
        want = model.encoder.pooler(own.hidden_states[m + 1])
        assert torch.allclose(h[m], want, atol=1e-5)
        assert torch.allclose(logits[m], model.classifiers[m](want), atol=1e-5)


def test_mean_pooling_ignores_padding():
    model = small_model(pooling="mean").eval()
    batch = small_batch(4, 8)
    own = model.encoder(**batch, output_hidden_states=True)
    h, _ = model(**batch)
    for i, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        assert torch.allclose(h[1, i], own.hidden_states[2][i, :length].mean(0), atol=1e-5)


def test_one_exit_is_the_same_class_and_chosen_exits_are_numbered():
    assert small_model(exits_at="last").exits == [3] and small_model(exits_at="1,3").exits == [1, 3]
    model = small_model(exits_at="1,3").eval()
    every = small_model().eval()
    every.load_state_dict(model.state_dict() | {"classifiers.1.weight": torch.zeros(2, 16), "classifiers.1.bias": torch.zeros(2),
                          "classifiers.2.weight": model.classifiers[1].weight, "classifiers.2.bias": model.classifiers[1].bias})
    batch = small_batch(3, 6)
    assert torch.allclose(model(**batch)[1], every(**batch)[1][[0, 2]])


@pytest.mark.parametrize("logits", [[1000.0, -1000.0], [-1000.0, 1000.0], [0.0, 0.0], [1e30, 0.0], [60.0, 0.0], [3.0, 1.0]])
def test_entropy_is_finite_and_right(logits):
    h = exits.normalised_entropy(torch.tensor(logits)).item()
    p = 1 / (1 + math.exp(-abs(logits[0] - logits[1]))) if abs(logits[0] - logits[1]) < 700 else 1.0
    want = -sum(q * math.log(q) for q in (p, 1 - p) if q > 0) / math.log(2)
    assert h == pytest.approx(want, abs=1e-6) and 0 <= h <= 1


def slow_exit(logits, name, threshold, patience):
    """The rule for one input, told again from its definition.  logits: list of M vectors.  Returns the exit's index."""
    p = [torch.tensor(z, dtype=torch.float64).softmax(-1).tolist() for z in logits]
    entropy = [-sum(q * math.log(q) for q in row if q > 0) / math.log(len(row)) for row in p]
    prediction = [row.index(max(row)) for row in p]
    same = low = 0
    for m in range(len(p) - 1):
        same = same + 1 if m > 0 and prediction[m] == prediction[m - 1] else 0
        low = low + 1 if entropy[m] <= threshold else 0
        if {"entropy": entropy[m] <= threshold, "confidence": max(p[m]) >= threshold, "patience": same >= patience,
                "pcee": low >= patience}[name]:
            return m
    return len(p) - 1


SETTINGS = [("entropy", 0.7, 0), ("entropy", 1.0, 0), ("entropy", 0.0, 0), ("confidence", 0.8, 0), ("confidence", 0.0, 0),
            ("confidence", 1.0, 0), ("patience", 0, 1), ("patience", 0, 2), ("patience", 0, 9), ("pcee", 0.8, 2),
            ("pcee", 1.0, 1), ("pcee", 1.0, 4), ("pcee", 0.0, 1)]


@pytest.mark.parametrize("name, threshold, patience", SETTINGS)
def test_rules_equal_the_slow_version(name, threshold, patience):
    torch.manual_seed(4)
    logits = 2 * torch.randn(5, 60, 3)
    index = exits.exit_indices(logits, tradeoff.make_rule(name, threshold, patience or None))
    assert index.tolist() == [slow_exit(logits[:, i].tolist(), name, threshold, patience) for i in range(60)]
    expected = {("entropy", 1.0, 0): {0}, ("entropy", 0.0, 0): {4}, ("confidence", 0.0, 0): {0}, ("patience", 0, 9): {4},
                ("pcee", 1.0, 1): {0}, ("pcee", 1.0, 4): {3}}.get((name, threshold, patience))
    assert expected is None or set(index.tolist()) == expected
    if threshold in (0.7, 0.8):
        assert len(set(index.tolist())) > 2                      # the setting is a real one


@pytest.mark.parametrize("name, threshold, patience", SETTINGS)
@pytest.mark.parametrize("kind, exits_at, pooling, case", [
    ("bert", "all", "cls", "ragged"), ("bert", "all", "mean", "ragged"), ("bert", "2,4,5", "cls", "ragged"),
    ("roberta", "all", "cls", "ragged"), ("bert", "all", "cls", "full"), ("bert", "all", "cls", "no mask"),
    ("bert", "all", "mean", "no mask"), ("bert", "all", "mean", "one row")])
def test_early_exit_equals_stored_logits_and_one_by_one(kind, exits_at, pooling, case, name, threshold, patience):
    model = small_model(num_layers=5, kind=kind, exits_at=exits_at, pooling=pooling, num_labels=3).eval()
    batch = small_batch(1 if case == "one row" else 12, 9, ragged=case == "ragged")
    if case == "no mask":
        del batch["attention_mask"]
    rule = tradeoff.make_rule(name, threshold, patience or None)
    logits, layer = exits.early_exit(model, batch, rule)
    with torch.no_grad():
        _, stored = model(**batch)
    index = exits.exit_indices(stored, rule)
    assert layer.tolist() == [model.exits[i] for i in index.tolist()]
    assert torch.allclose(logits, stored[index, torch.arange(len(index))], atol=1e-4)
    for i in range(len(layer)):
        row = {key: value[i:i + 1] for key, value in batch.items()}
        if case == "ragged":
            row = {key: value[:, :int(batch["attention_mask"][i].sum())] for key, value in row.items()}
        alone_logits, alone_layer = exits.early_exit(model, row, rule)
        assert alone_layer.item() == layer[i].item() and torch.allclose(alone_logits[0], logits[i], atol=1e-4)


def test_finished_rows_are_dropped():
    """The rows that each layer computes, counted: compaction, not waiting until all agree."""
    model, batch = small_model(num_layers=5, num_labels=3).eval(), small_batch(12, 9)
    seen = []
    for layer in model.encoder.encoder.layer:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    _, layer = exits.early_exit(model, batch, tradeoff.make_rule("entropy", 0.7))
    assert seen == [n for n in ((layer >= m).sum().item() for m in range(1, 6)) if n] and len(set(seen)) > 2
    seen.clear()
    exits.early_exit(model, batch, None)
    assert seen == [12] * 5


def test_trade_off_by_hand():
    """Two exits, four rows; exit 1 is sure and right on rows 0 and 1, unsure and wrong on 2, sure and wrong on 3."""
    one = torch.tensor([[4.0, -4], [-4, 4], [0.1, 0], [4, -4]])
    two = torch.tensor([[4.0, -4], [-4, 4], [-1, 1], [-1, 1]])
    labels = torch.tensor([0, 1, 1, 1])
    rows = tradeoff.trade_off(torch.stack([one, two]), labels, [1, 2], "accuracy")
    for row in rows:
        if row["rule"] == "entropy" and 0.01 < row["threshold"] < 0.9:
            assert row["mean_exit_layer"] == 1.25 and row["score"] == 75 and row["speedup"] == 2 / 1.25 and row["pareto"] == 1
    assert {row["rule"] for row in rows} == {"entropy", "confidence", "patience"}
    assert tradeoff.at_speedup(rows, "entropy", 2)["score"] == 50 and tradeoff.at_speedup(rows, "entropy", 2.1) is None
    assert tradeoff.at_speedup(rows, "entropy", 1.5)["speedup"] == 1.6


class Words:
    """A stand-in tokenizer: one token a word, so that lengths are known."""
    pad_token_id = 0

    def __call__(self, *columns, truncation, max_length, **_):
        ids = [[1 + len(word) for text in texts for word in text.split()][:max_length] for texts in zip(*columns)]
        return {"input_ids": ids, "token_type_ids": [[len(columns) - 1] * len(row) for row in ids]}

    def save_pretrained(self, folder):
        pass

    def pad(self, rows, **_):
        lists = {"input_ids": [row["input_ids"] for row in rows], "token_type_ids": [row["token_type_ids"] for row in rows],
                 "attention_mask": [[1] * len(row["input_ids"]) for row in rows]}
        padded = {name: torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, x)), batch_first=True) for name, x in lists.items()}
        return BatchEncoding(padded | {"label": torch.tensor([row["label"] for row in rows])})


def texts(split):
    """A split's rows as tuples of their texts."""
    return list(zip(*(split[column][:] for column in split.column_names if column != "label")))


def labels_of(split):
    return torch.tensor(split["label"][:])


def one_batch(split, rows, tokenizer):
    """The rows as one batch without their labels."""
    batch, = glue.loader(split, [torch.as_tensor(rows)], tokenizer)
    batch.pop("label")
    return batch


def test_early_exit_remembers_all_exits_passed():
    """A rule over the whole history: rows dropped on the way must not disturb what the others' earlier exits said."""
    model, batch = small_model(num_layers=6, num_labels=3).eval(), small_batch(24, 9)
    with torch.no_grad():
        _, stored = model(**batch)
    means = stored[..., 0].cumsum(0) / torch.arange(1, 7)[:, None]
    seen = []
    def rule(logits):
        seen.append(logits.shape[0])
        return logits[..., 0].mean(dim=0) > means.quantile(0.8)
    logits, layer = exits.early_exit(model, batch, rule)
    assert seen == [1, 2, 3, 4, 5] and len(layer.unique()) > 3
    assert (layer - 1).tolist() == exits.exit_indices(stored, rule).tolist()


def test_at_speedup_is_chosen_by_speed_alone():
    rows = [{"rule": "entropy", "speedup": s, "score": p} for s, p in ((3, 90), (2.5, 70), (2, 60), (2, 65), (1, 99))]
    assert tradeoff.at_speedup(rows, "entropy", 1.5) == rows[2] and tradeoff.at_speedup(rows, "patience", 1) is None


def test_trade_off_settings_speed_and_front():
    torch.manual_seed(0)
    rows = tradeoff.trade_off(torch.randn(5, 40, 3), torch.randint(3, (40,)), [2, 3, 5, 8, 12], "accuracy")
    assert {(r["rule"], r["patience"]) for r in rows} == {("entropy", None), ("confidence", None), ("patience", 1), ("patience", 2),
                                                          ("patience", 3), ("pcee", 2), ("pcee", 3), ("pcee", 4)}
    for r in rows:
        assert r["speedup"] == pytest.approx(12 / r["mean_exit_layer"]) and 2 <= r["mean_exit_layer"] <= 12
        own = [o for o in rows if o["rule"] == r["rule"]]
        beaten = any(o["score"] > r["score"] and o["speedup"] >= r["speedup"] or o["score"] >= r["score"] and
                     o["speedup"] > r["speedup"] for o in own)
        assert r["pareto"] == (not beaten)
    assert max(r["speedup"] for r in rows) == 6 and 0 < sum(r["pareto"] for r in rows) < len(rows)


def test_dropout_before_the_classifiers():
    model = small_model(dropout=0.5).train()
    h = torch.ones(3, 6, 16)
    assert not torch.equal(model.classify(h), model.classify(h)) and torch.equal(model.eval().classify(h), model.classify(h))


def test_roberta_ignores_segments():
    model, batch = small_model(kind="roberta").eval(), small_batch(3, 6)
    with_types = model(**batch, token_type_ids=torch.ones_like(batch["input_ids"]))
    assert torch.equal(with_types[0], model(**batch)[0])


def test_a_new_pooler_is_a_head_and_other_missing_weights_are_refused(tmp_path):
    small_model().encoder.config.save_pretrained(tmp_path)
    BertTokenizer(vocab={w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"])}).save_pretrained(tmp_path)
    weights = small_model().encoder.state_dict()
    for lost, heads in ((None, 6), ("pooler", 8)):
        safetensors.torch.save_file({n: w for n, w in weights.items() if lost is None or lost not in n},
                                    tmp_path / "model.safetensors", {"format": "pt"})
        encoder, _ = exits.load_encoder(str(tmp_path))
        assert len(exits.MultiExitBert(encoder, 2).head_parameters()) == heads
    assert len(exits.MultiExitBert(encoder, 2, pooling="mean").head_parameters()) == 6
    safetensors.torch.save_file({n: w for n, w in weights.items() if "layer.1." not in n}, tmp_path / "model.safetensors",
                                {"format": "pt"})
    with pytest.raises(glue.InputError, match="lacks weights"):
        exits.load_encoder(str(tmp_path))


def test_classifiers_start_as_bert_does():
    model = exits.MultiExitBert(small_model(num_layers=3).encoder, 50)
    weights = torch.cat([c.weight.flatten() for c in model.classifiers])
    assert weights.std().item() == pytest.approx(0.02, rel=0.1) and not any(c.bias.any() for c in model.classifiers)


def words_split(rows=9):
    sentences = [" ".join(["w" * (1 + (i * j) % 20) for j in range(1 + (5 * i) % 7)]) for i in range(rows)]
    split = datasets.Dataset.from_dict({"sentence": sentences, "label": [i % 2 for i in range(rows)]})
    return glue.tokenize(split, Words(), 16)


def test_all_exits_in_eval_mode_and_in_order():
    model, split = small_model(dropout=0.5).train(), words_split()
    h, logits = exits.all_exits(model, split, Words(), torch.device("cpu"), keep_h=7, batch_size=2)
    with torch.no_grad():
        want_h, want = model.eval()(**one_batch(split, range(9), Words()))
    assert torch.allclose(h, want_h[:, :7], atol=1e-5) and torch.allclose(logits, want, atol=1e-5)


def test_mean_sd():
    assert tradeoff.mean_sd([1, 2, 3]) == "2.0±1.0" and tradeoff.mean_sd([1]) == "1.0" and tradeoff.mean_sd([1, None]) == "-"


def test_clock_counts():
    model, split = small_model().eval(), words_split()
    rule = lambda logits: logits[-1, :, 0] > logits[-1, :, 1]
    full, early, counted = tradeoff.clock(model, split, Words(), rule, 4, torch.device("cpu"), rounds=1)
    _, logits = exits.all_exits(model, split, Words(), torch.device("cpu"))
    assert full > 0 and early > 0 and counted > 1
    assert counted == pytest.approx(3 / (exits.exit_indices(logits, rule) + 1).double().mean().item())


def tiny_run(folder):
    assert train.main([*DEMO, "--max-steps", "1", "--output", str(folder)]) == 0
    return folder / "demo_acl-cl_1"


def test_runs_that_do_not_fit_one_table_or_their_data(tmp_path, capsys):
    one = tiny_run(tmp_path)
    two = shutil.copytree(one, tmp_path / "two")
    config = json.loads((two / "config.json").read_text())
    tradeoff.check_one_table([(folder, c, *tradeoff.load_run(one)[1:]) for folder, c in          # an option that is off is none
                              ((one, config), (two, config | {"seed": 2, "an_older_option": False}))])
    for change, word in (({"exit_layers": [1, 2, 3, 5]}, "differs"), ({"weight": 3}, "other options"), ({}, "its seed")):
        (two / "config.json").write_text(json.dumps(config | change))
        status, error = run_main(tradeoff.main, [one, two], capsys)
        assert status == 2 and word in error
    (two / "config.json").write_text(json.dumps(config | {"holdout": 100}))
    status, error = run_main(tradeoff.main, [two, "--examples", "--rule", "patience", "--patience", "1"], capsys)
    assert status == 2 and "have changed" in error
    assert not any((run / "tradeoff.csv").exists() for run in (one, two))


def test_examples_say_what_the_exit_said(tmp_path):
    demo_run = tiny_run(tmp_path)
    assert tradeoff.main([str(demo_run), "--examples", "--rule", "patience", "--patience", "1"]) == 0
    _, _, logits, labels = tradeoff.load_run(demo_run)
    index = exits.exit_indices(logits, tradeoff.make_rule("patience", patience=1))
    lines = [line.split("\t") for line in (demo_run / "examples.tsv").read_text().splitlines()[1:]]
    said = logits[index, torch.arange(500)].softmax(-1)
    assert [line[1] for line in lines] == [f"{p:.4f}" for p in said.amax(-1).tolist()]
    assert [[glue.WORDS.index(word) for word in line[2:4]] for line in lines] == torch.stack([said.argmax(-1), labels], 1).tolist()
    assert [tuple(line[4:]) for line in lines] == texts(glue.load_task("demo", "unused")["dev"])


# -------------------------------------------------------------------------------------------------------------------- glue

def test_metrics_by_hand():
    p, y = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]), torch.tensor([1, 0, 0, 1, 1, 0, 0, 1])      # TP 2, FP 1, FN 2, TN 3
    assert glue.accuracy(p, y) == 62.5
    assert glue.f1(p, y) == pytest.approx(100 * 2 * 2 / (4 + 1 + 2))
    assert glue.matthews(p, y) == pytest.approx(100 * (2 * 3 - 1 * 2) / math.sqrt(3 * 4 * 4 * 5))
    assert glue.matthews(y, y) == 100 and glue.matthews(1 - y, y) == -100
    assert glue.matthews(torch.zeros(8, dtype=torch.int64), y) == 0 and glue.f1(torch.zeros(8, dtype=torch.int64), y) == 0
    assert glue.score("mrpc", torch.tensor([[0.0, 1], [1, 0]]), torch.tensor([1, 1])) == {"accuracy": 50, "f1": 200 / 3}
    assert [task.metrics[0] for task in glue.TASKS.values()].count("matthews") == 1 and glue.TASKS["cola"].metrics == ("matthews",)


DOWNLOAD = {        # task: (file text of train and dev, of test, texts of the first row, labels) in GLUE's download layout
    "rte": ("index\tsentence1\tsentence2\tlabel\n0\tA \"b\tC\tnot_entailment\n1\tD\tE\tentailment\n",
            "index\tsentence1\tsentence2\n0\tF\tG\n", ('A "b', "C"), [1, 0]),
    "mrpc": ("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t9\t8\tA\t\"B\n0\t7\t6\tC\tD\n",
             "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t5\t4\tE\tF\n", ("A", '"B'), [1, 0]),
    "cola": ("gj04\t1\t\tA.\ngj04\t0\t*\tB.\n", "index\tsentence\n0\tC.\n", ("A.",), [1, 0]),
    "sst2": ("sentence\tlabel\na b \t0\nc\t1\n", "index\tsentence\n0\td\n", ("a b ",), [0, 1]),
    "wnli": ("index\tsentence1\tsentence2\tlabel\n0\tA\tB\t1\n1\tC\tD\t0\n", "index\tsentence1\tsentence2\n0\tF\tG\n",
             ("A", "B"), [1, 0]),
    "qnli": ("index\tquestion\tsentence\tlabel\n0\tA\tB\tentailment\n1\tC\tD\tnot_entailment\n",
             "index\tquestion\tsentence\n0\tA\tB\n", ("A", "B"), [0, 1]),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tA\tB\t1\n4\t5\t6\tC\tD\t0\n",
            "id\tquestion1\tquestion2\n0\tA\tB\n", ("A", "B"), [1, 0]),
    "mnli": ("index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n" + "".join(
             f"{i}\tx\tA\tB\tneutral\t{label}\n" for i, label in enumerate(("contradiction", "neutral", "entailment"))),
             "index\tgenre\tsentence1\tsentence2\n0\tx\tA\tB\n", ("A", "B"), [2, 1, 0])}


def write_download(folder, task="rte", **texts):
    """The task's files in GLUE's layout under `folder`; texts: split=other text.  Returns the folder as a string."""
    labelled, test, _, _ = DOWNLOAD[task]
    here = folder / glue.TASKS[task].folder
    here.mkdir(parents=True, exist_ok=True)
    kinds = ("_matched", "_mismatched") if task == "mnli" else ("",)
    files = {"train": labelled} | {"dev" + k: labelled for k in kinds} | {"test" + k: test for k in kinds}
    for name, text in (files | texts).items():
        (here / f"{name}.tsv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder)


@pytest.mark.parametrize("task", DOWNLOAD)
def test_download_layout(task, tmp_path):
    splits = glue.load_task(task, write_download(tmp_path, task))
    _, _, first, labels = DOWNLOAD[task]
    assert list(splits) == (["train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched"] if task == "mnli"
                            else ["train", "dev", "test"])
    for name, split in splits.items():
        assert split["label"][:] == ([-1] if name.startswith("test") else labels)
        assert name.startswith("test") or texts(split)[0] == first


def test_windows_line_ends_and_short_qqp_rows(tmp_path, capsys):
    text = DOWNLOAD["rte"][0].replace("\n", "\r\n")
    assert glue.load_task("rte", write_download(tmp_path, "rte", train=text))["train"]["label"][:] == [1, 0]
    rows = DOWNLOAD["qqp"][0] + "5\t6\n"
    assert len(glue.load_task("qqp", write_download(tmp_path, "qqp", train=rows))["train"]) == 2
    assert "1 short rows skipped" in capsys.readouterr().err


def test_local_copy_of_the_hub(tmp_path):
    (tmp_path / "rte").mkdir()
    for hub_name, label in (("train", 1), ("validation", 0), ("test", -1)):
        table = datasets.Dataset.from_dict({"sentence1": ["A", "C"], "sentence2": ["B", "D"], "label": [label, abs(label - 1) if
                                            label >= 0 else -1], "idx": [0, 1]})
        table.to_parquet(tmp_path / "rte" / f"{hub_name}-00000-of-00001.parquet")
    splits = glue.load_task("rte", str(tmp_path))
    assert {name: split["label"][:] for name, split in splits.items()} == {"train": [1, 0], "dev": [0, 1], "test": [-1, -1]}
    assert texts(splits["dev"]) == [("A", "B"), ("C", "D")]


@real_data
@pytest.mark.parametrize("task, counts, first, ones", [
    ("rte", (2490, 277, 3000), "No Weapons of Mass Destruction Found in Iraq Yet.", 1241),
    ("mrpc", (3668, 408, 1725), 'Amrozi accused his brother , whom he called " the witness " , of deliberately distorting his '
     "evidence .", 2474),
    ("cola", (8551, 1043, 1063), "Our friends won't buy this analysis, let alone the next one we propose.", 6023),
    ("sst2", (67349, 872, 1821), "hide new secretions from the parental units ", 37569), ("wnli", (635, 71, 146), None, 312)])
def test_real_files(task, counts, first, ones):
    splits = glue.load_task(task, str(REAL))
    assert tuple(len(splits[name]) for name in ("train", "dev", "test")) == counts
    assert first is None or texts(splits["train"])[0][0] == first
    assert sum(splits["train"]["label"][:]) == ones
    assert not any(text.startswith("\ufeff") for split in splits.values() for text in texts(split)[0])


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("odd", [{}, {"padding_side": "left"}, {"model_input_names": ["input_ids"]}])
def test_batches_hold_their_rows_padded_to_the_longest(padding, odd):
    """With the library's tokenizer, whatever it would like to pad with, on which side, and which names it knows."""
    words = ["[UNK]", "[CLS]", "[SEP]", "a", "b", "c"]
    words.insert(padding, "[PAD]")
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, **odd)
    pad, cls, sep, a, b, c = (words.index(word) for word in ("[PAD]", "[CLS]", "[SEP]", "a", "b", "c"))
    split = datasets.Dataset.from_dict({"sentence1": ["a", "a b c", ""], "sentence2": ["b", "c a", "c"], "label": [0, 1, 1]})
    split = glue.tokenize(split, tokenizer, max_length=7)
    assert glue.row_lengths(split).tolist() == [5, 7, 4]
    one, two = glue.loader(split, [torch.tensor([1, 2, 0]), torch.tensor([2])], tokenizer)
    assert one["input_ids"].tolist() == [[cls, a, b, sep, c, a, sep], [cls, sep, c, sep, pad, pad, pad],
                                         [cls, a, sep, b, sep, pad, pad]]
    assert one["attention_mask"].tolist() == [[1] * 7, [1] * 4 + [0] * 3, [1] * 5 + [0] * 2]
    assert one["token_type_ids"].tolist() == [[0] * 4 + [1] * 3, [0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0]]
    assert one["label"].tolist() == [1, 1, 0] and two["input_ids"].tolist() == [[cls, sep, c, sep]]
    assert {batch[name].dtype for batch in (one, two) for name in batch} == {torch.int64}
    assert split.features["input_ids"].feature.dtype == "int32"              # a table: MNLI must not become Python lists


def padding_share(lengths, batches):
    return sum(len(rows) * int(lengths[rows].max()) for rows in batches) / int(lengths.sum())


def test_bucketed_batches_carry_every_row_once_mixed_and_hardly_padded(capsys):
    lengths = torch.randint(10, 120, (2490,), generator=torch.Generator().manual_seed(0))
    labels = (lengths > 60).long()
    source = "made-up lengths"
    if (REAL / "RTE").is_dir():
        split = glue.tokenize(glue.load_task("rte", str(REAL))["train"], Words(), 128)
        lengths, labels, source = glue.row_lengths(split), labels_of(split), "RTE's words"
    batches = glue.bucketed_batches(lengths, 32, torch.Generator().manual_seed(7))
    again, other = (glue.bucketed_batches(lengths, 32, torch.Generator().manual_seed(seed)) for seed in (7, 8))
    assert torch.cat(batches).sort().values.tolist() == list(range(2490)) and len(batches) == math.ceil(2490 / 32)
    assert all(torch.equal(a, b) for a, b in zip(batches, again)) and not torch.equal(torch.cat(batches), torch.cat(other))
    shuffled = torch.randperm(2490, generator=torch.Generator().manual_seed(7)).split(32)
    share, plain = padding_share(lengths, batches), padding_share(lengths, shuffled)
    with capsys.disabled():
        print(f"\n{source}: bucketed batches carry {share:.3f} times the useful tokens, plainly shuffled ones {plain:.2f}")
    assert share <= 1.10
    assert source == "made-up lengths" or all(len(labels[rows].unique()) == 2 for rows in batches if len(rows) == 32)


def test_demo_task_is_honest():
    splits = glue.load_task("demo", "unused")
    assert not set(texts(splits["train"])) & set(texts(splits["dev"]))
    for split in splits.values():
        assert sum(split["label"][:]) == len(split) / 2
    vocabulary = exits.demo_encoder()[1]
    assert vocabulary.unk_token_id not in vocabulary(splits["dev"]["sentence1"][0])["input_ids"]
    # a bag of words, by logistic regression on the counts of both sentences' words: better than a guess, far from enough
    def bags(split):
        words = {word: i for i, word in enumerate(vocabulary.get_vocab())}
        counts = torch.zeros(len(split), 2 * len(words) + 1)
        counts[:, -1] = 1
        for i, sentences in enumerate(texts(split)):
            for j, sentence in enumerate(sentences):
                for word in sentence.split():
                    counts[i, j * len(words) + words[word]] += 1
        return counts

    x, weights = bags(splits["train"]), torch.zeros(2 * len(vocabulary) + 1, 2, requires_grad=True)
    optimizer = torch.optim.Adam([weights], 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(x @ weights, labels_of(splits["train"])).backward()
        optimizer.step()
    assert glue.accuracy((x @ weights).argmax(-1), labels_of(splits["train"])) > 55
    assert glue.accuracy((bags(splits["dev"]) @ weights).argmax(-1), labels_of(splits["dev"])) < 65


def test_bucketed_batches_are_shuffled_within_windows_and_among_themselves():
    lengths = torch.arange(4000)                                              # no ties: sorting alone would leave no choice
    one, two = (glue.bucketed_batches(lengths, 2, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert len({tuple(b.tolist()) for b in one} & {tuple(b.tolist()) for b in two}) < 1000        # other neighbours
    firsts = [int(batch[0]) for batch in one]
    assert firsts[:50] != sorted(firsts[:50])                                 # not from short to long


def test_limit_train_and_holdout():
    whole = glue.load_task("demo", "unused")["train"]
    limited = glue.load_task("demo", "unused", limit_train=300)
    assert list(limited) == ["train", "dev", "test"] and texts(limited["train"]) == texts(whole)[:300]
    held = glue.load_task("demo", "unused", limit_train=300, holdout=100)
    assert list(held) == ["train", "dev"] and texts(held["train"]) == texts(whole)[:200]
    assert texts(held["dev"]) == texts(whole)[200:300] and held["dev"]["label"][:] == whole["label"][200:300]
    assert texts(glue.load_task("demo", "unused", limit_train=9999)["train"]) == texts(whole)


def test_short_rows_are_an_error_outside_qqps_train(tmp_path):
    with pytest.raises(glue.InputError, match="line 4"):
        glue.load_task("qqp", write_download(tmp_path, "qqp", dev=DOWNLOAD["qqp"][0] + "5\t6\n"))


@pytest.fixture(autouse=True, scope="session")
def no_cache_left(tmp_path_factory):
    """What the datasets library keeps of Parquet files goes where pytest cleans up, not into the home folder."""
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


def test_hub_copy_of_mnli_and_foreign_labels(tmp_path):
    (tmp_path / "mnli").mkdir()
    def write(name, labels):
        datasets.Dataset.from_dict({"premise": [name + "A"] * 3, "hypothesis": ["B"] * 3, "label": labels}).to_parquet(
            tmp_path / "mnli" / f"{name}-00000-of-00001.parquet")
    for name in ("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"):
        write(name, [-1] * 3 if name.startswith("test") else [0, 1, 2])
    splits = glue.load_task("mnli", str(tmp_path))
    assert {name: split["premise"][0] for name, split in splits.items()} == {
        "train": "trainA", "dev_matched": "validation_matchedA", "dev_mismatched": "validation_mismatchedA",
        "test_matched": "test_matchedA", "test_mismatched": "test_mismatchedA"}
    for name, labels in (("validation_matched", [0, 1, 3]), ("train", [0.0, 1.0, 2.0]), ("train", [False, True, True]),
                         ("train", [0, 1, None]), ("test_matched", [None] * 3)):
        write(name, labels)
        with pytest.raises(glue.InputError, match="labels outside"):
            glue.load_task("mnli", str(tmp_path))
        write(name, [0, 1, 2])
    write("train", [-1, 1, 2])
    with pytest.raises(glue.InputError, match="labels outside 0..2"):
        glue.load_task("mnli", str(tmp_path))
    datasets.Dataset.from_dict({"premise": ["A", None, "C"], "hypothesis": ["B"] * 3, "label": [0, 1, 2]}).to_parquet(
        tmp_path / "mnli" / "train-00000-of-00001.parquet")
    with pytest.raises(glue.InputError, match="a text that is missing"):
        glue.load_task("mnli", str(tmp_path))


def test_tokenising_leaves_nothing_on_disk(tmp_path):
    (tmp_path / "rte").mkdir()
    for name in ("train", "validation", "test"):
        datasets.Dataset.from_dict({"sentence1": ["A", "C"], "sentence2": ["B", "D"], "label": [0, 1]}).to_parquet(
            tmp_path / "rte" / f"{name}-00000-of-00001.parquet")
    split = glue.load_task("rte", str(tmp_path))["train"]
    files = lambda: sorted(datasets.config.HF_DATASETS_CACHE.rglob("*"))
    before = files()
    assert before and glue.tokenize(split, Words(), 16).cache_files == [] and files() == before


# ------------------------------------------------------------------------------------------------------------------- train



def run_main(main, argv, capsys):
    """(exit status, standard error) of a module's main."""
    capsys.readouterr()
    try:
        status = main([str(word) for word in argv])
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err


def read_run(folder):
    """A run's files without what the clock and the output folder's name put into them."""
    clock = {"seconds", "examples_per_second"}
    files = {name: (folder / name).read_bytes() for name in ("steps.csv", "exits.csv", "dev_logits.safetensors", "config.json")}
    files["model"] = (folder / "model" / "model.safetensors").read_bytes()
    result = json.loads((folder / "result.json").read_text())
    return files | {"result.json": {k: v for k, v in result.items() if k not in clock}}


def test_exit_weights_and_scl_mixture():
    """L = sum_m w_m (CE^m + lambda CL^m) / sum_m w_m with w_m = m; SCL: (1 - lambda) CE + lambda SCL."""
    model, labels = small_model(dropout=0.0), torch.tensor([0, 1, 1, 0, 1, 0])
    h, logits = model.train()(**small_batch(6, 9))
    for weights in ("depth", "uniform"):
        args = train.parse_args(["--task", "rte", "--method", "scl", "--weight", "0.3", "--exit-weights", weights, "--exits", "all"])
        w = [1, 2, 3] if weights == "depth" else [1, 1, 1]
        want = sum(m * (0.7 * F.cross_entropy(z, labels) + 0.3 * acl.scl_loss(x, labels, 0.5)) for m, z, x in zip(w, logits, h))
        model.zero_grad()
        (want / sum(w)).backward(retain_graph=True)
        expected = gradients_of(model)
        model.zero_grad()
        ce, cl = train.compute_losses(args, model, h, logits, labels)
        train.fill_gradients(args, model, h, ce, cl)
        got = gradients_of(model)
        assert all(torch.allclose(got[n], expected[n], atol=1e-6) for n in got if expected[n] is not None)
        h, logits = model(**small_batch(6, 9))


def test_acl_cl_terms():
    """Students: guided by the deepest exit, plus their own ACL-Embed unless switched off; teacher: ACL-Embed."""
    model, labels = small_model(dropout=0.0), torch.tensor([0, 1, 1, 0, 1, 0])
    h, logits = model(**small_batch(6, 9))
    rows = [c.weight for c in model.classifiers]
    for switch, own in (("--students-embed", 1), ("--no-students-embed", 0)):
        args = train.parse_args(["--task", "rte", "--method", "acl-cl", "--exit-weights", "uniform", switch])
        _, cl = train.compute_losses(args, model, h, logits, labels)
        for m in range(2):
            want = acl.acl_cl_loss(h[m], h[2], labels, rows[2], 0.5) + own * acl.acl_embed_loss(h[m], labels, rows[m], 0.5)
            assert (3 * cl[m]).item() == pytest.approx(want.item(), rel=1e-5)
        assert (3 * cl[2]).item() == pytest.approx(acl.acl_embed_loss(h[2], labels, rows[2], 0.5).item(), rel=1e-5)


def test_optimizer_groups():
    """Heads have a learning rate of their own, biases and norms no decay, nothing is left out or in twice."""
    model = small_model()
    args = train.parse_args(["--task", "rte", "--method", "ce", "--lr", "1e-4"])
    optimizer, _ = train.make_optimizer(args, model, 100)
    seen = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(seen) == sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        assert seen[id(p)]["initial_lr"] == pytest.approx(2e-3 if name.startswith("classifiers") else 1e-4)
        assert (seen[id(p)]["weight_decay"] > 0) == (p.dim() > 1)


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory):
    """The README's first command, whole."""
    output = tmp_path_factory.mktemp("demo")
    assert train.main(["--task", "demo", "--method", "acl-cl", "--output", str(output), "--predict"]) == 0
    return output / "demo_acl-cl_1"


def test_demo_learns_and_depth_pays(demo_run):
    result = json.loads((demo_run / "result.json").read_text())
    assert result["score"] > 70 and result["exit_scores"][0] < result["score"]             # majority: 50; bag of words: 65
    assert result["steps"] == 8 * 125 and result["exit_layers"] == [1, 2, 3, 4]
    config = json.loads((demo_run / "config.json").read_text())
    assert config["seed"] == 1 and config["weight"] == 0.1 and config["versions"]["torch"] == torch.__version__
    steps = tradeoff.read_csv(demo_run / "steps.csv")
    assert [int(row["step"]) for row in steps] == list(range(1, 1001))
    for row in steps:
        assert float(row["kept"]) == (float(row["cosine"]) >= 0)
        assert float(row["angle"]) == pytest.approx(math.degrees(math.acos(float(row["cosine"]))), abs=1e-2)
    assert result["kept"] == pytest.approx(1 - result["conflict_share"])
    lrs = [float(row["lr"]) for row in steps]
    assert max(lrs) == lrs[100] == 1e-3 and lrs[0] == 0 and lrs[-1] < 1e-5                 # warm-up over a tenth, then down to 0
    scores = [row for row in tradeoff.read_csv(demo_run / "exits.csv") if row["epoch"] == "8"]
    assert [float(row["accuracy"]) for row in scores] == pytest.approx(result["exit_scores"])
    predictions = (demo_run / "demo.tsv").read_text().splitlines()
    assert len(predictions) == 501 and predictions[0] == "index\tprediction"


def test_stored_logits_are_the_models(demo_run):
    config, result, logits, labels = tradeoff.load_run(demo_run)
    model, tokenizer = tradeoff.load_model(demo_run, config)
    split = glue.tokenize(glue.load_task("demo", "unused")["dev"], tokenizer, config["max_length"])
    _, again = exits.all_exits(model, split, tokenizer, torch.device("cpu"))
    assert torch.equal(again, logits) and torch.equal(labels_of(split), labels)


def command(*argv):
    """What `python argv` prints; fails unless its status is 0."""
    return subprocess.run([sys.executable, *map(str, argv)], capture_output=True, text=True, check=True, cwd=ROOT).stdout


@pytest.mark.parametrize("kind, room", [("bert", 64), ("roberta", 62)])
def test_max_length_is_what_the_positions_hold(kind, room):
    model = small_model(kind=kind).eval()
    assert model.max_length == room
    model(**small_batch(2, room, ragged=False))
    with pytest.raises((IndexError, RuntimeError)):
        model(**small_batch(2, room + 1, ragged=False))


def test_the_tripwire_sees_another_pooler():
    encoder = small_model().encoder
    forward = encoder.forward

    def shifted(**batch):
        out = forward(**batch)
        out.pooler_output = out.pooler_output + 0.01
        return out
    assert exits.MultiExitBert(encoder, 2).encoder.training                    # looked at in eval mode, handed back to train
    encoder.forward = shifted
    with pytest.raises(glue.InputError, match="walking the layers"):
        exits.MultiExitBert(encoder, 2)


def test_the_tripwires_own_words_survive_loading(demo_run, monkeypatch):
    """A transformers release that breaks the walk must not be called a torn run."""
    def trip(self):
        raise glue.InputError("walking the layers fails")
    monkeypatch.setattr(exits.MultiExitBert, "_check_layers", trip)
    with pytest.raises(glue.InputError, match="^walking the layers fails$"):
        tradeoff.load_model(demo_run, tradeoff.load_run(demo_run)[0])


def test_exits_command(demo_run):
    printed = command("exits.py", demo_run, "--examples")
    assert "acl-cl" in printed and "Pareto front" in printed
    rows = tradeoff.read_csv(demo_run / "tradeoff.csv")
    front = [row for row in rows if row["rule"] == "entropy" and row["pareto"] == "1"]
    by_speed = sorted(front, key=lambda row: float(row["speedup"]))
    assert len(front) > 3 and [r["score"] for r in by_speed] == sorted((r["score"] for r in front), key=float, reverse=True)
    examples = (demo_run / "examples.tsv").read_text().splitlines()
    layers = [int(line.split("\t")[0]) for line in examples[1:]]
    chosen = tradeoff.at_speedup(tradeoff.trade_off(*tradeoff.load_run(demo_run)[2:], [1, 2, 3, 4], "accuracy"), "entropy", 2)
    assert len(layers) == 500 and sum(layers) / 500 == pytest.approx(chosen["mean_exit_layer"])


def test_grad_surgery_command(demo_run):
    printed = command("grad_surgery.py", demo_run)
    share = 100 * json.loads((demo_run / "result.json").read_text())["conflict_share"]
    assert f"{share:.1f} %" in printed and "demo_acl-cl_1" in printed


@pytest.mark.parametrize("threads", [1, 2])
def test_same_command_same_bytes(threads, tmp_path):
    torch.set_num_threads(threads)
    try:
        for output in ("a", "b"):
            assert train.main([*DEMO, "--max-steps", "6", "--output", str(tmp_path / output)]) == 0
    finally:
        torch.set_num_threads(1)
    assert read_run(tmp_path / "a" / "demo_acl-cl_1") == read_run(tmp_path / "b" / "demo_acl-cl_1")


@pytest.mark.parametrize("method", train.METHODS)
@pytest.mark.parametrize("at", ["parameters", "features"])
def test_every_method_trains_with_every_gate(method, at, tmp_path, capsys):
    rules = ["none"] if method == "ce" else ["none", "observe", "discard", "weigh", "project"] if method == "acl-cl" else ["discard"]
    for rule in rules:
        if at == "features" and (rule in ("none", "project") or method == "kd"):
            continue
        argv = ["--task", "demo", "--method", method, "--exits", "2,4", "--limit-train", "64", "--max-steps", "2",
                "--output", str(tmp_path / rule), "--conflict", rule, "--conflict-at", at]
        assert run_main(train.main, argv, capsys)[0] == 0
        steps = tradeoff.read_csv(tmp_path / rule / f"demo_{method}_1" / "steps.csv")
        assert len(steps) == 2 and all((row["kept"] == "") == (rule == "none") for row in steps)
        assert (float(steps[0]["cl_loss"]) > 0) == (method != "ce")


PATCHED = [(acl, "acl_embed_loss"), (acl, "acl_cl_loss"), (train, "second_loss"), (train, "fill_gradients"),
           (train, "load_checkpoint"), (train, "make_optimizer"), (train, "run_options"), (train, "run"), (exits, "MultiExitBert")]


@pytest.fixture
def put_back(monkeypatch):
    """What results/variants.py replaces is put back after the test."""
    for module, name in PATCHED:
        monkeypatch.setattr(module, name, getattr(module, name))


@pytest.mark.parametrize("change", [change for change in variants.CHANGES if change != "conflict-groups"])
def test_variants_change_what_they_say(change, tmp_path, put_back):
    """Each of results/variants.py trains; it changes the first step's loss, or only what the loss leads to."""
    argv = ["--task", "demo", "--method", "acl-cl", "--limit-train", "320", "--epochs", "1", "--pooling", "mean", "--output"]
    assert train.main([*argv, str(tmp_path / "plain")]) == 0
    variants.CHANGES[change]()
    assert train.main([*argv, str(tmp_path / "changed")]) == 0
    plain, changed = (tradeoff.read_csv(tmp_path / name / "demo_acl-cl_1" / "steps.csv") for name in ("plain", "changed"))
    at_once = plain[0]["cl_loss"] != changed[0]["cl_loss"]                     # the loss is another, or only its gradient
    assert change == "best-teacher" or at_once == (change in ("own-teacher", "row-anchors", "rows-only", "shared-pooler", "center"))
    assert plain[-1]["ce_loss"] != changed[-1]["ce_loss"]


def test_variants_command(tmp_path):
    """The change stands in config.json, so that --resume does not go on without it."""
    command("results/variants.py", "center", *DEMO, "--max-steps", "1", "--output", tmp_path)
    assert json.loads((tmp_path / "demo_acl-cl_1" / "config.json").read_text())["change"] == "center"


def test_best_teacher(put_back):
    """The exit with the lowest cross-entropy guides the others, and none guides it."""
    torch.manual_seed(0)
    args, labels = train.parse_args(["--task", "rte", "--method", "kd", "--temperature", "1"]), torch.tensor([0, 1])
    logits = torch.stack([F.one_hot(labels, 2) * scale for scale in (1.0, 5.0, 2.0)])           # the second exit is best
    pairs = [(torch.randn(2, 4), torch.randn(2, 4))] * 3
    variants.best_teacher()
    terms = [train.second_loss(args, m, 2, pairs, logits, labels).item() for m in range(3)]
    assert terms == [acl.kd_loss(logits[0], logits[1], 1.0).item(), 0, acl.kd_loss(logits[2], logits[1], 1.0).item()]


def test_conflict_groups(tmp_path, put_back, capsys):
    """Changes no number; a line a step and group, without a gap after a resume; refuses where there are no two gradients."""
    argv = [*DEMO, "--max-steps", "20", "--output"]
    assert train.main([*argv, str(tmp_path / "plain")]) == 0
    variants.conflict_groups()
    for refused in (["--conflict", "none"], ["--conflict-at", "features"]):
        status, error = run_main(train.main, [*argv, str(tmp_path / "changed"), *refused], capsys)
        assert status == 2 and "--conflict" in error and not (tmp_path / "changed").exists()
    optimizer_step, steps = torch.optim.AdamW.step, []

    def stop(*arguments):
        steps.append(optimizer_step(*arguments))
        if len(steps) == 18:                                                   # after the first epoch's checkpoint
            raise KeyboardInterrupt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stop)
        assert train.main([*argv, str(tmp_path / "changed")]) == 130
    assert train.main([*argv, str(tmp_path / "changed"), "--resume"]) == 0
    plain, changed = (tmp_path / name / "demo_acl-cl_1" for name in ("plain", "changed"))
    assert (plain / "steps.csv").read_bytes() == (changed / "steps.csv").read_bytes()
    groups = ["embeddings", "layer 1", "layer 2", "layer 3", "layer 4", "pooler", "label embeddings"]
    rows = tradeoff.read_csv(changed / "groups.csv")
    assert [(row["step"], row["group"]) for row in rows] == [(str(step), group) for step in range(1, 21) for group in groups]
    assert len({row["cosine"] for row in rows[-7:]}) == 7 and all(-1 <= float(row["cosine"]) <= 1 for row in rows)


REAL_ENCODER = exits.demo_encoder


def noisy_encoder():
    """The demo's encoder, but with dropout before the classifiers: else no test would see dropout's seeds."""
    encoder, tokenizer = REAL_ENCODER()
    encoder.config.hidden_dropout_prob = 0.1
    return encoder, tokenizer


def child(argv):
    """A training process of its own; started from a server that has the modules loaded, so in no time."""
    torch.set_num_threads(1)
    exits.demo_encoder = noisy_encoder
    os._exit(train.main(argv))


forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(["test_acl"])


def distributed_child(rank, world, port, argv):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    child(argv)


def test_kill_and_resume_is_exact(tmp_path, capfd):
    """kill -9 ten times, in turn a moment after a checkpoint and in the midst of writing one; the same command goes on, and
    ends with the bytes of a run that nobody killed."""
    argv = [*DEMO, "--max-steps", "40", "--save-steps", "3", "--resume", "--output"]
    a, b = (tmp_path / name / "demo_acl-cl_1" for name in ("whole", "killed"))

    def start(output):
        process = forkserver.Process(target=child, args=([*argv, str(tmp_path / output)],))
        process.start()
        return process

    def written(name):
        try:
            return (b / name).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    start("whole").join()
    kills, draw, resumed_at = 0, random.Random(0), set()
    while kills < 10:
        name, delay = ("checkpoint.pt", draw.uniform(0, 0.02)) if kills % 2 == 0 else ("checkpoint.pt.new", 0)
        before, process = written(name), start("killed")
        while written(name) == before and process.is_alive():
            time.sleep(0.0005)
        process.join(timeout=delay)
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        resumed_at.add(torch.load(b / "checkpoint.pt")["step"])
    process = start("killed")
    process.join(timeout=300)
    assert process.exitcode == 0 and kills >= 5 and len(resumed_at) >= 4 and any(step % 16 for step in resumed_at), resumed_at
    assert read_run(a) == read_run(b)
    assert sorted(f.name for f in a.iterdir()) == sorted(f.name for f in b.iterdir() if not f.name.endswith(".new"))
    assert not (a / "checkpoint.pt").exists()


@pytest.mark.parametrize("method, at", [("acl-cl", "parameters"), ("acl-cl", "features"), ("scl", "parameters")])
def test_two_processes_are_one(method, at, tmp_path, monkeypatch):
    """Half batches on two gloo processes: the losses, decisions, steps and dev logits of one process on the whole batch."""
    argv = ["--task", "demo", "--method", method, "--exits", "all", "--limit-train", "129", "--batch-size", "32", "--epochs", "2",
            "--precision", "fp32", "--output"]
    argv[-1:-1] = ["--conflict-at", at] if method != "scl" else []
    monkeypatch.setattr(exits, "demo_encoder", noisy_encoder)
    assert train.main([*argv, str(tmp_path / "one")]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [forkserver.Process(target=distributed_child, args=(rank, 2, port, [*argv, str(tmp_path / "two")])) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    one, two = (tradeoff.read_csv(tmp_path / name / f"demo_{method}_1" / "steps.csv") for name in ("one", "two"))
    assert len(one) == 10                                                      # 129 rows: the last batch of each epoch has one
    for a, b in zip(one, two, strict=True):
        assert a["kept"] == b["kept"] and a["lr"] == b["lr"]
        for column in ("ce_loss", "cl_loss", "cosine"):
            assert a[column] == b[column] or float(a[column]) == pytest.approx(float(b[column]), abs=2e-4)
    a, b = (safetensors.torch.load_file(tmp_path / name / f"demo_{method}_1" / "dev_logits.safetensors") for name in ("one", "two"))
    assert torch.allclose(a["dev.logits"], b["dev.logits"], atol=1e-3)


def test_non_finite(tmp_path, capsys, monkeypatch):
    """A NaN loss stops with step and hint; a NaN contrastive loss alone is dropped by the gate, counted and gone on from."""
    status, error = run_main(train.main, [*DEMO, "--lr", "1e30", "--head-lr", "1e30", "--output", tmp_path / "diverged"], capsys)
    assert status == 1 and "step" in error and "--lr" in error and error.count("\n") == 1
    assert not (tmp_path / "diverged" / "demo_acl-cl_1" / "result.json").exists()
    real, calls = acl.acl_embed_loss, itertools.count()
    monkeypatch.setattr(acl, "acl_embed_loss", lambda *a: real(*a) * (math.nan if next(calls) == 5 else 1))
    assert run_main(train.main, [*DEMO, "--max-steps", "4", "--output", tmp_path / "nan"], capsys)[0] == 0
    result = json.loads((tmp_path / "nan" / "demo_acl-cl_1" / "result.json").read_text())
    steps = tradeoff.read_csv(tmp_path / "nan" / "demo_acl-cl_1" / "steps.csv")
    assert result["non_finite"] == 1 and [row["cosine"] == "nan" for row in steps] == [False, True, False, False]
    assert steps[1]["kept"] == "0.0000" and math.isfinite(float(steps[3]["ce_loss"]))


def test_finished_and_foreign_runs(tmp_path, capsys):
    argv = [*DEMO, "--max-steps", "2", "--output", str(tmp_path)]
    folder = tmp_path / "demo_acl-cl_1"
    assert run_main(train.main, argv, capsys)[0] == 0
    before = read_run(folder)
    status, error = run_main(train.main, argv, capsys)
    assert status == 2 and "finished" in error and read_run(folder) == before
    assert run_main(train.main, [*argv, "--resume"], capsys)[0] == 0 and read_run(folder) == before
    status, error = run_main(train.main, [*argv, "--resume", "--lr", "0.1"], capsys)
    assert status == 2 and "another lr" in error and read_run(folder) == before
    # a run of results/variants.py is another run, and so is one with an option that is no more
    config = json.loads((folder / "config.json").read_text())
    for other in ("change", "an_older_option"):
        (folder / "config.json").write_text(json.dumps(config | {other: "center"}))
        status, error = run_main(train.main, [*argv, "--resume"], capsys)
        assert status == 2 and f"another {other}" in error
    (folder / "config.json").write_text(json.dumps(config))
    # an unfinished run: torn checkpoint, other options, a second process
    (folder / "result.json").unlink()
    torch.save({"step": 1}, folder / "checkpoint.pt")
    kept = {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}
    for command, word in ((argv, "--resume"), ([*argv, "--resume"], "torn"), ([*argv, "--resume", "--lr", "0.1"], "another lr")):
        status, error = run_main(train.main, command, capsys)
        assert status == 2 and word in error and error.count("\n") == 1
    (folder / "checkpoint.pt").write_bytes(kept["checkpoint.pt"][:100])
    status, error = run_main(train.main, [*argv, "--resume"], capsys)
    assert status == 2 and "torn" in error
    (folder / "checkpoint.pt").unlink()
    with filelock.FileLock(folder / ".lock"):
        status, error = run_main(train.main, [*argv, "--resume"], capsys)
    assert status == 2 and "another process" in error
    assert (folder / "steps.csv").read_bytes() == kept["steps.csv"]


def test_a_run_holds_its_lock(tmp_path, monkeypatch):
    forward, tried = train.forward_shared, []

    def second_process(*arguments):
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(tmp_path / "demo_acl-cl_1" / ".lock").acquire(blocking=False)
        tried.append(True)
        return forward(*arguments)
    monkeypatch.setattr(train, "forward_shared", second_process)
    assert train.main([*DEMO, "--max-steps", "2", "--output", str(tmp_path)]) == 0 and len(tried) == 2


def child_with_errors_in(path, argv):
    sys.stderr = open(path, "w", buffering=1)
    child(argv)


def test_interrupt(tmp_path, capsys):
    """Ctrl-C: one line, status 130, the last checkpoint whole, and the same command goes on from it."""
    folder, argv = tmp_path / "demo_acl-cl_1", [*DEMO, "--max-steps", "40", "--save-steps", "3", "--resume", "--output", str(tmp_path)]
    process = forkserver.Process(target=child_with_errors_in, args=(tmp_path / "errors", argv))
    process.start()
    while not (folder / "checkpoint.pt").exists() and process.is_alive():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=60)
    error = (tmp_path / "errors").read_text()
    assert process.exitcode == 130 and error.count("\n") == 1 and "--resume" in error
    assert 0 < torch.load(folder / "checkpoint.pt")["step"] < 40 and not (folder / "result.json").exists()
    assert run_main(train.main, argv, capsys)[0] == 0 and len(tradeoff.read_csv(folder / "steps.csv")) == 40


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
@pytest.mark.parametrize("what", ["deleted", "read-only"])
def test_folder_deleted_or_read_only_meanwhile(what, tmp_path, capsys, monkeypatch):
    folder, evaluate, me = tmp_path / "demo_acl-cl_1", train.evaluate, os.geteuid()

    def break_then_evaluate(*args):
        if what == "deleted":
            shutil.rmtree(folder)
        elif me == 0:
            os.seteuid(65534)                               # root may write anywhere, so be nobody
        else:
            folder.chmod(0o500)
        return evaluate(*args)

    monkeypatch.setattr(train, "evaluate", break_then_evaluate)
    try:
        status, error = run_main(train.main, [*DEMO, "--max-steps", "4", "--save-steps", "3", "--output", tmp_path], capsys)
    finally:
        os.seteuid(me)
    assert status == 1 and error.count("\n") == 1 and str(folder) in error
    if what == "read-only":
        folder.chmod(0o700)
        assert torch.load(folder / "checkpoint.pt")["step"] == 3 and not (folder / "result.json").exists()


@pytest.mark.skipif(os.name != "posix" or not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk(tmp_path, capsys, monkeypatch):
    real = torch.save
    monkeypatch.setattr(torch, "save", lambda content, path: real(content, "/dev/full"))
    status, error = run_main(train.main, [*DEMO, "--max-steps", "2", "--output", tmp_path], capsys)
    assert status == 1 and "cannot write" in error and error.count("\n") == 1


@pytest.mark.parametrize("method, conflict", [("ce", "none"), ("scl", "none"), ("acl-embed", "none"), ("acl-grad", "discard"),
                                              ("acl-cl", "discard"), ("kd", "none")])
@pytest.mark.parametrize("center", [False, True])
def test_each_methods_terms(method, conflict, center, put_back):
    """Each exit's term, weighted by its layer's number (not its place in the list); and the method's defaults."""
    model, labels = small_model(num_layers=5, exits_at="1,3,5", dropout=0.0), torch.tensor([0, 1, 1, 0, 1, 0])
    h, logits = model(**small_batch(6, 9))
    args = train.parse_args(["--task", "rte", "--method", method, "--exits", "1,3,5"])
    if center:
        variants.center()
    tau = 2.0 if method == "kd" else 0.5
    assert args.conflict == conflict and args.temperature == tau and args.weight == (0.5 if method == "kd" else 0.1)
    views = [variants.centered(x, c.weight) if center else (x, c.weight) for x, c in zip(h, model.classifiers)]
    (top, top_rows), z = views[-1], logits
    want = {"ce": [torch.zeros(())] * 3, "scl": [acl.scl_loss(x, labels, tau) for x, _ in views],
            "acl-embed": [acl.acl_embed_loss(x, labels, r, tau) for x, r in views],
            "kd": [acl.kd_loss(z[0], z[2], tau), acl.kd_loss(z[1], z[2], tau), torch.zeros(())]}
    want["acl-grad"] = want["acl-embed"]
    want["acl-cl"] = [own + (acl.acl_cl_loss(x, top, labels, top_rows, tau) if m < 2 else 0)
                      for m, (own, (x, _)) in enumerate(zip(want["acl-embed"], views))]
    ce, cl = train.compute_losses(args, model, h, logits, labels)
    for m, w in enumerate((1, 3, 5)):
        assert ce[m].item() == pytest.approx(w / 9 * F.cross_entropy(z[m], labels).item(), rel=1e-5)
        assert cl[m].item() == pytest.approx(w / 9 * want[method][m].item(), rel=1e-5, abs=1e-7)


def test_schedule():
    model = small_model()
    optimizer, schedule = train.make_optimizer(train.parse_args(["--task", "rte", "--method", "ce", "--lr", "1e-4"]), model, 100)
    lrs = []
    for _ in range(101):
        lrs.append(schedule.get_last_lr()[0])
        optimizer.step(), schedule.step()
    assert lrs[0] == 0 and lrs[5] == pytest.approx(5e-5) and lrs[10] == max(lrs) == 1e-4 and lrs[55] == pytest.approx(5e-5) and lrs[100] == 0


def test_seeds_epochs_and_steps(tmp_path, monkeypatch, capsys):
    """Every epoch and seed has an order of its own, every seed a start of its own, every step its own gradient, clipped."""
    seen, norms, clipped = [], [], []
    forward, clip = train.forward_shared, torch.nn.utils.clip_grad_norm_

    def watch_forward(model, batch, *rest):
        seen.append((batch["input_ids"].tolist(), model.training, model.classifiers[0].weight.detach().clone()))
        return forward(model, batch, *rest)
    def watch_clip(parameters, *rest):
        norms.append(clip(parameters := list(parameters), *rest))
        clipped.append(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm().item())
        return norms[-1]
    monkeypatch.setattr(train, "forward_shared", watch_forward)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watch_clip)
    assert train.main(["--task", "demo", "--method", "scl", "--limit-train", "64", "--batch-size", "64", "--epochs", "2", "--seeds", "1",
                       "2", "--lr", "1e-9", "--temperature", "0.01", "--weight", "0.9", "--precision", "fp32", "--output", str(tmp_path)]) == 0
    orders = [rows for rows, _, _ in seen]
    assert len(orders) == 4 and all(a != b for a, b in itertools.combinations(orders, 2))
    assert all(sorted(rows) == sorted(orders[0]) and training for rows, training, _ in seen)
    assert not torch.equal(seen[0][2], seen[2][2])
    scores = [json.loads((tmp_path / f"demo_scl_{seed}" / "result.json").read_text())["score"] for seed in (1, 2)]
    mean, sd = sum(scores) / 2, abs(scores[0] - scores[1]) / 2**0.5
    assert capsys.readouterr().out.endswith(f"demo scl: accuracy {mean:.2f} sd {sd:.2f} (2 seeds)\n")
    assert norms[0] > 1 and norms[1].item() == pytest.approx(norms[0].item(), rel=1e-3)      # the same rows, the same weights
    assert clipped == pytest.approx([1] * 4, rel=1e-3)


def test_precision():
    cpu = torch.device("cpu")
    assert train.use_bf16("bf16", cpu) is True and train.use_bf16("fp32", cpu) is False
    model, batch = small_model().train(), one_batch(words_split(), range(4), Words())
    for bf16 in (True, False):
        _, logits = train.forward_shared(model, batch, bf16, 0)
        assert (logits.dtype == torch.bfloat16) == bf16


def test_processes_have_dropout_of_their_own(monkeypatch):
    model, batch, halves = small_model(dropout=0.3).train(), one_batch(words_split(), [3, 3, 3, 3], Words()), []
    monkeypatch.setattr(train.dist, "all_reduce", lambda x: None)
    for rank in (0, 1):
        monkeypatch.setattr(train, "process", lambda: (rank, 2))
        halves.append(train.forward_shared(model, batch, False, 7)[0])
    assert not halves[0][:, 1::2].any() and not halves[1][:, 0::2].any()
    assert not torch.allclose(halves[0][:, 0::2], halves[1][:, 1::2])


def test_finish_by_hand(tmp_path):
    """MNLI, two exits: result.json from handmade logs, and the submission files from the deepest exit."""
    args = train.parse_args(["--task", "mnli", "--method", "acl-cl", "--exits", "1,2", "--predict", "--batch-size", "2"])
    model = small_model(num_layers=2, num_labels=3)
    splits = {name: words_split(4 if name != "test_mismatched" else 5) for name in
              ("train", "dev_matched", "dev_mismatched", "test_matched", "test_mismatched")}
    logits = torch.stack([F.one_hot(torch.tensor([0, 1, 2, 1]), 3), F.one_hot(torch.tensor([0, 1, 1, 1]), 3)]).float()
    dev = {"dev_matched.logits": logits, "dev_mismatched.logits": logits.clone()}
    logs = {"exits.csv": [dict(zip(("epoch", "split", "exit_layer", "accuracy"), row)) for row in (
                (1, "dev_matched", 1, 99.0), (1, "dev_matched", 2, 40.0), (2, "dev_matched", 1, 75.0),
                (2, "dev_matched", 2, 60.0), (2, "dev_mismatched", 2, 98.0), (3, "dev_matched", 1, 75.0),
                (3, "dev_matched", 2, 50.0), (3, "dev_mismatched", 1, 1.0), (3, "dev_mismatched", 2, 2.0))],
            "steps.csv": [dict(zip(("cosine", "angle", "kept"), row)) for row in (
                ("0.0", "90.000", "1.0000"), ("nan", "nan", "0.0000"), ("-0.5", "120.000", "0.0000"),
                ("0.1", "84.261", "1.0000"), ("", "", ""))]}
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    train.finish(args, 1, splits, model, Words(), torch.device("cpu"), tmp_path, dev, logs, 6, 3.0)
    result = json.loads((tmp_path / "result.json").read_text())
    assert not (tmp_path / "checkpoint.pt").exists()
    assert result["score"] == 50 and result["exit_scores"] == [75, 50] and result["mean_exit_score"] == 62.5
    assert result["dev"] == {"dev_matched": {"accuracy": 50}, "dev_mismatched": {"accuracy": 2}}
    assert result["best_epoch_picked_on_dev"] == {"epoch": 2, "score": 60}
    assert result["conflict_share"] == 0.5 and result["non_finite"] == 1 and result["kept"] == 0.5
    assert result["examples_per_second"] == 4                                  # 6 steps of 2 rows in 3 seconds
    for name, file in (("test_matched", "MNLI-m.tsv"), ("test_mismatched", "MNLI-mm.tsv")):
        _, said = exits.all_exits(model, splits[name], Words(), torch.device("cpu"))
        rows = [f"{i}\t{('entailment', 'neutral', 'contradiction')[k]}\n" for i, k in enumerate(said[-1].argmax(-1).tolist())]
        assert (tmp_path / file).read_text() == "index\tprediction\n" + "".join(rows)
    assert said[-1].argmax(-1).tolist() != said[0].argmax(-1).tolist()         # the seed shows which exit answers


def test_geometry_is_each_exits_own():
    model, split = small_model(), words_split()
    args = train.parse_args(["--task", "rte", "--method", "ce"])
    dev, rows = train.evaluate(args, model, {"dev": split, "train": split}, Words(), torch.device("cpu"))
    h, logits = exits.all_exits(model, split, Words(), torch.device("cpu"), keep_h=9)
    assert list(dev) == ["dev.logits", "dev.labels"] and torch.equal(dev["dev.logits"], logits)
    assert torch.equal(dev["dev.labels"], labels_of(split))
    for m, row in enumerate(rows):
        geometry = acl.geometry(h[m], labels_of(split), model.classifiers[m].weight.detach())
        accuracy = glue.accuracy(logits[m].argmax(-1), labels_of(split))
        assert row == {"split": "dev", "exit_layer": m + 1, "accuracy": accuracy, **geometry}



# --------------------------------------------------------------------------------------------------------------- bad input

RTE_ROW = "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t"


def rte(text):
    return lambda folder: ["--task", "rte", "--method", "ce", "--data", write_download(folder, "rte", train=text)]


def run_of(change):
    """A demo run's folder, changed; for exits.py."""
    def make(folder):
        with_run = folder / "demo_acl-cl_1"
        assert train.main([*DEMO, "--max-steps", "1", "--output", str(folder)]) == 0
        change(with_run)
        return [with_run]
    return make


def swap_json(name, **values):
    return lambda run: (run / name).write_text(json.dumps(json.loads((run / name).read_text()) | values))


def demo(*options):
    return lambda folder: ["--task", "demo", "--method", "acl-cl", *options]


def electra(folder):
    ElectraModel(ElectraConfig(vocab_size=40, embedding_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                               intermediate_size=32)).save_pretrained(folder / "electra")
    BertTokenizer(vocab={w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"])}).save_pretrained(
        folder / "electra")
    return ["--task", "rte", "--method", "ce", "--data", write_download(folder), "--model", folder / "electra"]


BAD = {     # name: (main, folder -> arguments, word that the message must have)
    "unknown task": (train.main, lambda f: ["--task", "rtee", "--method", "ce"], "rtee"),
    "unknown method": (train.main, lambda f: ["--task", "rte", "--method", "cee"], "cee"),
    "no task": (train.main, lambda f: ["--method", "ce"], "--task"),
    "stsb": (train.main, lambda f: ["--task", "stsb", "--method", "ce"], "regression"),
    "missing data": (train.main, lambda f: ["--task", "rte", "--method", "ce", "--data", "./nowhere"], "nowhere"),
    "empty data folder": (train.main, lambda f: ["--task", "rte", "--method", "ce", "--data", f], "RTE/train.tsv"),
    "missing file": (train.main, lambda f: ["--task", "rte", "--method", "ce", "--data", write_download(f), (f / "RTE" / "dev.tsv").unlink() or
                     "--resume"], "dev.tsv"),
    "empty file": (train.main, rte(""), "train.tsv, line 1"),
    "header only": (train.main, rte("index\tsentence1\tsentence2\tlabel\n"), "no rows"),
    "wrong header": (train.main, rte("a\tb\tc\td\n0\tA\tB\tentailment\n"), "line 1"),
    "short row": (train.main, rte(RTE_ROW + "entailment\n1\tA\tB\n"), "line 3"),
    "long row": (train.main, rte(RTE_ROW + "entailment\tx\n"), "line 2"),
    "empty line in the middle": (train.main, rte(RTE_ROW + "entailment\n\n1\tA\tB\tentailment\n"), "line 3"),
    "foreign label": (train.main, rte(RTE_ROW + "neutral\n"), "neutral"),
    "label as a float": (train.main, rte(RTE_ROW + "1.0\n"), "1.0"),
    "empty label": (train.main, rte(RTE_ROW + "\n"), "line 2"),
    "random bytes": (train.main, rte(random.Random(0).randbytes(3000)), "train.tsv"),
    "invalid utf-8": (train.main, rte(RTE_ROW.encode() + b"entailment\n1\t\xff\xfe\tB\tentailment\n"), "train.tsv"),
    "NUL bytes": (train.main, rte(b"\0" * 500), "line 1"),
    "a million columns": (train.main, rte(RTE_ROW + "entailment\n" + "x\t" * 10**6 + "\n"), "1000001 columns"),
    "a folder as file": (train.main, lambda f: [(f / "RTE" / "train.tsv").mkdir(parents=True), "--task", "rte", "--method", "ce",
                         "--data", f][1:], "train.tsv"),
    "a class absent from train": (train.main, rte(RTE_ROW + "entailment\n"), "not_entailment"),
    "torn parquet": (train.main, lambda f: [(f / "rte").mkdir(), [(f / "rte" / f"{s}-0.parquet").write_bytes(b"PAR1")
                     for s in ("train", "validation", "test")], "--task", "rte", "--method", "ce", "--data", f][2:], "cannot load"),
    "model without config": (train.main, lambda f: ["--task", "rte", "--method", "ce", "--data", write_download(f), "--model", f],
                             "config.json"),
    "model with a torn config": (train.main, lambda f: [(f / "config.json").write_text("{"), "--task", "rte", "--method", "ce",
                                 "--data", write_download(f), "--model", f][1:], "cannot load model"),
    "model without BERT's layers": (train.main, electra, "BERT"),
    "batch size 0": (train.main, demo("--batch-size", "0"), "--batch-size"),
    "steps 0": (train.main, demo("--max-steps", "0"), "--max-steps"),
    "epochs -1": (train.main, demo("--epochs", "-1"), "--epochs"),
    "epochs 1.5": (train.main, demo("--epochs", "1.5"), "--epochs"),
    "temperature 0": (train.main, demo("--temperature", "0"), "--temperature"),
    "temperature nan": (train.main, demo("--temperature", "nan"), "--temperature"),
    "weight below 0": (train.main, demo("--weight", "-1"), "--weight"),
    "weight above 1 for scl": (train.main, lambda f: ["--task", "demo", "--method", "scl", "--weight", "2"], "--weight"),
    "lr inf": (train.main, demo("--lr", "inf"), "--lr"),
    "max length 2": (train.main, demo("--max-length", "2"), "--max-length"),
    "max length beyond the positions": (train.main, demo("--max-length", "129"), "128 positions"),
    "equal seeds": (train.main, demo("--seeds", "1", "1"), "--seeds"),
    "huge seed": (train.main, demo("--seeds", str(2**40)), "--seeds"),
    "conflict without a second loss": (train.main, lambda f: ["--task", "demo", "--method", "ce", "--conflict", "discard"], "--conflict"),
    "project at the features": (train.main, demo("--conflict", "project", "--conflict-at", "features"), "--conflict-at"),
    "exits the model lacks": (train.main, demo("--exits", "2,9"), "exits"),
    "exits without the last": (train.main, demo("--exits", "1,2"), "4"),
    "exits as words": (train.main, demo("--exits", "first"), "first"),
    "one exit for acl-cl": (train.main, demo("--exits", "last"), "students"),
    "a class only in the held-out end": (train.main, lambda f: [*rte(RTE_ROW + "entailment\n1\tA\tB\tnot_entailment\n")(f),
                                         "--holdout", "1"], "not_entailment"),
    "holdout of everything": (train.main, demo("--holdout", "4000"), "--holdout"),
    "output is a file": (train.main, lambda f: [(f / "out").write_text(""), *demo("--output", str(f / "out"))(f)][1:], "out"),
    "output cannot be made": (train.main, demo("--output", "/dev/null/runs"), "--output"),
    "output on a file system that takes none": (train.main, demo("--output", "/proc/runs"), "--output"),
    "gpu absent": (train.main, demo("--device", "cuda"), "--device"),
    "no run": (tradeoff.main, lambda f: [f / "nothing"], "no finished run"),
    "torn result": (tradeoff.main, run_of(lambda run: (run / "result.json").write_text("{")), "torn"),
    "torn logits": (tradeoff.main, run_of(lambda run: (run / "dev_logits.safetensors").write_bytes(b"x" * 20)), "torn"),
    "config with wrong types": (tradeoff.main, run_of(swap_json("config.json", exit_layers=7)), "torn"),
    "config of another task": (tradeoff.main, run_of(swap_json("config.json", task="cola")), "torn"),
    "logits of another run": (tradeoff.main, run_of(swap_json("result.json", exit_scores=[1, 2, 3, 4])), "torn"),
    "model of another run": (tradeoff.main, lambda f: [*run_of(lambda run: (run / "model" / "model.safetensors").write_bytes(
        safetensors.torch.save({"x": torch.zeros(1)})))(f), "--clock"], "model"),
    "unknown rule": (tradeoff.main, lambda f: [f, "--rule", "guess"], "guess"),
    "threshold above 1": (tradeoff.main, lambda f: [f, "--rule", "entropy", "--threshold", "1.5"], "threshold"),
    "threshold nan": (tradeoff.main, lambda f: [f, "--rule", "entropy", "--threshold", "nan"], "threshold"),
    "patience 0": (tradeoff.main, lambda f: [f, "--rule", "patience", "--patience", "0"], "patience"),
    "pcee without patience": (tradeoff.main, lambda f: [f, "--rule", "pcee", "--threshold", "0.1"], "patience"),
    "angles of no run": (angles.main, lambda f: [f / "nothing"], "steps.csv"),
    "angles never measured": (angles.main, lambda f: [(f / "steps.csv").write_text("step,epoch,angle\n1,1,\n"), f][1:], "--conflict"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_status_2_and_writes_nothing(name, tmp_path, capsys, monkeypatch):
    main, arguments, word = BAD[name]
    if name == "gpu absent" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "input").mkdir()
    argv = arguments(tmp_path / "input")
    monkeypatch.chdir(tmp_path)
    before = sorted((str(f), f.stat().st_size) for f in tmp_path.rglob("*"))
    status, error = run_main(main, argv, capsys)
    assert status == 2 and word in error and error.count("\n") == 1 and "Traceback" not in error
    assert sorted((str(f), f.stat().st_size) for f in tmp_path.rglob("*")) == before


def test_no_network_names_the_ways_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    status, error = run_main(train.main, ["--task", "rte", "--method", "ce", "--data", write_download(tmp_path), "--output",
                                          tmp_path / "runs"], capsys)
    assert status == 2 and "--model" in error and "--task demo" in error and error.count("\n") == 1
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no network")))
    status, error = run_main(train.main, ["--task", "rte", "--method", "ce", "--output", tmp_path / "runs"], capsys)
    assert status == 2 and "--data" in error and "--task demo" in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", [RTE_ROW + "entailment\n1\t" + "word " * 100_000 + "\tB\tnot_entailment\n",
                                  RTE_ROW + "entailment\n1\t\0\0\tB\tnot_entailment\n", RTE_ROW + "entailment\n1\t\t\tnot_entailment"])
def test_odd_but_valid_rows_are_read(text, tmp_path):
    splits = glue.load_task("rte", write_download(tmp_path, "rte", train=text))
    split = glue.tokenize(splits["train"], exits.demo_encoder()[1], 64)
    assert split["label"][:] == [0, 1] and glue.row_lengths(split).max() <= 64


# ------------------------------------------------------------------------------------------------------------------ README

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_snippets_and_docstrings_run():
    for result in [doctest.testfile(str(ROOT / "README.md"), module_relative=False)] + [
            doctest.testmod(module) for module in (acl, grad_surgery, exits)]:
        assert result.failed == 0 and result.attempted > 0


def test_readme_commands_and_names_exist():
    commands = re.findall(r"^(?:.*&& )?(?:python|torchrun --nproc-per-node 2) train\.py (.*?)(?:#.*)?$", README, re.MULTILINE)
    assert len(commands) > 2
    for command in commands:
        train.parse_args(command.split())
    for module, name in re.findall(r"`(acl|grad_surgery|exits|train|glue)\.(\w+)`", README):
        assert name == "py" or hasattr({"acl": acl, "grad_surgery": grad_surgery, "exits": exits, "train": train, "glue": glue}[
            module], name), f"{module}.{name}"
    for name in re.findall(r"`(test_\w+)`", README):
        assert name in globals(), name
    for option in set(re.findall(r"`(--[a-z-]+)", README)):
        assert option in (ROOT / "train.py").read_text() + (ROOT / "results" / "tradeoff.py").read_text() or option == "--no-students-embed", option


def test_readme_tables_are_what_the_command_prints():
    printed = command("results/tables.py", "--block", "vanilla", "multi")
    assert printed.strip() and f"<!-- results -->\n{printed}<!-- /results -->\n" in README


def test_table_cells_by_hand():
    def run(task, method, seed, *scores):
        return {"task": task, "method": method, "seed": seed, "exit_scores": list(scores), "mean_exit_score": sum(scores) / 2,
                "shallow": scores[0], "twice": scores[1]}
    runs = [run("rte", "ce", 1, 50, 60), run("mrpc", "ce", 1, 70, 80), run("rte", "ce", 2, 52, 62), run("mrpc", "ce", 2, 70, 80),
            run("rte", "kd", 1, 52, 60), run("mrpc", "kd", 1, 72, 84), run("rte", "kd", 2, 52, 66)]
    ce, kd = (tables.select(tables.averaged(runs), method=method) for method in ("ce", "kd"))
    assert [r["exit_scores"] for r in ce] == [[60, 70], [61, 71]] and [r["twice"] for r in ce] == [70, 71]
    assert [(r["seed"], r["shallow"], r["mean_exit_score"]) for r in kd] == [(1, 62, 67)]         # seed 2 lacks MRPC
    assert tables.averaged([r for r in runs if r["task"] == "rte"]) == []                         # nothing to average
    assert tables.difference(kd, ce, "shallow") == "+2.00"
    # differences 1 and 2: mean 1.5, sd 0.7071, standard error 0.5, t(1 degree of freedom) 12.706
    rte_ce, rte_kd = (tables.select(runs, task="rte", method=method) for method in ("ce", "kd"))
    assert tables.difference(rte_kd, rte_ce, "mean_exit_score") == "+1.50 [-4.85, 7.85]"
    assert tables.difference(rte_ce, rte_ce, "shallow") == "" and tables.mean_sd([1.0, 3.0]) == "2.0±1.4"
