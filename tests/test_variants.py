"""results/variants.py: every change against a slow form, by hand, and in a short training.

Those that docs/coursework.md shows are compared with its code in test_docs.py.
"""

import json
from types import SimpleNamespace

import pandas
import pytest
import torch

import acl
import grad_surgery
import train
from results import variants
from test_acl import slow_cosine, slow_loss
from tests.small import answer, call, gradients_of, small_batch, small_model, small_task

torch.set_num_threads(1)  # small tensors: a second thread only waits

LABELS = torch.tensor([0, 1, 0, 1])


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    """What a change replaces is put back after the test."""
    for places in variants.CHANGES.values():
        for where, what, _ in places:
            monkeypatch.setattr(where, what, getattr(where, what))


def assert_same(loss, slow, *inputs):
    """Values and gradients."""
    torch.testing.assert_close(loss, slow)
    ours = torch.autograd.grad(loss.sum(), inputs)
    torch.testing.assert_close(ours, torch.autograd.grad(slow.sum(), inputs))


# ------------------------------------------------------------------- the contrastive losses


def slow_nt_xent(h, labels, exclude_self):
    """variants.nt_xent's formula, a pair at a time."""
    terms = [0 * h.sum()]
    for i in range(len(h)):
        others = [j for j in range(len(h)) if not (exclude_self and i == j)]
        e = {j: (slow_cosine(h[i], h[j]) / 0.1).exp() for j in others}
        negatives = sum(e[j] for j in others if labels[i] != labels[j])
        terms += [-(e[j] / (e[j] + negatives)).log() for j in others if labels[i] == labels[j]]
    return sum(terms) / max(1, len(terms) - 1)


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1], [0, 0, 0], [0, 1], [0]])
@pytest.mark.parametrize("exclude_self", [True, False])
def test_nt_xent(labels, exclude_self):
    """Of two exits at once; without any pair, and without any negative."""
    torch.manual_seed(1)
    h = torch.randn(2, len(labels), 5, requires_grad=True)
    positive = torch.tensor(labels)[:, None] == torch.tensor(labels)
    loss = variants.nt_xent(h, h, positive, 0.1, exclude_self)
    slow = torch.stack([slow_nt_xent(h_m, labels, exclude_self) for h_m in h])
    assert_same(loss, slow, h)


def test_label_embedding_anchors():
    """A student's anchors are its samples and its label embeddings; the teacher trains as ever."""
    torch.manual_seed(1)
    h = torch.randn(3, 4, 5, requires_grad=True)
    l = torch.randn(3, 2, 5, requires_grad=True)
    items, item_labels = torch.cat([h, l], dim=1), [0, 1, 0, 1, 0, 1]
    guided = []
    for student in items[:2]:
        guided.append(slow_loss(student, items[2].detach(), item_labels, item_labels, 0.5, False))
    guided.append(torch.zeros(()))
    slow = acl.acl_embed_loss(h, LABELS, l, 0.5) + torch.stack(guided)
    args = SimpleNamespace(temperature=0.5)
    assert_same(variants.label_embedding_anchors(args, h, l, None, LABELS), slow, h, l)


# ----------------------------------------------------------------------------- the training


def test_random_batches():
    """Every sample once, in the generator's order; only the last batch is smaller."""
    found = variants.random_batches(torch.arange(10), 4, torch.Generator().manual_seed(1))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1)).tolist()
    assert [batch.tolist() for batch in found] == [order[:4], order[4:8], order[8:]]


def test_warm_up(monkeypatch):
    """lambda at the first step, the 50th, the 100th and later; the options stay as they are."""
    monkeypatch.setattr(variants, "training_step", lambda args, *_: args.weight)
    args = SimpleNamespace(weight=0.5)
    for steps_done, weight in ((0, 0.005), (49, 0.25), (99, 0.5), (1000, 0.5)):
        model = with_run(steps_done)
        assert variants.warm_up(args, model, None, False) == pytest.approx(weight)
    assert args.weight == 0.5


