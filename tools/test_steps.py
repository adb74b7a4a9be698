"""One training step of every method with every gate; optimizer, schedule, precision."""

import pytest
import torch

import acl
import grad_surgery
import train
from tools import machine
from tools.testing import gradients_of, small_batch, small_model

LABELS = torch.tensor([0, 1, 1, 0, 1, 0])


def options(*words):
    return train.parse_args(["--task", "rte", *words])


@pytest.mark.parametrize("students_embed", [True, False])
def test_acl_cls_students_with_and_without_acl_embed(students_embed):
    model = small_model(dropout=0.0)
    h, logits = model(small_batch(6, 9))
    label_embeddings = [classifier.weight for classifier in model.classifiers]
    words = ["--exit-weights", "uniform", "--method", "acl-cl"]
    if not students_embed:
        words.append("--no-students-embed")
    args = options(*words)
    _, acl_losses = train.losses(args, model, h, logits, LABELS)
    for m in range(2):
        expected = acl.acl_cl_loss(h[m], h[2], LABELS, label_embeddings[2], 0.5)
        if students_embed:
            expected = expected + acl.acl_embed_loss(h[m], LABELS, label_embeddings[m], 0.5)
        assert 3 * acl_losses[m].item() == pytest.approx(expected.item(), rel=1e-5)
    teacher = acl.acl_embed_loss(h[2], LABELS, label_embeddings[2], 0.5)
    assert 3 * acl_losses[2].item() == pytest.approx(teacher.item(), rel=1e-5)


def test_optimizer_groups():
    """Heads have a learning rate of their own, biases and norms no decay, nothing is left out
    or in twice."""
    model = small_model()
    args = options("--method", "ce", "--lr", "1e-4")
    optimizer, _ = train.make_optimizer(args, model, 100)
    group_of = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert id(p) not in group_of
            group_of[id(p)] = group
    assert len(group_of) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        rate = 2e-3 if name.startswith("classifiers") else 1e-4
        assert group_of[id(p)]["initial_lr"] == pytest.approx(rate)
        assert (group_of[id(p)]["weight_decay"] > 0) == (p.dim() > 1)


def test_schedule():
    """Up over a tenth of the steps, then down to 0."""
    args = options("--method", "ce", "--lr", "1e-4")
    optimizer, schedule = train.make_optimizer(args, small_model(), 100)
    rates = []
    for _ in range(101):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == rates[100] == 0
    assert rates[5] == rates[55] == pytest.approx(5e-5)
    assert rates[10] == max(rates) == 1e-4


def test_precision():
    assert machine.use_bf16("bf16", torch.device("cpu")) is True
    assert machine.use_bf16("fp32", torch.device("cpu")) is False
    model = small_model().train()
    dtypes = []
    model.register_forward_hook(lambda module, inputs, outputs: dtypes.append(outputs[1].dtype))
    for bf16 in (True, False):
        batch = small_batch(6, 9) | {"label": LABELS}
        train.training_step(options("--method", "ce"), model, batch, 0.1, bf16)
    assert dtypes == [torch.bfloat16, torch.float32]


STEPS = []
for method in train.METHODS:
    STEPS.append((method, "none", "parameters"))
    if method != "ce":
        STEPS += [(method, rule, "parameters") for rule in grad_surgery.GRADIENT_RULES]
    if method not in ("ce", "kd"):
        STEPS += [(method, rule, "features") for rule in ("observe", "discard", "weigh")]


@pytest.mark.parametrize("method, rule, at", STEPS)
def test_every_method_takes_a_step_with_every_gate(method, rule, at):
    model = small_model()
    args = options("--method", method, "--conflict", rule, "--conflict-at", at, "--exits", "all")
    batch = small_batch(6, 9) | {"label": LABELS}
    _, acl_loss, cosines = train.training_step(args, model, batch, args.weight, bf16=False)
    assert (acl_loss.item() > 0) == (method != "ce")
    number = {"parameters": 1, "features": 3}[at]
    assert len(cosines) == (0 if rule == "none" else number)
    for name, gradient in gradients_of(model).items():
        assert gradient.isfinite().all(), name
