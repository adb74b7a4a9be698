"""Calls that would go wrong in silence: an error names the argument, or the right answer comes.

Each function is also copied alone, as a student copies it, and must bring its checks along.
"""

import ast
import functools
import inspect
import math
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import acl
import exits
import grad_surgery
from tools import exit_checks, models
from tools.command_line import InputError
from tools.geometry import geometry
from tools.testing import small_batch, small_model

ROOT = Path(__file__).parent.parent


def copied(module, *names, **beside):
    """A namespace of nothing but torch, the source of some functions of a module, and what else
    is copied beside them."""
    source = inspect.getsource(module)
    functions = {node.name: node for node in ast.parse(source).body if hasattr(node, "name")}
    parts = [ast.get_source_segment(source, functions[name]) for name in names]
    namespace = {"torch": torch, "F": F, **beside}
    exec("\n\n".join(parts), namespace)
    return types.SimpleNamespace(**namespace)


# ---------------------------------------------------------------------------- the losses

H = torch.randn(3, 4)
Y = torch.tensor([0, 1, 1])
L = torch.randn(2, 4)  # label embeddings of two classes
WIDE = torch.randn(3, 5)
ONE_HOT = F.one_hot(Y, 2)

# What is called, with which arguments, and how the error begins.
WRONG = [
    ("scl_loss", (H[0], Y, 0.5), "h must"),
    ("scl_loss", (H.long(), Y, 0.5), "h must"),
    ("scl_loss", (H[:0], Y[:0], 0.5), "h must"),
    ("scl_loss", (H.tolist(), Y, 0.5), "h must be a tensor, not list"),
    ("scl_loss", (H, Y[:2], 0.5), "labels must be int64 (3,)"),
    ("scl_loss", (H, Y.float(), 0.5), "labels must be int64"),
    ("scl_loss", (H, Y.tolist(), 0.5), "labels must be a tensor, not list"),
    ("scl_loss", (H, Y.numpy(), 0.5), "labels must be a tensor, not ndarray"),
    ("scl_loss", (H, ONE_HOT, 0.5), "labels must be int64 (3,), not torch.int64 (3, 2)"),
    ("scl_loss", (H, ONE_HOT.float(), 0.5), "labels must be int64"),
    ("scl_loss", (H, Y, 0.0), "temperature"),
    ("scl_loss", (H, Y, math.nan), "temperature"),
    ("scl_loss", (H, Y, math.inf), "temperature"),
    ("acl_embed_loss", (H, Y, L, -1), "temperature"),
    ("acl_embed_loss", (H, Y, L[:, :3], 0.5), "label_embeddings must be (2, 4)"),
    ("acl_embed_loss", (H, Y, L[:0], 0.5), "label_embeddings must hold something, not (0, 4)"),
    ("acl_embed_loss", (H, Y + 1, L, 0.5), "labels must lie in 0..1"),
    ("acl_embed_loss", (H, Y - 1, L, 0.5), "labels must lie in 0..1"),
    ("acl_embed_loss", (H, Y.tolist(), L, 0.5), "labels must be a tensor, not list"),
    ("acl_embed_loss", (H, Y.numpy(), L, 0.5), "labels must be a tensor, not ndarray"),
    ("acl_embed_loss", (H, ONE_HOT, L, 0.5), "labels must be int64 (3,)"),
    ("acl_embed_loss", (H, Y, nn.Linear(4, 2), 0.5), "label_embeddings must be a tensor, not L"),
    ("acl_cl_loss", (H, H[:2], Y, L, 0.5), "teacher_h must be (3, 4)"),
    ("acl_cl_loss", (H[0], H, Y, L, 0.5), "student_h must"),
    ("acl_cl_loss", (H, WIDE, Y, L, 0.5), "teacher_h must be (3, 4)"),
    ("acl_cl_loss", (WIDE, H, Y, L, 0.5), "teacher_h must be (3, 5)"),
    ("acl_cl_loss", (H, H, Y, L[:, :3], 0.5), "teacher_label_embeddings must be (2, 4)"),
    ("acl_cl_loss", (H, H, Y, nn.Linear(4, 2), 0.5), "teacher_label_embeddings must be a tensor"),
    ("acl_cl_loss", (H, H, Y + 1, L, 0.5), "labels must lie in 0..1"),
    ("acl_cl_loss", (H, H, ONE_HOT, L, 0.5), "labels must be int64 (3,)"),
    ("kd_loss", (H, H[:2], 2.0), "teacher_logits must be (3, 4)"),
    ("kd_loss", (H[0], H[0], 2.0), "student_logits must be a floating-point matrix"),
    ("kd_loss", (H.tolist(), H, 2.0), "student_logits must be a tensor, not list"),
    ("kd_loss", (H, Y, 2.0), "teacher_logits must be a floating-point matrix"),
    ("kd_loss", (H, H, 0), "temperature"),
]
KERNEL = ("contrastive_loss", "unit", "check")
LOSSES = {
    "scl_loss": (H, Y, 0.5),
    "acl_embed_loss": (H, Y, L, 0.5),
    "acl_cl_loss": (H, H + 1, Y, L, 0.5),
    "kd_loss": (H, H + L[0], 0.5),
}


