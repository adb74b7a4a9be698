"""Changes to the method that are a few lines, not an option: run train.py with one of them in place.

    python results/variants.py CHANGE --task mrpc --method acl-cl [train.py's options]

    detached       the label embeddings get no gradient from ACL-Embed: only the samples move
    best-teacher   ACL-CL's teacher is the exit with the lowest cross-entropy on the batch, not the deepest
    row-anchors    ACL-CL's anchors: the student's label embeddings too, so that they turn to where the teacher's samples lie
    warm-up        lambda grows from 0 over the first 100 steps, where nearly all conflicts lie
    own-teacher    ACL-CL's positives: the sample's own teacher vector and its label's row, not the whole class
    rows-only      ACL-CL's keys: the teacher's label embeddings alone, no samples
    shared-pooler  h: the encoder's pooler over the mean of the tokens, one for all exits (with --pooling mean)
    layer-wise     learning rate of layer m: --lr times 0.8^(M - m); embeddings as layer 1
    center         means are taken off h and off the label embeddings before the contrastive cosines

One changes nothing and writes groups.csv, with any --conflict but none at the parameters:

    conflict-groups    at every step the cosine between both gradients in the embeddings, each layer, the pooler, the rows
"""

import argparse
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
from glue import InputError


def detached():
    attached = acl.acl_embed_loss
    acl.acl_embed_loss = lambda h, labels, label_embeddings, tau: attached(h, labels, label_embeddings.detach(), tau)


def best_teacher():
    plain = train.second_loss

    def second_loss(args, m, teacher, pairs, logits, labels):
        teacher = min(range(len(logits)), key=lambda i: F.cross_entropy(logits[i].float(), labels).item())
        return plain(args, m, teacher, pairs, logits, labels)
    train.second_loss = second_loss


def row_anchors():
    plain = train.second_loss

    def second_loss(args, m, teacher, pairs, logits, labels):
        if args.method != "acl-cl" or m == teacher:
            return plain(args, m, teacher, pairs, logits, labels)
        anchors, anchor_labels = acl.with_label_embeddings(pairs[m][0], labels, pairs[m][1])
        keys, key_labels = acl.with_label_embeddings(pairs[teacher][0].detach(), labels, pairs[teacher][1].detach())
        guided = acl.contrastive_loss(anchors, keys, acl.same_class(anchor_labels, key_labels), args.temperature, same_items=False)
        return guided + acl.acl_embed_loss(pairs[m][0], labels, pairs[m][1], args.temperature) if args.students_embed else guided
    train.second_loss = second_loss


def warm_up():
    fill_gradients, load_checkpoint, done = train.fill_gradients, train.load_checkpoint, [0]

    def loaded(*state):
        step, *rest = load_checkpoint(*state)
        done[0] = step                                                         # every run, resumed or new, says where it begins
        return step, *rest

    def warmed(args, *tensors):
        done[0] += 1
        weight = args.weight * min(1.0, done[0] / 100)
        return fill_gradients(argparse.Namespace(**{**vars(args), "weight": weight}), *tensors)
    train.load_checkpoint, train.fill_gradients = loaded, warmed


def own_teacher():
    def acl_cl_loss(student_h, teacher_h, labels, teacher_label_embeddings, temperature):
        keys, key_labels = acl.with_label_embeddings(teacher_h.detach(), labels, teacher_label_embeddings.detach())
        same = acl.same_class(labels, key_labels)                                          # (N, N + K)
        own = torch.eye(*same.shape, dtype=torch.bool, device=same.device)
        own[:, len(labels):] = same[:, len(labels):]
        return acl.contrastive_loss(student_h, keys, own, temperature, same_items=False)
    acl.acl_cl_loss = acl_cl_loss


def rows_only():
    def acl_cl_loss(student_h, teacher_h, labels, teacher_label_embeddings, temperature):
        rows = teacher_label_embeddings.detach()
        own = acl.same_class(labels, torch.arange(len(rows), device=labels.device))        # (N, K)
        return acl.contrastive_loss(student_h, rows, own, temperature, same_items=False)
    acl.acl_cl_loss = acl_cl_loss


