"""Four exercises to write yourself; docs/coursework.md says what they are about.

    pytest docs/exercises.py                  # which of the four are solved
    pytest docs/exercises.py -k nearest       # one of them

Fill in the four functions below.  Behind each stands the test that it has to pass.  The set-up is
the walk-through's with three layers: M = 3 exits, N = 6 samples, K = 2 classes, d = 16 numbers in
a vector.
"""

import sys
from pathlib import Path

import torch
from torch import nn
from transformers import BertConfig, BertModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import acl
import exits
import train

# --------------------------------------------------------------------------------- the set-up

[ARGS] = train.parse_args("--task rte --method acl-cl".split())
CONFIG = BertConfig(
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=32,
    initializer_range=0.3,
)
torch.manual_seed(0)
MODEL = exits.MultiExitBert(BertModel(CONFIG), num_labels=2).eval()  # without dropout
MODEL.projection = nn.Linear(16, 8, bias=False)  # W of exercise C
BATCH = {"input_ids": torch.randint(1000, (6, 9))}  # (N, L), L = 9 tokens
LABELS = torch.tensor([0, 1, 1, 0, 1, 0])  # (N,)


# -------------------------------------------------------------------------------- the exercises


def gate_per_group(ce_loss, acl_loss, groups, weight):
    """A. A gate for each group of parameters, such as a layer, instead of one for the model.

    groups: lists of parameters.  Leave g_CE + weight * g_ACL in the `.grad` of a group whose two
    gradients do not conflict, and g_CE alone where they do.
    """
    raise NotImplementedError


def test_gate_per_group():
    a = torch.zeros((), requires_grad=True)
    b = torch.zeros((), requires_grad=True)
    gate_per_group(a + b, 3 * a - b, [[a], [b]], weight=1.0)
    assert (a.grad, b.grad) == (4, 1)  # a agrees, b conflicts; one gate for both leaves 4 and 0


def deeper_teachers(args, h, label_embeddings, logits, labels):
    """B. Every deeper exit teaches, not only the deepest; in place of train.second_loss.

    h (M, N, d), label_embeddings (M, K, d), logits (M, N, K), labels (N,).  Return (M,): an
    exit's ACL-Embed, plus the mean of its ACL-CL losses over the exits that are deeper.
    """
    raise NotImplementedError


def test_deeper_teachers():
    tau = ARGS.temperature
    h, logits = MODEL(BATCH)
    l = MODEL.label_embeddings()
    found = deeper_teachers(ARGS, h, l, logits, LABELS)

    second = acl.acl_cl_loss(h[0], h[1], LABELS, l[1], tau)
    third = acl.acl_cl_loss(h[:2], h[2], LABELS, l[2], tau)
    guided = torch.stack([(second + third[0]) / 2, third[1], torch.zeros(())])
    torch.testing.assert_close(found, acl.acl_embed_loss(h, LABELS, l, tau) + guided)


def projected_losses(args, model, h, logits, labels):
    """C. The contrastive losses see W h instead of h; in place of train.losses.

    W is model.projection.  Cross-entropy still sees h.  The label embeddings are in the same
    space as h, so they go through W, too.
    """
    raise NotImplementedError


def test_projected_losses():
    ce_loss, acl_losses = projected_losses(ARGS, MODEL, *MODEL(BATCH), LABELS)
    W = MODEL.projection.weight
    assert torch.autograd.grad(ce_loss, W, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(acl_losses.sum(), W)[0].norm() > 0

    # With the unit matrix for W these are the old losses.
    MODEL.projection.weight = nn.Parameter(torch.eye(16))
    both = projected_losses(ARGS, MODEL, *MODEL(BATCH), LABELS)
    MODEL.projection.weight = W
    torch.testing.assert_close(both, train.losses(ARGS, MODEL, *MODEL(BATCH), LABELS))


def nearest(h, label_embeddings, threshold):
    """D. An exit rule that looks at h: leave where it points along a label embedding.

    h (n, d), label_embeddings (K, d).  Return (n,) bool: whether the largest cosine is threshold
    or more.
    """
    raise NotImplementedError


def test_nearest():
    h = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    label_embeddings = torch.eye(2)
    assert nearest(h, label_embeddings, threshold=0.9).tolist() == [True, False]
    assert nearest(5 * h, 2 * label_embeddings, threshold=0.8).tolist() == [True, False]
