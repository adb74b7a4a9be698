"""Tests of variants.py: every change against a slow version, by hand, or in a short training."""

import argparse
import math

import pytest
import torch
import torch.nn.functional as F

import acl
import train
from results import variants
from tools.files import read_csv, read_json
from tools.testing import run_main, small_batch, small_model

torch.set_num_threads(1)  # small tensors: a second thread only waits

DEMO = "--task demo --method acl-cl --limit-train 320 --max-steps 6 --batch-size 32".split()


@pytest.fixture
def put_back(monkeypatch):
    """What a change replaces is put back after the test."""
    for places in variants.CHANGES.values():
        for where, what, _ in places:
            monkeypatch.setattr(where, what, getattr(where, what))


def train_with(change, argv, output):
    """`python results/variants.py CHANGE ..` or, without one, train.py; returns its steps.csv."""
    argv = [*argv, "--output", str(output)]
    if change is None:
        assert train.main(train.parse_args(argv)) == 0
    else:
        assert variants.main([change, *argv]) == 0
    [folder] = output.iterdir()
    return read_csv(folder / "steps.csv")


@pytest.fixture(scope="module")
def plain_steps(tmp_path_factory):
    return train_with(None, DEMO, tmp_path_factory.mktemp("plain") / "runs")


CHANGES_THE_LOSS = ("center", "nt-xent", "own-teacher", "label-embedding-keys",
                    "label-embedding-anchors")
CHANGES_WHAT_FOLLOWS = ("detached", "warm-up", "layer-wise", "best-teacher")


@pytest.mark.parametrize("change", CHANGES_THE_LOSS + CHANGES_WHAT_FOLLOWS)
def test_a_change_changes_what_it_says(change, plain_steps, tmp_path, put_back):
    """Each trains; it changes the first step's loss, or only what the loss leads to."""
    steps = train_with(change, DEMO, tmp_path / "runs")
    if change != "best-teacher":  # the best exit may be the deepest one or not
        at_once = plain_steps[0]["acl_loss"] != steps[0]["acl_loss"]
        assert at_once == (change in CHANGES_THE_LOSS)
    assert plain_steps[1:] != steps[1:]
    [folder] = (tmp_path / "runs").iterdir()
    assert read_json(folder / "config.json")["change"] == change


def test_every_change_is_tested():
    others = {"shared-pooler", "conflict-groups"}  # below
    assert set(variants.CHANGES) == {*CHANGES_THE_LOSS, *CHANGES_WHAT_FOLLOWS, *others}
    for name in variants.CHANGES:
        assert name in variants.usage()


def test_bad_input(tmp_path, capsys):
    """One line and status 2, nothing written."""
    here = ["--output", str(tmp_path / "runs")]
    cases = [
        ([], "first argument"),
        (["row-anchors"], "first argument"),
        (["shared-pooler", *DEMO, *here, "--pooling", "mean"], "--pooling cls"),
        (["conflict-groups", "--task", "demo", "--method", "ce", *here], "second loss"),
    ]
    for argv, word in cases:
        status, error = run_main(variants.main, argv, capsys)
        assert status == 2 and word in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_changed_run_is_another_run(tmp_path, put_back, capsys):
    """--resume neither takes a plain run for a changed one nor the other way round."""
    train_with("center", [*DEMO, "--max-steps", "1"], tmp_path / "runs")
    argv = [*DEMO, "--max-steps", "1", "--resume", "--output", str(tmp_path / "runs")]
    capsys.readouterr()
    assert train.main(train.parse_args(argv)) == 2
    assert "another change" in capsys.readouterr().err
    assert variants.main(["detached", *argv]) == 2
    assert variants.main(["center", *argv]) == 0


# ------------------------------------------------------------------- the contrastive losses


def cosines(anchors, keys, tau):
    """[[z_a.z_b / tau]] as numbers."""
    table = []
    for a in anchors:
        lengths = [(a @ a).sqrt() * (b @ b).sqrt() for b in keys]
        table.append([(a @ b) / length / tau for b, length in zip(keys, lengths)])
    return table


def slow_nt_xent(anchors, keys, positive, tau, exclude_self):
    """variants.nt_xent's formula, a pair at a time, in float64."""
    s = cosines(anchors, keys, tau)
    terms = []
    for a in range(len(anchors)):
        others = [b for b in range(len(keys)) if not (exclude_self and a == b)]
        negatives = [s[a][n].exp() for n in others if not positive[a, n]]
        for p in others:
            if positive[a, p]:
                e = s[a][p].exp()
                terms.append(-(e / (e + sum(negatives))).log())
    return sum(terms) / len(terms) if terms else torch.zeros((), dtype=torch.float64)