def shared_pooler():
    class Pooled(exits.MultiExitBert):
        def __init__(self, encoder, *rest):
            pooler = encoder.pooler
            super().__init__(encoder, *rest)
            encoder.pooler = pooler

        def represent(self, hidden, token_mask):
            mean = super().represent(hidden, token_mask).float()                            # (N, d)
            if self.encoder.pooler is None:                                                 # the layers' check, before it is back
                return mean
            with torch.autocast(hidden.device.type, enabled=False):                         # else h would be rounded to bf16
                return self.encoder.pooler(mean[:, None])                                   # it takes the first token: (N, 1, d)
    exits.MultiExitBert = Pooled


def layer_wise():
    make_optimizer = train.make_optimizer

    def with_layers(args, model, total_steps):
        optimizer, _ = make_optimizer(args, model, total_steps)
        names = {id(p): name for name, p in model.named_parameters()}
        groups = []
        for group in optimizer.param_groups:
            for p in group["params"]:
                layer = re.search(r"\.layer\.(\d+)\.", names[id(p)])
                m = int(layer[1]) + 1 if layer else 1 if "embeddings" in names[id(p)] else model.num_layers
                groups.append({"params": [p], "lr": group["initial_lr"] * 0.8 ** (model.num_layers - m),
                               "weight_decay": group["weight_decay"]})
        optimizer = torch.optim.AdamW(groups, fused=True)
        schedule = train.transformers.get_linear_schedule_with_warmup(optimizer, total_steps // 10, total_steps)
        return optimizer, schedule
    train.make_optimizer = with_layers


def center():
    plain = train.second_loss

    def second_loss(args, m, teacher, pairs, logits, labels):
        return plain(args, m, teacher, [centered(*pair) for pair in pairs], logits, labels)
    train.second_loss = second_loss


def centered(h, label_embeddings):
    """h minus its batch mean, label embeddings minus their class mean; shapes (N, d), (K, d) stay (our idea).

    Softmax ignores a vector added to every l_k, and the bias absorbs the part of h all samples share; cosines see both.
    With K = 2 the centred label embeddings are exactly opposite, which is where cross-entropy drives them anyway.
    """
    return h - h.mean(dim=0), label_embeddings - label_embeddings.mean(dim=0)


def conflict_groups():
    run, fill_gradients, load_checkpoint, logs = train.run, train.fill_gradients, train.load_checkpoint, {}

    def checked(args):
        if args.conflict == "none" or args.conflict_at == "features":
            raise InputError("conflict-groups needs the gradients of both losses: --conflict other than none, at the parameters")
        run(args)

    def loaded(*state):
        step, seconds, found = load_checkpoint(*state)
        found.setdefault("groups.csv", [])                                     # saved and gone on with like the others
        logs.update(found)
        return step, seconds, found

    def watched(args, model, *tensors):
        seen = fill_gradients(args, model, *tensors)
        logs["groups.csv"] += group_cosines(model, seen, len(logs["steps.csv"]) + 1)
        return seen
    train.run, train.load_checkpoint, train.fill_gradients = checked, loaded, watched


def group_cosines(model, seen, step):
    """Rows of groups.csv: the step's cosine in the embeddings, each layer, the pooler, the label embeddings."""
    groups = {}
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    for name, triple in zip(names, seen.products, strict=True):
        layer = re.search(r"\.layer\.(\d+)\.", name)
        group = (f"layer {int(layer[1]) + 1}" if layer else "label embeddings" if name.startswith("classifiers") else
                 "pooler" if ".pooler." in name else "embeddings")
        if triple is not None:                                                 # both losses reach it
            groups.setdefault(group, []).append(triple)
    return [{"step": step, "group": group, "cosine": f"{grad_surgery.cosine(found):.4f}"} for group, found in groups.items()]


CHANGES = {"detached": detached, "best-teacher": best_teacher, "row-anchors": row_anchors, "warm-up": warm_up, "own-teacher": own_teacher,
           "rows-only": rows_only, "shared-pooler": shared_pooler, "layer-wise": layer_wise,
           "center": center, "conflict-groups": conflict_groups}

if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in CHANGES:
        sys.exit(f"variants.py: the first argument must be one of {', '.join(CHANGES)}")
    CHANGES[sys.argv[1]]()
    run_options = train.run_options                   # for config.json, and so that --resume goes on with the same change only
    train.run_options = lambda args, seed: {**run_options(args, seed), "change": sys.argv[1]}
    sys.exit(train.main(sys.argv[2:]))
