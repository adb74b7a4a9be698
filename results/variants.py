"""Changes to the method that are a few lines, not an option: train.py with one of them in place.

    python results/variants.py CHANGE --task mrpc --method acl-cl [train.py's options]

Each change below is one function with the arguments of what it replaces; CHANGES says what that
is.  The name of the change stands in the run's config.json.  None of them is the paper's; what
they came to is in results/README.md.
"""

import argparse
import math
import re
import sys
from pathlib import Path

import pandas
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import acl
import exits
import glue
import grad_surgery
import train
from acl import acl_embed_loss, contrastive_loss, unit
from tools import encoders, processes
from tools.errors import InputError, one_line_errors
from tools.run import Run

# What the changes below call in turn, before anything is replaced.
SECOND_LOSS = train.second_loss
LOSSES = train.losses
TRAINING_STEP = train.training_step
MAKE_OPTIMIZER = train.make_optimizer
TELEMETRY = train.telemetry
LOG_EXITS = Run.log_exits
RESTORE = Run.restore

# ------------------------------------------------------------------- the contrastive losses


def detached(h, labels, label_embeddings, temperature):
    """ACL-Embed moves the samples alone: no gradient flows into the label embeddings."""
    return acl_embed_loss(h, labels, label_embeddings.detach(), temperature)


def center(args, h, label_embeddings, logits, labels):
    """Means are taken off h and off the label embeddings before the contrastive cosines.

    Softmax ignores a vector added to every l_k, and the bias absorbs the part of h that all
    samples share; cosines see both.  With K = 2 the centred label embeddings are exactly
    opposite, which is where cross-entropy drives them anyway.
    """
    h = h - h.mean(dim=1, keepdim=True)  # (M, N, d)
    label_embeddings = label_embeddings - label_embeddings.mean(dim=1, keepdim=True)  # (M, K, d)
    return SECOND_LOSS(args, h, label_embeddings, logits, labels)


