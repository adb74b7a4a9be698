"""Changes to the method that are a few lines, not an option: train.py with one of them in place.

    python results/variants.py CHANGE --task mrpc --method acl-cl [train.py's options]

Each change below is one function with the arguments of what it replaces; CHANGES says what that
is.  The name of the change stands in the run's config.json.  None of them is the paper's; what
they came to is in results/README.md.
"""

import re
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import acl
import exits
import grad_surgery
import train
from acl import acl_embed_loss, contrastive_loss, unit
from tools import runs
from tools.command_line import fail

# ------------------------------------------------------------------- the contrastive losses


def detached(h, labels, label_embeddings, temperature):
    """ACL-Embed moves the samples alone: no gradient flows into the label embeddings."""
    return acl_embed_loss(h, labels, label_embeddings.detach(), temperature)


def center(args, m, h, label_embeddings, logits, labels):
    """Means are taken off h and off the label embeddings before the contrastive cosines.

    Softmax ignores a vector added to every l_k, and the bias absorbs the part of h that all
    samples share; cosines see both.  With K = 2 the centred label embeddings are exactly
    opposite, which is where cross-entropy drives them anyway.
    """
    h = [h_m - h_m.mean(dim=0) for h_m in h]  # M of (N, d)
    label_embeddings = [l_m - l_m.mean(dim=0) for l_m in label_embeddings]  # M of (K, d)
    return SECOND_LOSS(args, m, h, label_embeddings, logits, labels)


def nt_xent(anchors, keys, positive, temperature, exclude_self=False):
    """NT-Xent for SupCon in every contrastive loss: no other positive in the denominator.

        L = mean over pairs (a, p) of  -log [ e(a, p) / (e(a, p) + sum_n e(a, n)) ]
        e(a, b) = exp(z_a.z_b / tau);  p: a key of a's class;  n: the keys of other classes

    The form that one of the authors' logged runs of 2021 used (second-hand).  Nothing is pushed
    away from its own class.  Every pair counts alike, so an anchor with many positives counts
    more.  Arguments as in acl.contrastive_loss; a float32 scalar, without any pair 0.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        similarity = unit(anchors) @ unit(keys).T / temperature  # (A, B)

    # An item is neither its own positive nor a negative of itself.
    negative = ~positive
    if exclude_self:
        others = ~torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)  # (A, A)
        positive = positive & others
        negative = negative & others

    # log sum_n e(a, n).  Without negatives the lowest number, not -inf: its gradient is NaN.
    lowest = torch.finfo(similarity.dtype).min
    only_negatives = similarity.masked_fill(~negative, lowest)
    log_sum = only_negatives.logsumexp(dim=1, keepdim=True)  # (A, 1)

    # -log [ e(p) / (e(p) + e(n)) ] = log(1 + exp(n - p))
    per_pair = F.softplus(log_sum - similarity)  # (A, B)
    return per_pair.masked_fill(~positive, 0).sum() / positive.sum().clamp(min=1)


# ---------------------------------------------------------------------------------- ACL-CL


def best_teacher(logits, labels):
    """ACL-CL's teacher is the exit with the lowest cross-entropy on the batch (CsdBERT's way)."""
    ce_losses = [F.cross_entropy(logits_m.float(), labels).item() for logits_m in logits]
    return ce_losses.index(min(ce_losses))


def own_teacher(student_h, teacher_h, labels, teacher_label_embeddings, temperature):
    """A sample's positives: its own teacher vector and its label embedding, not all its class."""
    keys = torch.cat([teacher_h.float(), teacher_label_embeddings.float()])  # (N + K, d)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)  # (N, N)
    classes = torch.arange(len(teacher_label_embeddings), device=labels.device)  # (K,)
    positive = torch.cat([itself, labels[:, None] == classes], dim=1)  # (N, N + K)
    return contrastive_loss(student_h, keys.detach(), positive, temperature)


def label_embedding_keys(student_h, teacher_h, labels, teacher_label_embeddings, temperature):
    """ACL-CL's keys: the teacher's label embeddings alone, no samples."""
    classes = torch.arange(len(teacher_label_embeddings), device=labels.device)  # (K,)
    positive = labels[:, None] == classes  # (N, K)
    return contrastive_loss(student_h, teacher_label_embeddings.detach(), positive, temperature)


def label_embedding_anchors(args, m, h, label_embeddings, logits, labels):
    """ACL-CL's anchors: the student's label embeddings, too; they turn to the teacher's samples."""
    teacher = train.teacher_exit(logits, labels)
    if args.method != "acl-cl" or m == teacher:
        return SECOND_LOSS(args, m, h, label_embeddings, logits, labels)

    # Both sides hold N samples and K label embeddings, in this order.
    anchors = torch.cat([h[m].float(), label_embeddings[m].float()])  # (N + K, d)
    keys = torch.cat([h[teacher].float(), label_embeddings[teacher].float()])  # (N + K, d)
    classes = torch.arange(len(label_embeddings[m]), device=labels.device)  # (K,)
    item_labels = torch.cat([labels, classes])  # (N + K,)
    positive = item_labels[:, None] == item_labels[None, :]  # (N + K, N + K)
    guided = contrastive_loss(anchors, keys.detach(), positive, args.temperature)
    if not args.students_embed:
        return guided
    return guided + acl_embed_loss(h[m], labels, label_embeddings[m], args.temperature)


# ----------------------------------------------------------------------------- the training


def warm_up(args, step):
    """lambda grows from 0 over the first 100 steps, where nearly all conflicts lie."""
    return args.weight * min(1.0, (step + 1) / 100)