def slow_supcon(anchors, keys, positive, tau):
    """acl.contrastive_loss's formula, a pair at a time, in float64."""
    s = cosines(anchors, keys, tau)
    means = []
    for a in range(len(anchors)):
        total = sum(number.exp() for number in s[a])
        log_p = [(s[a][b].exp() / total).log() for b in range(len(keys)) if positive[a][b]]
        if log_p:
            means.append(-sum(log_p) / len(log_p))
    return sum(means) / len(means)


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1], [0, 0, 0], [0, 1], [0]])
@pytest.mark.parametrize("tau", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("exclude_self", [True, False])
def test_nt_xent_and_its_gradients_equal_the_slow_version(labels, tau, exclude_self):
    torch.manual_seed(0)
    labels = torch.tensor(labels)
    positive = labels[:, None] == labels[None, :]
    h = torch.randn(len(labels), 4, dtype=torch.float64, requires_grad=True)
    keys = h if exclude_self else torch.randn(len(labels), 4, dtype=torch.float64)
    loss = variants.nt_xent(h, keys, positive, tau, exclude_self)
    slow = slow_nt_xent(h, keys, positive, tau, exclude_self)
    assert loss.item() == pytest.approx(slow.item(), rel=1e-4, abs=1e-6)
    if slow.requires_grad:
        [fast_gradient] = torch.autograd.grad(loss, h, retain_graph=True)
        [slow_gradient] = torch.autograd.grad(slow, h)
        assert torch.allclose(fast_gradient, slow_gradient, rtol=1e-3, atol=1e-5)
    else:
        assert loss.item() == 0 and torch.autograd.grad(loss, h)[0].abs().max() == 0


def test_nt_xent_by_hand():
    """Two samples at one point, one opposite, tau 1: both pairs give log(1 + e^-1 / e^1)."""
    h = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 0, 1])
    positive = labels[:, None] == labels[None, :]
    loss = variants.nt_xent(h, h, positive, 1.0, exclude_self=True)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)


def test_nt_xent_an_item_is_no_negative_of_itself():
    """Whether or not the caller calls it its own positive."""
    torch.manual_seed(0)
    h, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    positive = labels[:, None] == labels[None, :]
    without_itself = positive & ~torch.eye(4, dtype=torch.bool)
    losses = [variants.nt_xent(h, h, p, 0.5, True).item() for p in (positive, without_itself)]
    assert losses[0] == losses[1]


def test_nt_xent_never_pushes_a_class_apart():
    """One class alone has nothing to be told from: no loss, no gradient.  SupCon has both."""
    h = torch.randn(6, 3, requires_grad=True)
    positive = torch.ones(6, 6, dtype=torch.bool)
    loss = variants.nt_xent(h, h, positive, 0.1, exclude_self=True)
    assert loss.item() == 0 and torch.autograd.grad(loss, h)[0].abs().max() == 0
    assert acl.contrastive_loss(h, h, positive, 0.1, exclude_self=True) > 1


def test_nt_xent_reaches_every_loss(put_back):
    torch.manual_seed(0)
    h, label_embeddings = torch.randn(6, 4), torch.randn(2, 4)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])

    def all_losses():
        return [
            acl.scl_loss(h, labels, 0.5).item(),
            acl.acl_embed_loss(h, labels, label_embeddings, 0.5).item(),
            acl.acl_cl_loss(h, h.flip(0), labels, label_embeddings, 0.5).item(),
        ]

    before = all_losses()
    variants.put_in_place("nt-xent")
    assert all(a != b for a, b in zip(before, all_losses()))


def test_detached(put_back):
    """The samples' gradient as before, the label embeddings' none."""
    torch.manual_seed(0)
    h = torch.randn(4, 3, requires_grad=True)
    label_embeddings = torch.randn(2, 3, requires_grad=True)
    labels = torch.tensor([0, 1, 1, 0])
    loss = variants.detached(h, labels, label_embeddings, 0.5)
    plain = acl.acl_embed_loss(h, labels, label_embeddings, 0.5)
    gradients = torch.autograd.grad(loss, [h, label_embeddings], allow_unused=True)
    assert torch.equal(gradients[0], torch.autograd.grad(plain, h)[0])
    assert gradients[1] is None and loss.item() == plain.item()


def test_center_makes_two_label_embeddings_opposite(monkeypatch):
    given = {}
    monkeypatch.setattr(variants, "SECOND_LOSS", lambda args, m, h, l, *_: given.update(h=h, l=l))
    h, label_embeddings = torch.randn(2, 5, 3) + 7, torch.randn(2, 2, 3) + 7
    variants.center(None, 0, h.unbind(), label_embeddings.unbind(), None, None)
    for h_m, l_m in zip(given["h"], given["l"]):
        assert torch.allclose(h_m.sum(dim=0), torch.zeros(3), atol=1e-5)
        assert torch.allclose(l_m[0], -l_m[1], atol=1e-5)