def nt_xent(anchors, keys, positive, temperature, exclude_self=False):
    """NT-Xent for SupCon in every contrastive loss: no other positive in the denominator.

        L = mean over pairs (a, p) of  -log [ e(a, p) / (e(a, p) + sum_n e(a, n)) ]
        e(a, b) = exp(z_a.z_b / tau);  p: a key of a's class;  n: the keys of other classes

    The form that one of the authors' logged runs of 2021 used (second-hand).  Nothing is pushed
    away from its own class.  Every pair counts alike, so an anchor with many positives counts
    more.  Arguments as in acl.contrastive_loss; without any pair the loss is 0.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        similarity = unit(anchors) @ unit(keys).mT / temperature  # (.., A, B)

    # An item is neither its own positive nor a negative of itself.
    negative = ~positive
    if exclude_self:
        others = ~torch.eye(len(positive), dtype=torch.bool, device=anchors.device)  # (A, A)
        positive = positive & others
        negative = negative & others

    # log sum_n e(a, n).  Without negatives the lowest number, not -inf: its gradient is NaN.
    lowest = torch.finfo(similarity.dtype).min
    only_negatives = similarity.masked_fill(~negative, lowest)
    log_sum = only_negatives.logsumexp(dim=-1, keepdim=True)  # (.., A, 1)

    # -log [ e(p) / (e(p) + e(n)) ] = log(1 + exp(n - p))
    per_pair = F.softplus(log_sum - similarity)  # (.., A, B)
    return per_pair.masked_fill(~positive, 0).sum(dim=(-2, -1)) / positive.sum().clamp(min=1)


# ---------------------------------------------------------------------------------- ACL-CL


def best_teacher(args, h, label_embeddings, logits, labels):
    """The teacher is the exit with the lowest cross-entropy on the batch (CsdBERT's way)."""
    ce_losses = torch.stack([F.cross_entropy(logits_m.float(), labels) for logits_m in logits])
    best = ce_losses.argmin().item()

    # As if it were the deepest: the others in their order, then the best.
    order = [m for m in range(len(h)) if m != best] + [best]
    losses = SECOND_LOSS(args, h[order], label_embeddings[order], logits[order], labels)  # (M,)
    back = torch.tensor(order, device=h.device).argsort()
    return losses[back]


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


def label_embedding_anchors(args, h, label_embeddings, logits, labels):
    """ACL-CL's anchors: the student's label embeddings, too; they turn to the teacher's samples."""
    # Both sides hold N samples and K label embeddings, in this order.
    items = torch.cat([h.float(), label_embeddings.float()], dim=1)  # (M, N + K, d)
    classes = torch.arange(label_embeddings.shape[1], device=labels.device)  # (K,)
    item_labels = torch.cat([labels, classes])  # (N + K,)
    positive = item_labels[:, None] == item_labels[None, :]  # (N + K, N + K)
    guided = contrastive_loss(items[:-1], items[-1].detach(), positive, args.temperature)

    acl_embed = acl_embed_loss(h, labels, label_embeddings, args.temperature)  # (M,)
    if not args.students_embed:
        return torch.cat([guided, acl_embed[-1:]])
    return acl_embed + F.pad(guided, (0, 1))


# ----------------------------------------------------------------------------- the training


def random_batches(lengths, batch_size, generator):
    """Plain random batches: samples of any length together, so more padding."""
    order = torch.randperm(len(lengths), generator=generator)
    return list(order.split(batch_size))


RUN = None  # which Run is training: a resumed one goes on with its warm-up, with its groups


def warm_up(args, model, batch, bf16):
    """lambda grows from 0 over the first 100 steps, where nearly all conflicts lie."""
    step = len(RUN.logs["steps.csv"]) + 1
    warmed = argparse.Namespace(**vars(args))
    warmed.weight = args.weight * min(1.0, step / 100)
    return TRAINING_STEP(warmed, model, batch, bf16)


def restore_and_remember(run, *state):
    global RUN
    RUN = run
    return RESTORE(run, *state)


def shared_pooler(model, hidden_states, mask):
    """h: the encoder's own pooler over the mean of the tokens (--pooling cls, which keeps it)."""
    hidden = torch.stack(hidden_states)  # (M, N, L, d)
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # (N, L, 1)
    mean = (hidden * weights).sum(dim=2) / weights.sum(dim=1)  # (M, N, d)
    with torch.autocast(hidden.device.type, enabled=False):  # it would round h to bf16
        return encoders.pool(model.encoder, mean.float())


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
    """The layer of a parameter: 1 for the embeddings, the last for what lies above the layers."""
    group = group_of(name)
    if group.startswith("layer"):
        return int(group.split()[1])
    return 1 if group == "embeddings" else num_layers


def group_of(name):
    """Where in the model a parameter of this name lies: 'layer 3', or what is below and above."""
    layer = re.search(r"\.layer\.(\d+)\.", name)
    if layer:
        return f"layer {int(layer[1]) + 1}"
    if name.startswith("classifiers"):
        return "label embeddings"
    return "pooler" if ".pooler." in name else "embeddings"


# ----------------------------------------------------- other rules for the same two gradients


def project(ce_loss, acl_loss, parameters, weight, drop=True):
    """In a conflict g_ACL loses its part along g_CE (PCGrad, arXiv 2001.06782).

        g = g_CE + lambda (g_ACL - <g_ACL, g_CE> / |g_CE|^2 g_CE)
    """
    g_ce, g_acl = side_by_side(gradients(ce_loss, acl_loss, parameters))
    cosine = F.cosine_similarity(g_ce, g_acl, dim=0).item()
    total = ce_loss
    if cosine < 0:
        total = total - weight * (g_acl @ g_ce) / (g_ce @ g_ce) * ce_loss
    if not math.isnan(cosine):
        total = total + weight * acl_loss
    total.backward(inputs=parameters)
    return cosine


def weigh(ce_loss, acl_loss, parameters, weight, drop=True):
    """g_ACL is multiplied by max(0, cosine) (Du et al., arXiv 1812.02224)."""
    g_ce, g_acl = side_by_side(gradients(ce_loss, acl_loss, parameters))
    cosine = F.cosine_similarity(g_ce, g_acl, dim=0).item()
    total = ce_loss
    if cosine > 0:  # 0 * NaN is NaN
        total = total + weight * cosine * acl_loss
    total.backward(inputs=parameters)
    return cosine


def gradients(ce_loss, acl_loss, parameters):
    """[(g_CE, g_ACL), ..] of the parameters, None where a loss does not reach one."""
    g_ce = torch.autograd.grad(ce_loss, parameters, retain_graph=True, allow_unused=True)
    g_acl = torch.autograd.grad(acl_loss, parameters, retain_graph=True, allow_unused=True)
    return list(zip(g_ce, g_acl))


def side_by_side(pairs):
    """Each gradient as one long vector, over the parameters that both losses reach."""
    pairs = [(a.flatten(), b.flatten()) for a, b in pairs if a is not None and b is not None]
    return [torch.cat(vectors) for vectors in zip(*pairs)]


def telemetry_of_project(cosines, drop):
    """kept, the length of what is added over that of g_ACL: in a conflict the angle's sine."""
    [cosine] = cosines
    kept = 1.0 if cosine >= 0 else math.sqrt(max(0.0, 1 - cosine**2))
    return TELEMETRY(cosines, drop) | {"kept": kept}


def telemetry_of_weigh(cosines, drop):
    [cosine] = cosines
    return TELEMETRY(cosines, drop) | {"kept": max(0.0, cosine)}


# ------------------------------------------------------- where in the model they conflict

def losses_and_groups(args, model, h, logits, labels):
    """Changes nothing; groups.csv gets a step's cosine in the embeddings, each layer and so on."""
    ce_loss, acl_losses = LOSSES(args, model, h, logits, labels)
    names, parameters = zip(*model.named_parameters())
    groups = {}
    for name, pair in zip(names, gradients(ce_loss, acl_losses.sum(), parameters)):
        groups.setdefault(group_of(name), []).append(pair)

    # The lines of groups.csv lie in the checkpoint like those of the other logs.
    rows = RUN.logs.setdefault("groups.csv", [])
    step = len(RUN.logs["steps.csv"]) + 1
    for group, pairs in groups.items():
        both = side_by_side(pairs)
        if both:  # SCL, say, does not reach the label embeddings
            cosine = F.cosine_similarity(*both, dim=0).item()
            rows.append({"step": step, "group": group, "cosine": cosine})
    return ce_loss, acl_losses


def log_exits_and_groups(run, rows):
    LOG_EXITS(run, rows)
    if processes.is_first():
        groups = pandas.DataFrame(run.logs["groups.csv"])
        groups.to_csv(run.folder / "groups.csv", index=False, float_format="%.4f", na_rep="nan")


# ------------------------------------------------------------------------------ the command

# CHANGE: where, what there, and what stands in its place.
CHANGES = {
    "detached": [(acl, "acl_embed_loss", detached)],
    "center": [(train, "second_loss", center)],
    "nt-xent": [(acl, "contrastive_loss", nt_xent)],
    "best-teacher": [(train, "second_loss", best_teacher)],
    "own-teacher": [(acl, "acl_cl_loss", own_teacher)],
    "label-embedding-keys": [(acl, "acl_cl_loss", label_embedding_keys)],
    "label-embedding-anchors": [(train, "second_loss", label_embedding_anchors)],
    "warm-up": [(train, "training_step", warm_up), (Run, "restore", restore_and_remember)],
    "random-batches": [(glue, "bucketed_batches", random_batches)],
    "shared-pooler": [(exits.MultiExitBert, "represent", shared_pooler)],
    "layer-wise": [(train, "make_optimizer", layer_wise)],
    "project": [(grad_surgery, "acl_grad", project), (train, "telemetry", telemetry_of_project)],
    "weigh": [(grad_surgery, "acl_grad", weigh), (train, "telemetry", telemetry_of_weigh)],
    "conflict-groups": [(train, "losses", losses_and_groups),
                        (Run, "restore", restore_and_remember),
                        (Run, "log_exits", log_exits_and_groups)],
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


def check(name, args):
    """InputError where the options leave nothing to change."""
    if name == "shared-pooler" and args.pooling != "cls":
        raise InputError("shared-pooler needs --pooling cls, which keeps the pooler")
    if name == "conflict-groups" and args.method == "ce":
        raise InputError("conflict-groups needs a second loss: another method than ce")
    if name == "label-embedding-anchors" and args.method != "acl-cl":
        raise InputError("label-embedding-anchors is a change of --method acl-cl")
    has_gate = args.conflict != "none" and args.conflict_at == "parameters"
    if name in ("project", "weigh") and not has_gate:
        raise InputError(f"{name} is a gate at the parameters: add --conflict observe")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    name, *options = argv or [None]
    if name in ("-h", "--help"):
        print(usage())
        return
    with one_line_errors("results/variants.py"):
        if name not in CHANGES:
            raise InputError(f"the first argument must be one of {', '.join(CHANGES)}")
        runs = train.parse_args(options)
        for args in runs:
            check(name, args)
            args.change = name  # for config.json; --resume goes on with the same change only
        put_in_place(name)
        train.train_all(runs)


if __name__ == "__main__":
    main()