def shared_pooler(model, hidden, mask):
    """h: the encoder's own pooler over the mean of the tokens (--pooling cls, which keeps it)."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # (N, L, 1)
    mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)  # (N, d)
    with torch.autocast(hidden.device.type, enabled=False):  # it would round h to bf16
        return model.encoder.pooler(mean.float()[:, None])  # which takes a first token: (N, 1, d)


def layer_wise(args, model, total_steps):
    """Learning rate of layer m: --lr times 0.8^(M - m); the embeddings' as layer 1's."""
    optimizer, _ = MAKE_OPTIMIZER(args, model, total_steps)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            above = model.num_layers - layer_of(names[id(p)], model.num_layers)
            lr = group["initial_lr"] * 0.8**above
            groups.append({"params": [p], "lr": lr, "weight_decay": group["weight_decay"]})
    optimizer = torch.optim.AdamW(groups, fused=True)
    warm_up_steps = total_steps // 10
    linear = train.transformers.get_linear_schedule_with_warmup
    return optimizer, linear(optimizer, warm_up_steps, total_steps)


def layer_of(name, num_layers):
    """The layer that a parameter of this name belongs to: 1 for the embeddings, the last for what
    lies above the layers."""
    match = re.search(r"\.layer\.(\d+)\.", name)
    if match:
        return int(match[1]) + 1
    return 1 if "embeddings" in name else num_layers


# ------------------------------------------------------- where in the model they conflict

PENDING = []  # the step's (group, cosine), until the step has a number


def losses_and_groups(args, model, h, logits, labels):
    """Changes nothing; groups.csv gets a step's cosine in the embeddings, each layer and so on."""
    ce_loss, acl_losses = LOSSES(args, model, h, logits, labels)
    names, parameters = zip(*model.named_parameters())
    g_ce = torch.autograd.grad(ce_loss, parameters, retain_graph=True, allow_unused=True)
    g_acl = torch.autograd.grad(sum(acl_losses), parameters, retain_graph=True, allow_unused=True)

    # The gradients of the parameters that both losses reach, by group.
    groups = {}
    for name, a, b in zip(names, g_ce, g_acl):
        if a is not None and b is not None:
            groups.setdefault(group_of(name), []).append((a, b))
    PENDING.clear()
    for group, pairs in groups.items():
        products = grad_surgery.inner_products(pairs)
        PENDING.append((group, grad_surgery.cosine_of(products)))
    return ce_loss, acl_losses


def group_of(name):
    """The group of groups.csv that a parameter of this name belongs to."""
    layer = re.search(r"\.layer\.(\d+)\.", name)
    if layer:
        return f"layer {int(layer[1]) + 1}"
    if name.startswith("classifiers"):
        return "label embeddings"
    return "pooler" if ".pooler." in name else "embeddings"


def log_step_and_groups(run, row):
    """A step's lines of groups.csv; they lie in the checkpoint like the other logs."""
    LOG_STEP(run, row)
    rows = run.logs.setdefault("groups.csv", [])
    for group, cosine in PENDING:
        rows.append({"step": row["step"], "group": group, "cosine": cosine})


# ------------------------------------------------------------------------------ the command

# What the changes above call in turn, before anything is replaced.
SECOND_LOSS = train.second_loss
LOSSES = train.losses
MAKE_OPTIMIZER = train.make_optimizer
LOG_STEP = runs.Run.log_step

# CHANGE: where, what there, and what stands in its place.
CHANGES = {
    "detached": [(acl, "acl_embed_loss", detached)],
    "center": [(train, "second_loss", center)],
    "nt-xent": [(acl, "contrastive_loss", nt_xent)],
    "best-teacher": [(train, "teacher_exit", best_teacher)],
    "own-teacher": [(acl, "acl_cl_loss", own_teacher)],
    "label-embedding-keys": [(acl, "acl_cl_loss", label_embedding_keys)],
    "label-embedding-anchors": [(train, "second_loss", label_embedding_anchors)],
    "warm-up": [(train, "weight_at", warm_up)],
    "shared-pooler": [(exits.MultiExitBert, "represent", shared_pooler)],
    "layer-wise": [(train, "make_optimizer", layer_wise)],
    "conflict-groups": [
        (train, "losses", losses_and_groups),
        (runs.Run, "log_step", log_step_and_groups),
    ],
}


def usage():
    """A line for each change: its name and what its function says of itself."""
    lines = ["python results/variants.py CHANGE [train.py's options]; CHANGE is one of", ""]
    for name, places in CHANGES.items():
        lines.append(f"    {name:25}{places[0][2].__doc__.splitlines()[0]}")
    return "\n".join(lines)


def put_in_place(name):
    """Let the change's functions stand where the method's own stood."""
    for where, what, function in CHANGES[name]:
        setattr(where, what, function)


def main(argv):
    """Returns the exit status."""
    if argv[:1] in (["-h"], ["--help"]):
        print(usage())
        return 0
    if not argv or argv[0] not in CHANGES:
        return fail("variants.py", f"the first argument must be one of {', '.join(CHANGES)}", 2)
    name, *options = argv
    args = train.parse_args(options)
    if name == "shared-pooler" and args.pooling != "cls":
        return fail("variants.py", "shared-pooler needs --pooling cls, which keeps the pooler", 2)
    if name == "conflict-groups" and args.method == "ce":
        return fail("variants.py", "conflict-groups needs a second loss: another method than ce", 2)
    args.change = name  # for config.json; --resume goes on with the same change only
    put_in_place(name)
    return train.main(args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