def refusal(call, *arguments, **options):
    """The text of the ValueError that a call raises: one line."""
    with pytest.raises(ValueError) as error:
        call(*arguments, **options)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name, arguments, start", WRONG)
def test_wrong_arguments_of_a_loss_are_named(name, arguments, start):
    for module in (acl, copied(acl, *KERNEL, name)):
        assert refusal(getattr(module, name), *arguments).startswith(start)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_copied_with_the_kernel_alone_runs(name):
    loss = getattr(copied(acl, *KERNEL, name), name)
    assert loss(*LOSSES[name]) == getattr(acl, name)(*LOSSES[name]) > 0


@pytest.mark.parametrize("labels, start", [
    (Y.tolist(), "labels must be a tensor"),
    (ONE_HOT, "labels must be int64 (3,)"),
    (Y + 1, "labels must lie in 0..1"),
])
def test_geometry_names_wrong_labels(labels, start):
    assert refusal(geometry, H, labels, L).startswith(start)


# --------------------------------------------------------------------------- acl_grad


class SmallCNN(nn.Module):
    """Of somebody else, about pictures: (N, 1, 8, 8) -> features (N, 8), logits (N, 2)."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 8, kernel_size=3)
        self.classifier = nn.Linear(8, 2)

    def forward(self, pictures):
        features = self.convolution(pictures).relu().mean(dim=(2, 3))
        return features, self.classifier(features)


def test_acl_grad_pasted_alone_trains_a_cnn():
    """Stripes that stand and stripes that lie; acl_grad takes the place of loss.backward()."""
    pasted = {"torch": torch}
    exec(inspect.getsource(grad_surgery.acl_grad), pasted)

    torch.manual_seed(0)
    pictures = torch.rand(32, 1, 8, 8)
    labels = torch.arange(32) % 2
    stripes = torch.tensor([0.0, 1.0]).repeat(4)
    pictures[labels == 0] += stripes
    pictures[labels == 1] += stripes[:, None]
    model = SmallCNN()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    ce_losses, cosines = [], []
    for _ in range(60):
        features, logits = model(pictures)
        ce_loss = F.cross_entropy(logits, labels)
        acl_loss = acl.acl_embed_loss(features, labels, model.classifier.weight, 0.5)
        cosine = pasted["acl_grad"](ce_loss, acl_loss, model.parameters(), weight=0.1)
        optimizer.step()
        ce_losses.append(ce_loss.item())
        cosines.append(cosine)
    assert ce_losses[-1] < 0.1 * ce_losses[0]
    assert min(cosines) < -0.1  # the gate was closed,
    assert max(cosines) > 0.1  # and open


def acl_grad(ce_loss, acl_loss, parameters, weight, h=None):
    return grad_surgery.acl_grad(ce_loss, acl_loss, parameters, weight)


def features(ce_loss, acl_loss, parameters, weight, h=None):
    """As if there were one exit."""
    return grad_surgery.acl_grad_features(ce_loss, [acl_loss], h, parameters, weight)


def with_rule(rule, ce_loss, acl_loss, parameters, weight, h=None):
    return grad_surgery.apply_rule(ce_loss, acl_loss, parameters, weight, rule)


GATES = {"acl_grad": acl_grad, "features": features}
for rule in grad_surgery.GRADIENT_RULES:
    GATES[rule] = functools.partial(with_rule, rule)
each_gate = pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
W = torch.zeros(2, requires_grad=True)


def step():
    """h (1, 2) of the parameter W, and two scalar losses over it."""
    h = 1 * W[None]
    return h, h.sum(), (2 * h).sum()


@each_gate
@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_a_weight_that_is_none(gate, weight):
    W.grad = None
    h, ce_loss, acl_loss = step()
    text = refusal(gate, ce_loss, acl_loss, [W], weight, h)
    assert text.startswith("weight must be a number of 0 or more")
    assert W.grad is None


@each_gate
def test_a_list_where_a_scalar_belongs(gate):
    h, ce_loss, acl_loss = step()
    for wrong in ([ce_loss], h, ce_loss.item()):
        text = refusal(gate, wrong, acl_loss, [W], 1.0, h)
        assert text.startswith("ce_loss must be a scalar tensor")
    text = refusal(gate, ce_loss, h, [W], 1.0, h)
    assert text.startswith("acl_loss")
    assert "must be a scalar tensor" in text


@each_gate
def test_one_tensor_where_a_list_of_parameters_belongs(gate):
    """A tensor is an iterable of its parts, whose .grad nobody would ever look at."""
    h, ce_loss, acl_loss = step()
    text = refusal(gate, ce_loss, acl_loss, W, 1.0, h)
    assert text.startswith("parameters must be an iterable of leaf tensors")


@each_gate
def test_a_parameter_that_is_given_twice(gate):
    """model.parameters() and its classifier's beside them: the same as without the second."""
    answers = []
    for repeats in (1, 2):
        torch.manual_seed(0)
        encoder, classifier = nn.Linear(2, 2), nn.Linear(2, 2)
        h = encoder(torch.ones(1, 1, 2))
        logits = classifier(h)
        parameters = [*encoder.parameters(), *repeats * list(classifier.parameters())]
        cosine = gate(logits.sum(), (logits**2).sum() / 2, parameters, 0.5, h)
        answers.append([cosine, *[p.grad.tolist() for p in parameters[:4]]])
    assert answers[0] == answers[1]


