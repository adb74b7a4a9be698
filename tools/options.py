"""Checks of train.py's options: one line and status 2 for values that make no sense."""

import math


def check_options(args, p):
    """args: train.py's namespace, its defaults filled in; p: the parser, which ends the program."""
    positive = ("epochs", "batch_size", "lr", "head_lr", "temperature", "max_steps")
    for name in (*positive, "limit_train", "holdout", "save_steps"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            p.error(f"--{name.replace('_', '-')} must be a number above 0, not {value}")
    if not 0 <= args.weight < math.inf:
        p.error(f"--weight must be 0 or more, not {args.weight}")
    if args.method == "scl" and args.weight > 1:
        p.error(f"--weight must be 0 to 1 for scl, which mixes, not {args.weight}")
    if args.max_length < 8:
        p.error(f"--max-length must be 8 or more, not {args.max_length}")
    if args.task == "demo":
        for name in ("data", "model"):
            if getattr(args, name) != p.get_default(name):
                p.error(f"--task demo makes its own {name}: leave out --{name}, or choose another "
                        "--task")
    if args.method == "ce" and args.conflict != "none":
        p.error("--conflict needs a second loss: choose another method than ce")
    if args.conflict_at == "features" and args.method == "kd":
        p.error("--conflict-at features needs a contrastive loss, which kd has not")
    if args.conflict_at == "features" and args.conflict in ("none", "project"):
        p.error("--conflict-at features needs --conflict observe, discard or weigh")
    if not args.students_embed and args.method != "acl-cl":
        p.error("--no-students-embed is for --method acl-cl, whose students have an ACL-Embed")
    if args.predict and args.holdout:
        p.error("--predict needs the test split, which --holdout leaves out")
    if len(set(args.seeds)) < len(args.seeds):
        p.error("--seeds must be different numbers")
    if min(args.seeds) < 0 or max(args.seeds) >= 2**31:
        p.error("--seeds must be numbers from 0 to 2147483647")
