"""results/variants.py: every change against a slow form, by hand, and in a short training."""

import json
import math
from types import SimpleNamespace

import pandas
import pytest
import torch
import torch.nn.functional as F

import acl
import grad_surgery
import train
from results import variants
from test_acl import slow_cosine, slow_loss
from tests.small import answer, call, small_batch, small_model, small_task

torch.set_num_threads(1)  # small tensors: a second thread only waits

LABELS = torch.tensor([0, 1, 0, 1])
ARGS = SimpleNamespace(method="acl-cl", temperature=0.5, students_embed=True)


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    """What a change replaces is put back after the test."""
    for places in variants.CHANGES.values():
        for where, what, _ in places:
            monkeypatch.setattr(where, what, getattr(where, what))


def make(M=3, N=4, K=2, d=5):
    """h (M, N, d) and label embeddings (M, K, d) in float64, and logits (M, N, K)."""
    torch.manual_seed(1)
    h = torch.randn(M, N, d, dtype=torch.float64, requires_grad=True)
    label_embeddings = torch.randn(M, K, d, dtype=torch.float64, requires_grad=True)
    return h, label_embeddings, torch.randn(M, N, K)


def assert_same(loss, slow, *inputs):
    """Values and gradients."""
    assert loss.tolist() == pytest.approx(slow.tolist(), rel=1e-4, abs=1e-6)
    options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    ours = torch.autograd.grad(loss.sum(), inputs, **options)
    theirs = torch.autograd.grad(slow.sum(), inputs, **options)
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------- the contrastive losses


def slow_supcon(anchors, keys, positive):
    """An anchor at a time; positive: for each anchor 1 where a key is one of its positives."""
    losses = [slow_loss([a], keys, [1], row, 0.5, False) for a, row in zip(anchors, positive)]
    return sum(losses) / len(losses)


def slow_nt_xent(anchors, keys, labels, exclude_self):
    """variants.nt_xent's formula, a pair at a time."""
    terms = []
    for i, a in enumerate(anchors):
        others = [j for j in range(len(keys)) if not (exclude_self and i == j)]
        e = {j: (slow_cosine(a, keys[j]) / 0.1).exp() for j in others}
        negatives = sum(e[j] for j in others if labels[i] != labels[j])
        terms += [-(e[j] / (e[j] + negatives)).log() for j in others if labels[i] == labels[j]]
    return sum(terms) / len(terms) if terms else 0 * anchors.sum()


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1], [0, 0, 0], [0, 1], [0]])
@pytest.mark.parametrize("exclude_self", [True, False])
def test_nt_xent(labels, exclude_self):
    """Of two exits at once; without any pair, and without any negative."""
    h, _, _ = make(M=2, N=len(labels))
    positive = torch.tensor(labels)[:, None] == torch.tensor(labels)
    loss = variants.nt_xent(h, h, positive, 0.1, exclude_self)
    slow = torch.stack([slow_nt_xent(h_m, h_m, labels, exclude_self) for h_m in h])
    assert_same(loss, slow, h)


def test_detached():
    """The samples' gradient is as before, the label embeddings have none."""
    h, l, _ = make()
    slow = acl.acl_embed_loss(h, LABELS, l.detach(), 0.5)
    assert_same(variants.detached(h, LABELS, l, 0.5), slow, h, l)


def test_center():
    """Each exit's loss is that of the centred h and label embeddings, its teacher's too."""
    h, l, logits = make()
    x = torch.stack([h_m - sum(h_m) / 4 for h_m in h])
    c = torch.stack([l_m - sum(l_m) / 2 for l_m in l])
    slow = train.second_loss(ARGS, x, c, logits, LABELS)
    assert_same(variants.center(ARGS, h, l, logits, LABELS), slow, h, l)


# ---------------------------------------------------------------------------------- ACL-CL


def test_best_teacher():
    """The exit with the lowest cross-entropy guides the others, and none guides it."""
    h, l, _ = make()
    sure = F.one_hot(LABELS, 2).float()
    logits = torch.stack([sure, 5 * sure, 2 * sure])  # the second exit is best
    first, third = acl.acl_cl_loss(h[[0, 2]], h[1], LABELS, l[1], 0.5)
    slow = acl.acl_embed_loss(h, LABELS, l, 0.5) + torch.stack([first, 0 * first, third])
    assert_same(variants.best_teacher(ARGS, h, l, logits, LABELS), slow, h, l)