@each_gate
def test_no_parameters_at_all(gate):
    """Such as a generator that was used up before."""
    h, ce_loss, acl_loss = step()
    with pytest.raises(RuntimeError, match="cannot be empty"):
        gate(ce_loss, acl_loss, iter([]), 1.0, h)


def test_acl_losses_must_be_one_for_each_exit():
    h = torch.randn(3, 5, 4, requires_grad=True)
    ce_loss, acl_losses = h.sum(), [h[0].sum(), h[1].sum()]
    text = refusal(grad_surgery.acl_grad_features, ce_loss, acl_losses, h, [h], 1.0)
    assert text.startswith("acl_losses must be one for each of the 3 exits")


def test_unknown_rules():
    h, ce_loss, acl_loss = step()
    text = refusal(grad_surgery.apply_rule, ce_loss, acl_loss, [W], 1.0, "drop")
    assert text.startswith("rule must be one of observe, discard, project, weigh")
    text = refusal(grad_surgery.acl_grad_features, ce_loss, [acl_loss], h, [W], 1.0, "project")
    assert text.startswith("rule must be one of observe, discard, weigh")


@each_gate
def test_what_is_not_among_the_parameters_gets_no_gradient(gate):
    """As acl_grad's docstring says: encoder.parameters() leaves out the classifier."""
    words = " ".join(grad_surgery.acl_grad.__doc__.split())
    assert "what is not among them gets no gradient" in words
    encoder, classifier = nn.Linear(2, 2), nn.Linear(2, 2)
    h = encoder(torch.ones(1, 1, 2))
    logits = classifier(h)
    gate(logits.sum(), (logits**2).sum(), encoder.parameters(), 1.0, h)
    assert encoder.weight.grad is not None
    assert classifier.weight.grad is None