@pytest.mark.parametrize("method", train.METHODS)
def test_center_reaches_every_methods_terms(method, put_back):
    """Each exit's second loss is that of the centred h and label embeddings, teacher included."""
    model = small_model(num_layers=5, exits_at="1,3,5", dropout=0.0)
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    h, logits = model(small_batch(6, 9))
    args = train.parse_args(["--task", "rte", "--method", method, "--exits", "1,3,5"])
    tau = args.temperature
    x = [h_m - h_m.mean(dim=0) for h_m in h]
    l = [c.weight - c.weight.mean(dim=0) for c in model.classifiers]
    own = [acl.acl_embed_loss(x[m], labels, l[m], tau) for m in range(3)]
    if method == "scl":
        want = [acl.scl_loss(x_m, labels, tau) for x_m in x]
    elif method in ("acl-embed", "acl-grad"):
        want = own
    elif method == "acl-cl":
        guided = [acl.acl_cl_loss(x[m], x[2], labels, l[2], tau) for m in range(2)]
        want = [own[0] + guided[0], own[1] + guided[1], own[2]]
    elif method == "kd":
        want = [acl.kd_loss(logits[m], logits[2], tau) for m in range(2)] + [torch.zeros(())]
    else:
        want = [torch.zeros(())] * 3
    variants.put_in_place("center")
    _, acl_losses = train.losses(args, model, h, logits, labels)
    for w, found, expected in zip((1, 3, 5), acl_losses, want):
        assert found.item() == pytest.approx(w / 9 * expected.item(), rel=1e-5, abs=1e-7)


# ---------------------------------------------------------------------------------- ACL-CL


def test_best_teacher(put_back):
    """The exit with the lowest cross-entropy guides the others, and none guides it."""
    args = train.parse_args(["--task", "rte", "--method", "kd", "--temperature", "1"])
    labels = torch.tensor([0, 1])
    sure = F.one_hot(labels, 2).float()
    logits = torch.stack([sure, 5 * sure, 2 * sure])  # the second exit is best
    h = torch.randn(3, 2, 4)
    variants.put_in_place("best-teacher")
    found = [train.second_loss(args, m, h, h, logits, labels).item() for m in range(3)]
    first, third = (acl.kd_loss(logits[m], logits[1], 1.0).item() for m in (0, 2))
    assert found == [first, 0, third]


LABELS = torch.tensor([0, 1, 0])


def student_and_teacher():
    torch.manual_seed(1)
    h = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    label_embeddings = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    return h, label_embeddings


def test_own_teacher_by_hand():
    """Keys: three samples, two label embeddings.  Positives: the own vector, the own class's."""
    h, l = student_and_teacher()
    positive = [[1, 0, 0, 1, 0], [0, 1, 0, 0, 1], [0, 0, 1, 1, 0]]
    loss = variants.own_teacher(h[0], h[1], LABELS, l[1], 0.5)
    want = slow_supcon(h[0], torch.cat([h[1], l[1]]), positive, 0.5)
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    gradient = torch.autograd.grad(loss, [h, l], allow_unused=True)
    assert gradient[0][0].abs().max() > 0  # the student moves
    assert gradient[0][1].abs().max() == 0 and gradient[1] is None  # the teacher does not


def test_label_embedding_keys_by_hand():
    h, l = student_and_teacher()
    loss = variants.label_embedding_keys(h[0], h[1], LABELS, l[1], 0.5)
    want = slow_supcon(h[0], l[1], [[1, 0], [0, 1], [1, 0]], 0.5)
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert torch.autograd.grad(loss, l, allow_unused=True)[0] is None


@pytest.mark.parametrize("students_embed", [True, False])
def test_label_embedding_anchors_by_hand(students_embed):
    """A student's anchors: its samples and its label embeddings; the teacher trains as ever."""
    h, l = student_and_teacher()
    args = argparse.Namespace(method="acl-cl", temperature=0.5, students_embed=students_embed)
    logits = torch.zeros(2, 3, 2)
    item_labels = [0, 1, 0, 0, 1]
    positive = [[a == b for b in item_labels] for a in item_labels]
    want = slow_supcon(torch.cat([h[0], l[0]]), torch.cat([h[1], l[1]]), positive, 0.5)
    if students_embed:
        want = want + acl.acl_embed_loss(h[0], LABELS, l[0], 0.5)
    student = variants.label_embedding_anchors(args, 0, h, l, logits, LABELS)
    assert student.item() == pytest.approx(want.item(), rel=1e-5)
    gradient = torch.autograd.grad(student, l)[0]
    assert gradient[0].abs().max() > 0 and gradient[1].abs().max() == 0
    teacher = variants.label_embedding_anchors(args, 1, h, l, logits, LABELS)
    assert teacher.item() == acl.acl_embed_loss(h[1], LABELS, l[1], 0.5).item()