def with_run(steps_done):
    """A small model that knows its run."""
    model = small_model(dropout=0.0)
    model.run = SimpleNamespace(logs={"steps.csv": [{}] * steps_done})
    return model


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


def test_conflict_groups_equal_flat_gradients():
    """A group's cosine is that of both gradients over its parameters, laid side by side."""
    model = with_run(steps_done=2)
    args = SimpleNamespace(method="acl-embed", temperature=0.5, exit_weights="depth")
    h, logits = model(small_batch(4, 8))
    both = variants.losses_and_groups(args, model, h, logits, LABELS)
    groups = pandas.DataFrame(model.run.logs["groups.csv"]).set_index("group")
    assert list(groups.index) == ["embeddings", "layer 1", "layer 2", "layer 3", "pooler",
                                  "label embeddings"]
    assert set(groups.step) == {3}
    flat = []
    for loss in both:
        model.zero_grad()
        loss.sum().backward(retain_graph=True)
        some = gradients_of(model.encoder.encoder.layer[1])
        flat.append(torch.cat([g.flatten() for g in some.values()]))
    assert groups.cosine["layer 2"] == pytest.approx(slow_cosine(*flat).item(), abs=1e-5)


# ------------------------------------------------------------------------------ the command


def train_with(folder, main, *words):
    """Eight steps of the small task; returns the exit status."""
    argv = [*words, *small_task(folder.parent), "--method", "acl-cl", "--max-steps", "8"]
    return call(main, *argv, "--output", folder)


def read(folder, name):
    return pandas.read_csv(folder / "mine_acl-cl_1" / name)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants") / "plain"
    assert train_with(folder, train.main) == 0
    return folder


@pytest.mark.parametrize("change", ["nt-xent", "label-embedding-anchors", "warm-up", "layer-wise",
                                    "weigh", "random-batches"])
def test_a_change_trains(change, plain):
    """It reaches the training, and its name stands in config.json."""
    folder = plain.parent / change
    assert train_with(folder, variants.main, change) == 0
    assert not read(folder, "steps.csv").equals(read(plain, "steps.csv"))
    config = json.loads((folder / "mine_acl-cl_1" / "config.json").read_text())
    assert config["change"] == change
    resumed = train_with(folder, variants.main, "best-teacher", "--resume")
    assert resumed == 2  # that would be another run


def test_groups_change_nothing_and_a_killed_run_goes_on(plain, monkeypatch):
    """The plain run's steps, and groups.csv without a gap."""
    folder = plain.parent / "killed"
    real_step, steps = torch.optim.AdamW.step, []

    def stop(*arguments):
        steps.append(real_step(*arguments))
        if len(steps) == 7:  # after the first epoch's checkpoint
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", stop)
    assert train_with(folder, variants.main, "conflict-groups") == 130
    assert train_with(folder, variants.main, "conflict-groups", "--resume") == 0
    assert read(folder, "steps.csv").equals(read(plain, "steps.csv"))
    groups = read(folder, "groups.csv")
    assert groups.step.tolist() == [step for step in range(1, 9) for _ in range(4)]
    assert groups.cosine.abs().max() <= 1


@pytest.mark.parametrize("words, error", [
    ("row-anchors --method scl", "first argument"),
    ("shared-pooler --method scl", "--pooling cls"),
    ("nt-xent --method ce", "second loss"),
    ("own-teacher --method acl-grad", "acl-cl"),
    ("label-embedding-anchors --method acl-cl --no-students-embed", "students with"),
    ("detached --method scl", "ACL-Embed, which scl has not"),
    ("project --method scl --conflict discard --conflict-at features", "--conflict observe"),
])
def test_bad_input(words, error, tmp_path, capsys):
    """One line and status 2, nothing written."""
    argv = [*words.split(), "--task", "demo", "--output", tmp_path / "runs"]
    status, _, printed = answer(capsys, variants.main, *argv)
    assert status == 2 and error in printed and printed.count("\n") == 1
    assert not (tmp_path / "runs").exists()