@pytest.mark.parametrize("input_needs_gradient", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("gate", [GATES["acl_grad"], GATES["observe"]])
def test_reentrant_checkpointing_hides_parameters(gate, reentrant, input_needs_gradient):
    """The caveat in acl_grad's docstring.  torch gives no error to pass on: the layer's
    parameters get None, whether its input needs a gradient (backward() alone would reach them)
    or not (nor would backward()).  Without re-entrance all is as without checkpointing."""
    caveats = grad_surgery.acl_grad.__doc__.split("Caveat:")
    assert "use_reentrant=True) hides the parameters inside it" in caveats[1]

    layer, head = nn.Linear(3, 3), nn.Linear(3, 1)
    x = torch.randn(2, 3, requires_grad=input_needs_gradient)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: "None of the inputs have requires_grad=True"
        logits = head(checkpoint(layer, x, use_reentrant=reentrant))
    parameters = [*layer.parameters(), *head.parameters()]
    cosine = gate(logits.sum(), 2 * logits.sum(), parameters, 0.5)
    assert cosine == pytest.approx(1)
    assert head.weight.grad is not None
    assert (layer.weight.grad is None) == reentrant
    if not reentrant:
        gradient = layer.weight.grad
        logits = head(layer(x))
        gate(logits.sum(), 2 * logits.sum(), parameters, 0.5)
        assert torch.allclose(gradient, layer.weight.grad)


# --------------------------------------------------------------------------- exit rules

LOGITS = 3 * torch.randn(6, 5, 3)  # six exits, five samples, three classes
EXIT_RULES = {
    "entropy": {"threshold": 0.5},
    "confidence": {"threshold": 0.5},
    "patience": {"patience": 2},
    "pcee": {"threshold": 0.5, "patience": 2},
}
WRONG_LOGITS = {
    "one exit's": LOGITS[0],
    "one sample's": LOGITS[0, 0],
    "of one class": LOGITS[..., :1],
    "whole numbers": LOGITS.long(),
    "a list": LOGITS.tolist(),
    "of no exit": LOGITS[:0],
}
WRONG_SETTINGS = [
    ("entropy", {"threshold": -0.1}),
    ("entropy", {"threshold": 30}),
    ("entropy", {"threshold": math.nan}),
    ("confidence", {"threshold": 90}),
    ("confidence", {"threshold": -1}),
    ("patience", {"patience": 0}),
    ("patience", {"patience": -1}),
    ("patience", {"patience": 1.5}),
    ("pcee", {"threshold": 1.5, "patience": 2}),
    ("pcee", {"threshold": 0.5, "patience": 0}),
]


@pytest.mark.parametrize("module", [exits, grad_surgery])
def test_a_report_copied_without_its_folder_says_what_it_needs(module, tmp_path):
    alone = tmp_path / Path(module.__file__).name
    alone.write_bytes(Path(module.__file__).read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", str(alone), "run"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{alone.name}: " in done.stderr and "the folder tools beside this file" in done.stderr


def rules_here_and_copied(name):
    """A rule of exits.py, and the same copied with its checks beside it."""
    parts = copied(exit_checks, "check_rule", "check_logits")
    rule = copied(exits, "normalised_entropy", name, check_rule=parts.check_rule)
    return [getattr(exits, name), getattr(rule, name)]


@pytest.mark.parametrize("name", EXIT_RULES)
@pytest.mark.parametrize("what", WRONG_LOGITS)
def test_logits_of_another_shape_or_type(what, name):
    for rule in rules_here_and_copied(name):
        text = refusal(rule, WRONG_LOGITS[what], **EXIT_RULES[name])
        assert text.startswith("logits must be floating point (m, n, K)")
    rule = functools.partial(getattr(exits, name), **EXIT_RULES[name])
    text = refusal(exits.exit_indices, WRONG_LOGITS[what], rule)
    assert text.startswith("logits must be floating point (m, n, K)")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EXIT_RULES)
def test_probabilities_are_no_logits(name, dtype):
    probabilities = LOGITS.softmax(dim=-1).to(dtype)
    for rule in rules_here_and_copied(name):
        text = refusal(rule, probabilities, **EXIT_RULES[name])
        assert "before the softmax" in text
        leave = rule(LOGITS.to(dtype), **EXIT_RULES[name])
        assert leave.shape == (5,)
        assert leave.dtype == torch.bool
    rule = functools.partial(getattr(exits, name), **EXIT_RULES[name])
    assert "before the softmax" in refusal(exits.exit_indices, probabilities, rule)


def test_one_samples_logits_may_look_like_probabilities():
    """bf16 logits sum to 1 by chance once in some hundred samples; no rule may stop for that."""
    logits = torch.tensor([[[0.25, 0.75]], [[0.5, 0.5]]])
    assert exits.confidence(logits, threshold=0.6).tolist() == [False]


@pytest.mark.parametrize("name, settings", WRONG_SETTINGS)
def test_settings_out_of_range(name, settings):
    for rule in rules_here_and_copied(name):
        text = refusal(rule, LOGITS, **settings)
        assert text.startswith(("threshold must be", "patience must be"))


WRONG_ANSWERS = {
    "numbers": lambda logits: logits[-1, :, 0],
    "whole numbers": lambda logits: (logits[-1, :, 0] > 0).long(),
    "one for all": lambda logits: (logits[-1, :, 0] > 0).any(),
    "for every exit": lambda logits: logits[..., 0] > 0,
    "for every class": lambda logits: logits[-1] > 0,
    "with a dimension more": lambda logits: logits[-1, :, :1] > 0,
    "a list": lambda logits: (logits[-1, :, 0] > 0).tolist(),
    "nothing": lambda logits: None,
}


@pytest.mark.parametrize("what", WRONG_ANSWERS)
def test_a_rule_that_answers_something_else(what):
    rule = WRONG_ANSWERS[what]
    assert refusal(exits.exit_indices, LOGITS, rule).startswith("a rule must return torch.bool")
    text = refusal(exits.early_exit, small_model(), small_batch(5, 6), rule)
    assert text.startswith("a rule must return torch.bool (5,)")


@pytest.mark.parametrize("exits_at", ["first", "1,2", "0,3", "3,4", "1.5,3", "", [1.5, 3], [], 3])
def test_exits_that_are_none(exits_at):
    with pytest.raises(InputError) as error:
        small_model(exits_at=exits_at)
    assert str(error.value).startswith("exits must be all, last or layers from 1 to 3")


def test_a_models_options():
    text = refusal(small_model, pooling="max")
    assert text == "pooling must be cls or mean, not 'max'"
    assert refusal(small_model, num_labels=1).startswith("num_labels must be 2 classes or more")
    with pytest.raises(InputError, match="no pooler of .CLS.: use --pooling mean"):
        small_model(kind="electra")


# --------------------------------------------------------------------- devices, libraries


def on_another_device(call):
    """call() while every new tensor that does not say where lands on another device than the
    data, which torch's `meta` device shows without a GPU."""
    with torch.device("meta"):
        return call()


def same(values, others):
    for value, other in zip(values, others, strict=True):
        assert value.device == other.device
        assert torch.equal(value, other)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_make_their_tensors_where_the_data_are(name):
    loss = functools.partial(getattr(acl, name), *LOSSES[name])
    same([on_another_device(loss)], [loss()])


@each_gate
def test_gates_make_their_tensors_where_the_data_are(gate):
    def gradient():
        h, ce_loss, acl_loss = step()
        gate(ce_loss, acl_loss, [W], 0.5, h)
        return [W.grad]

    same(on_another_device(gradient), gradient())


@pytest.mark.parametrize("name", EXIT_RULES)
def test_exits_make_their_tensors_where_the_data_are(name):
    rule = functools.partial(getattr(exits, name), **EXIT_RULES[name])
    find = functools.partial(exits.exit_indices, LOGITS, rule)
    same([on_another_device(find)], [find()])
    model, batch = small_model(num_labels=3), small_batch(9, 6)
    walk = functools.partial(exits.early_exit, model, batch, rule)
    answers = on_another_device(walk)
    assert model.layers_checked
    same(answers, walk())


def test_the_full_model_answers_where_the_data_are():
    answer = functools.partial(models.full_model, small_model(), small_batch(4, 6))
    same(on_another_device(answer), answer())


@pytest.mark.parametrize("name", EXIT_RULES)
def test_exit_indices_on_the_meta_device(name):
    rule = functools.partial(getattr(exits, name), **EXIT_RULES[name])
    assert exits.exit_indices(LOGITS.to("meta"), rule).device.type == "meta"


def test_geometry_makes_its_tensors_where_the_data_are():
    measure = functools.partial(geometry, H, Y, L)
    assert on_another_device(measure) == measure()


IMPORTS = """
import importlib, sys
import datasets, huggingface_hub, transformers

def state():
    return [
        transformers.logging.get_verbosity(),
        transformers.logging.is_progress_bar_enabled(),
        datasets.logging.get_verbosity(),
        datasets.are_progress_bars_disabled(),
        huggingface_hub.logging.get_verbosity(),
        huggingface_hub.utils.are_progress_bars_disabled(),
    ]

before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert state() == before, f"import {name}: {before}, now {state()}"
"""


def test_an_import_leaves_the_libraries_as_talkative_as_they_are():
    """They are quieted by a command, never by an import: a wrong model folder must not give
    random weights without a word."""
    files = [*ROOT.glob("*.py"), *ROOT.glob("tools/*.py")]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    names = [name for name in names if "test" not in name and "__init__" not in name]
    assert {"acl", "exits", "glue", "grad_surgery", "train", "tools.models"} <= set(names)
    command = [sys.executable, "-c", IMPORTS, *sorted(names)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