def test_other_positives():
    """Keys: four samples, two label embeddings.  Only the student moves."""
    h, l, _ = make()
    own = [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1], [0, 0, 1, 0, 1, 0], [0, 0, 0, 1, 0, 1]]
    keys = torch.cat([h[2], l[2]]).detach()
    slow = torch.stack([slow_supcon(h[m], keys, own) for m in range(2)])
    assert_same(variants.own_teacher(h[:2], h[2], LABELS, l[2], 0.5), slow, h, l)
    alone = [row[4:] for row in own]
    slow = torch.stack([slow_supcon(h[m], keys[4:], alone) for m in range(2)])
    assert_same(variants.label_embedding_keys(h[:2], h[2], LABELS, l[2], 0.5), slow, h, l)


@pytest.mark.parametrize("students_embed", [True, False])
def test_label_embedding_anchors(students_embed):
    """A student's anchors are its samples and its label embeddings; the teacher trains as ever."""
    h, l, logits = make()
    items, item_labels = torch.cat([h, l], dim=1), [0, 1, 0, 1, 0, 1]
    slow = []
    for student in items[:2]:
        slow.append(slow_loss(student, items[2].detach(), item_labels, item_labels, 0.5, False))
    embed = acl.acl_embed_loss(h, LABELS, l, 0.5)
    slow = torch.stack([*slow, embed[2]])
    if students_embed:
        slow = slow + F.pad(embed[:2], (0, 1))
    args = SimpleNamespace(temperature=0.5, students_embed=students_embed)
    assert_same(variants.label_embedding_anchors(args, h, l, logits, LABELS), slow, h, l)


# ----------------------------------------------------------------------------- the training


def test_random_batches():
    """Every sample once, in the generator's order; only the last batch is smaller."""
    found = variants.random_batches(torch.arange(10), 4, torch.Generator().manual_seed(1))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1)).tolist()
    assert [batch.tolist() for batch in found] == [order[:4], order[4:8], order[8:]]


def test_warm_up(monkeypatch):
    """lambda at the first step, the 50th, the 100th and later; the options stay as they are."""
    monkeypatch.setattr(variants, "TRAINING_STEP", lambda args, *_: args.weight)
    args = SimpleNamespace(weight=0.5)
    for steps_done, weight in ((0, 0.005), (49, 0.25), (99, 0.5), (1000, 0.5)):
        monkeypatch.setattr(variants, "RUN", SimpleNamespace(logs={"steps.csv": [0] * steps_done}))
        assert variants.warm_up(args, None, None, False) == pytest.approx(weight)
    assert args.weight == 0.5


def test_shared_pooler():
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


@pytest.mark.parametrize("part, lr", [
    ("encoder.layer.0.output.dense.weight", 6.4e-4),  # two layers are above it
    ("encoder.layer.2.output.dense.bias", 1e-3),
    ("embeddings.word_embeddings.weight", 6.4e-4),
    ("classifiers.0.weight", 1.0),
])
def test_layer_wise(part, lr):
    """0.8 to the number of layers above; the heads have a rate of their own."""
    model = small_model(num_layers=3)
    optimizer, _ = variants.layer_wise(SimpleNamespace(lr=1e-3, head_lr=1.0), model, 100)
    [p] = [p for name, p in model.named_parameters() if name.endswith(part)]
    [group] = [group for group in optimizer.param_groups if group["params"][0] is p]
    assert group["initial_lr"] == pytest.approx(lr)
    assert group["weight_decay"] == (0.01 if p.dim() > 1 else 0)


# ----------------------------------------------------- other rules for the same two gradients


@pytest.mark.parametrize("change, g_ce, g_acl, want, kept", [
    ("project", [1.0, 0.0], [-3.0, 4.0], [1.0, 2.0], 0.8),  # a conflict: cosine -0.6
    ("project", [2.0, 0.0], [3.0, 4.0], [3.5, 2.0], 1.0),
    ("weigh", [1.0, 0.0], [-3.0, 4.0], [1.0, 0.0], 0.0),
    ("weigh", [2.0, 0.0], [3.0, 4.0], [2.9, 1.2], 0.6),  # cosine 0.6
    ("weigh", [2.0, 0.0], [0.0, 0.0], [2.0, 0.0], 0.0),
    ("project", [1.0, 0.0], [math.nan, 0.0], [1.0, 0.0], 0.0),
    ("weigh", [1.0, 0.0], [math.nan, 0.0], [1.0, 0.0], 0.0),
])
def test_rules_by_hand(change, g_ce, g_acl, want, kept):
    """lambda = 0.5.  Added to .grad as backward() does; `kept` goes into steps.csv."""
    variants.put_in_place(change)
    w = torch.zeros(2, requires_grad=True)
    w.grad = torch.ones(2)
    ce_loss, acl_loss = w @ torch.tensor(g_ce), w @ torch.tensor(g_acl)
    found = grad_surgery.acl_grad(ce_loss, acl_loss, [w], 0.5)
    assert (w.grad - 1).tolist() == pytest.approx(want)
    assert train.telemetry([found], drop=True)["kept"] == pytest.approx(kept)


