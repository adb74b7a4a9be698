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

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import acl
import exits
import glue
import grad_surgery
import train
from tools import encoders
from tools.errors import InputError, one_line_errors
from tools.run import Run

# What the changes below call in turn.  These names keep the method's own functions when a change
# stands in their place.
from acl import acl_embed_loss, contrastive_loss, unit
from train import losses, make_optimizer, second_loss, telemetry, training_step

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
    return second_loss(args, h, label_embeddings, logits, labels)


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

    # An item is not its own positive, and having its own class it is no negative of itself.
    negative = ~positive
    if exclude_self:
        itself = torch.eye(len(positive), dtype=torch.bool, device=anchors.device)  # (A, A)
        positive = positive & ~itself

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
    ordered = second_loss(args, h[order], label_embeddings[order], logits[order], labels)  # (M,)
    back = torch.tensor(order, device=h.device).argsort()
    return ordered[back]


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
    return acl_embed + F.pad(guided, (0, 1))


# ----------------------------------------------------------------------------- the training


def random_batches(lengths, batch_size, generator):
    """Plain random batches: samples of any length together, so more padding."""
    order = torch.randperm(len(lengths), generator=generator)
    return list(order.split(batch_size))


def warm_up(args, model, batch, bf16):
    """lambda grows from 0 over the first 100 steps, where nearly all conflicts lie."""
    step = len(model.run.logs["steps.csv"]) + 1
    warmed = argparse.Namespace(**vars(args))
    warmed.weight = args.weight * min(1.0, step / 100)
    return training_step(warmed, model, batch, bf16)


def restore_and_remember(run, model, *others):
    """The model knows its run, whose logs tell the step, also after --resume."""
    model.run = run
    return RESTORE(run, model, *others)


def shared_pooler(model, hidden_states, mask):
    """h: the encoder's own pooler over the mean of the tokens (--pooling cls, which keeps it)."""
    hidden = torch.stack(hidden_states)  # (M, N, L, d)
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # (N, L, 1)
    mean = (hidden * weights).sum(dim=2) / weights.sum(dim=1)  # (M, N, d)
    with torch.autocast(hidden.device.type, enabled=False):  # it would round h to bf16
        return encoders.pool(model.encoder, mean.float())


def layer_wise(args, model, total_steps):
    """Learning rate of layer m: --lr times 0.8^(M - m); the embeddings' as layer 1's."""
    optimizer, _ = make_optimizer(args, model, total_steps)
    layers = {p: layer_of(name, model.num_layers) for name, p in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            lr = group["initial_lr"] * 0.8 ** (model.num_layers - layers[p])
            groups.append({"params": [p], "lr": lr, "weight_decay": group["weight_decay"]})
    optimizer = torch.optim.AdamW(groups, fused=True)
    linear = train.transformers.get_linear_schedule_with_warmup
    return optimizer, linear(optimizer, total_steps // 10, total_steps)


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

    Here and in weigh a gradient that is not finite stops the run.
    """
    g_ce, g_acl = side_by_side(gradients(ce_loss, acl_loss, parameters).values())
    cosine = F.cosine_similarity(g_ce, g_acl, dim=0).item()
    total = ce_loss + weight * acl_loss
    if cosine < 0:
        total = total - weight * (g_acl @ g_ce) / (g_ce @ g_ce) * ce_loss
    total.backward(inputs=parameters)
    return cosine


def weigh(ce_loss, acl_loss, parameters, weight, drop=True):
    """g_ACL is multiplied by max(0, cosine) (Du et al., arXiv 1812.02224)."""
    both = side_by_side(gradients(ce_loss, acl_loss, parameters).values())
    cosine = F.cosine_similarity(*both, dim=0).item()
    total = ce_loss + weight * max(0.0, cosine) * acl_loss
    total.backward(inputs=parameters)
    return cosine


def gradients(ce_loss, acl_loss, parameters):
    """{parameter: (g_CE, g_ACL)}, each as a vector, of the parameters that both losses reach."""
    g_ce = torch.autograd.grad(ce_loss, parameters, retain_graph=True, allow_unused=True)
    g_acl = torch.autograd.grad(acl_loss, parameters, retain_graph=True, allow_unused=True)
    pairs = {}
    for p, a, b in zip(parameters, g_ce, g_acl):
        if a is not None and b is not None:
            pairs[p] = (a.flatten(), b.flatten())
    return pairs


def side_by_side(pairs):
    """[(g_CE, g_ACL), ..] -> both as one long vector."""
    return [torch.cat(vectors) for vectors in zip(*pairs)]


def telemetry_of_project(cosines, drop):
    """kept, the length of what is added over that of g_ACL: in a conflict the angle's sine."""
    row = telemetry(cosines, drop)
    row["kept"] = math.sin(math.radians(max(90.0, row["angle"])))
    return row


def telemetry_of_weigh(cosines, drop):
    """kept, the factor of g_ACL."""
    return telemetry(cosines, drop) | {"kept": max(0.0, *cosines)}


# ------------------------------------------------------- where in the model they conflict


def losses_and_groups(args, model, h, logits, labels):
    """Changes nothing; groups.csv gets a step's cosine in the embeddings, each layer and so on."""
    ce_loss, acl_losses = losses(args, model, h, logits, labels)
    names = {p: name for name, p in model.named_parameters()}
    groups = {}
    for p, pair in gradients(ce_loss, acl_losses.sum(), list(names)).items():
        groups.setdefault(group_of(names[p]), []).append(pair)

    # The lines of groups.csv lie in the checkpoint like those of the other logs.
    logs = model.run.logs
    rows = logs.setdefault("groups.csv", [])
    step = len(logs["steps.csv"]) + 1
    for group, pairs in groups.items():
        cosine = F.cosine_similarity(*side_by_side(pairs), dim=0).item()
        rows.append({"step": step, "group": group, "cosine": cosine})
    return ce_loss, acl_losses


def log_exits_and_groups(run, rows):
    LOG_EXITS(run, rows)
    run.write_log("groups.csv")


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


def put_in_place(name):
    """Let the change's functions stand where the method's own stood."""
    for where, what, function in CHANGES[name]:
        setattr(where, what, function)


def check(name, args):
    """InputError where the options leave nothing to change."""
    if name == "shared-pooler" and args.pooling != "cls":
        raise InputError("shared-pooler needs --pooling cls, which keeps the pooler")
    if args.method == "ce" and name not in ("random-batches", "shared-pooler", "layer-wise"):
        raise InputError(f"{name} needs a second loss: another method than ce")
    of_acl_cl = ("own-teacher", "label-embedding-keys", "label-embedding-anchors")
    if name in of_acl_cl and args.method != "acl-cl":
        raise InputError(f"{name} is a change of --method acl-cl")
    if name == "label-embedding-anchors" and not args.students_embed:
        raise InputError(f"{name} needs students with an ACL-Embed of their own")
    if name == "detached" and args.method in ("scl", "kd"):
        raise InputError(f"detached needs an ACL-Embed, which {args.method} has not")
    has_gate = args.conflict != "none" and args.conflict_at == "parameters"
    if name in ("project", "weigh") and not has_gate:
        raise InputError(f"{name} is a gate at the parameters: add --conflict observe")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    name, *options = argv or [None]
    if name in ("-h", "--help"):
        print(f"{__doc__}\nCHANGE is one of {', '.join(CHANGES)}.")
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