# ----------------------------------------------------------------------------- the training


def test_warm_up():
    args = argparse.Namespace(weight=0.5)
    weights = [variants.warm_up(args, step) for step in (0, 49, 99, 100, 1000)]
    assert weights == pytest.approx([0.005, 0.25, 0.5, 0.5, 0.5])


def test_shared_pooler(put_back):
    """h is the encoder's pooler of the mean of the tokens, without the padding."""
    model = small_model(pooling="cls").eval()
    batch = small_batch(4, 8)
    hidden = model.encoder(**batch, output_hidden_states=True).hidden_states[2]  # (N, L, d)
    variants.put_in_place("shared-pooler")
    h = model(batch)[0][1]
    for i, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        mean = hidden[i, :length].mean(dim=0)
        want = model.encoder.pooler(mean[None, None])[0]
        assert torch.allclose(h[i], want, atol=1e-5)


def test_layer_wise():
    """0.8 to the number of layers above; heads at their own rate; decay on matrices alone."""
    model = small_model(num_layers=3)
    args = train.parse_args(["--task", "rte", "--method", "ce", "--lr", "1e-3", "--head-lr", "1"])
    optimizer, _ = variants.layer_wise(args, model, 100)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        [p] = group["params"]
        found[names[id(p)]] = (group["initial_lr"], group["weight_decay"])
        assert group["weight_decay"] == (0.01 if p.dim() > 1 else 0)
    assert len(found) == len(names)
    for name, (lr, _) in found.items():
        want = {".layer.0.": 6.4e-4, ".layer.1.": 8e-4, ".layer.2.": 1e-3, "embeddings": 6.4e-4,
                "classifiers": 1.0, "pooler": 1e-3}
        [expected] = [lr for part, lr in want.items() if part in name]
        assert lr == pytest.approx(expected), name


# ------------------------------------------------------- where in the model they conflict


def test_conflict_groups_equal_flat_gradients():
    """A group's cosine is that of both gradients over its parameters, laid side by side."""
    model, labels = small_model(dropout=0.0), torch.tensor([0, 1, 1, 0])
    args = train.parse_args(["--task", "rte", "--method", "acl-embed", "--exits", "all"])
    h, logits = model(small_batch(4, 8))
    ce_loss, acl_losses = variants.losses_and_groups(args, model, h, logits, labels)
    found = dict(variants.PENDING)
    assert list(found) == ["embeddings", "layer 1", "layer 2", "layer 3", "pooler",
                           "label embeddings"]
    parts = {"layer 2": ".layer.1.", "pooler": "pooler", "label embeddings": "classifiers"}
    for group, part in parts.items():
        some = [p for name, p in model.named_parameters() if part in name]
        flat = []
        for loss in (ce_loss, sum(acl_losses)):
            gradients = torch.autograd.grad(loss, some, retain_graph=True, allow_unused=True)
            flat.append(gradients)
        pairs = [(a, b) for a, b in zip(*flat) if a is not None and b is not None]
        a = torch.cat([a.flatten() for a, _ in pairs])
        b = torch.cat([b.flatten() for _, b in pairs])
        assert found[group] == pytest.approx(F.cosine_similarity(a, b, dim=0).item(), abs=1e-5)


def test_conflict_groups_change_no_number_and_resume(tmp_path, put_back, monkeypatch):
    """The steps are those of a plain run; groups.csv has a line a step and group, without a gap
    after a kill."""
    argv = [*DEMO, "--limit-train", "128"]  # 4 steps an epoch
    plain = train_with(None, argv, tmp_path / "plain")
    real_step, steps = torch.optim.AdamW.step, []

    def stop(*arguments):
        steps.append(real_step(*arguments))
        if len(steps) == 5:  # after the first epoch's checkpoint
            raise KeyboardInterrupt

    output = tmp_path / "changed"
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stop)
        assert variants.main(["conflict-groups", *argv, "--output", str(output)]) == 130
    train_with("conflict-groups", [*argv, "--resume"], output)
    [folder] = output.iterdir()
    assert read_csv(folder / "steps.csv") == plain

    rows = read_csv(folder / "groups.csv")
    groups = [row["group"] for row in rows if row["step"] == "1"]
    assert {"embeddings", "layer 1", "label embeddings"} < set(groups)
    want = [(str(step), group) for step in range(1, 7) for group in groups]
    assert [(row["step"], row["group"]) for row in rows] == want
    assert all(-1 <= float(row["cosine"]) <= 1 for row in rows)
    assert len({row["cosine"] for row in rows}) > len(rows) / 2