def test_conflict_groups_equal_flat_gradients(monkeypatch):
    """A group's cosine is that of both gradients over its parameters, laid side by side."""
    model = small_model(dropout=0.0)
    args = SimpleNamespace(method="acl-embed", temperature=0.5, exit_weights="depth")
    logs = {"steps.csv": [{}, {}]}
    monkeypatch.setattr(variants, "RUN", SimpleNamespace(logs=logs))
    h, logits = model(small_batch(4, 8))
    both = variants.losses_and_groups(args, model, h, logits, LABELS)
    groups = pandas.DataFrame(logs["groups.csv"]).set_index("group")
    assert list(groups.index) == ["embeddings", "layer 1", "layer 2", "layer 3", "pooler",
                                  "label embeddings"]
    flat = []
    for loss in both:
        model.zero_grad()
        loss.sum().backward(retain_graph=True)
        some = model.encoder.encoder.layer[1].parameters()
        flat.append(torch.cat([p.grad.flatten() for p in some]))
    assert groups.cosine["layer 2"] == pytest.approx(slow_cosine(*flat).item(), abs=1e-5)
    assert set(groups.step) == {3}


# ------------------------------------------------------------------------------ the command


def train_with(folder, change, *options):
    """Eight steps of the small task; returns the exit status."""
    argv = [*small_task(folder.parent), "--method", "acl-cl", "--max-steps", "8", *options]
    return call(variants.main, change, *argv, "--output", folder)


def read(folder, name):
    return pandas.read_csv(folder / "mine_acl-cl_1" / name)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants") / "plain"
    argv = [*small_task(folder.parent), "--method", "acl-cl", "--max-steps", "8"]
    assert call(train.main, *argv, "--output", folder) == 0
    return folder


@pytest.mark.parametrize("change", ["center", "nt-xent", "own-teacher", "label-embedding-keys",
                                    "label-embedding-anchors", "detached", "warm-up",
                                    "layer-wise", "weigh", "random-batches"])
def test_a_change_trains(change, plain):
    """It reaches the training, and its name stands in config.json."""
    folder = plain.parent / change
    assert train_with(folder, change) == 0
    assert not read(folder, "steps.csv").equals(read(plain, "steps.csv"))
    config = json.loads((folder / "mine_acl-cl_1" / "config.json").read_text())
    assert config["change"] == change
    assert train_with(folder, "best-teacher", "--resume") == 2  # that would be another run


def test_groups_change_nothing_and_a_killed_run_goes_on(plain, monkeypatch):
    """The plain run's steps, and groups.csv without a gap."""
    folder = plain.parent / "killed"
    real_step, steps = torch.optim.AdamW.step, []

    def stop(*arguments):
        steps.append(real_step(*arguments))
        if len(steps) == 7:  # after the first epoch's checkpoint
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", stop)
    assert train_with(folder, "conflict-groups") == 130
    assert train_with(folder, "conflict-groups", "--resume") == 0
    assert read(folder, "steps.csv").equals(read(plain, "steps.csv"))
    groups = read(folder, "groups.csv")
    assert groups.step.tolist() == [step for step in range(1, 9) for _ in range(5)]
    assert groups.cosine.abs().max() <= 1


@pytest.mark.parametrize("change, word, options", [
    ("row-anchors", "first argument", []),
    ("shared-pooler", "--pooling cls", ["--method", "scl"]),
    ("conflict-groups", "second loss", ["--method", "ce"]),
    ("label-embedding-anchors", "acl-cl", ["--method", "scl"]),
    ("project", "--conflict observe", ["--method", "scl"]),
])
def test_bad_input(change, word, options, tmp_path, capsys):
    """One line and status 2, nothing written."""
    argv = [change, "--task", "demo", *options, "--output", tmp_path / "runs"]
    status, _, error = answer(capsys, variants.main, *argv)
    assert status == 2 and word in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
