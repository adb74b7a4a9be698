"""Fine-tune BERT on GLUE with cross-entropy, SCL, ACL-Embed, ACL-Grad, ACL-CL or distillation.  One plain PyTorch loop.

    python train.py --task demo --method acl-cl                         # no download, half a minute on a laptop's CPU
    python train.py --task rte --method acl-cl --seeds 1 2 3            # an exit at every layer, BERT-base from the hub
    python train.py --task rte --method acl-grad --data data --model minilm --pooling mean       # everything from disk
    torchrun --nproc-per-node 2 train.py --task rte --method acl-cl     # several processes share each batch

Each seed leaves runs/<task>_<method>_<seed>/:
    config.json   every option, the seed, versions       steps.csv    a line a step: losses before lambda, angle, ..
    exits.csv     an epoch and exit: scores, geometry    model/       weights, encoder config, tokenizer
    dev_logits.safetensors   every exit's dev logits     result.json  what the last epoch scored, the time it took
    RTE.tsv ..    --predict: GLUE's submission
While it runs: checkpoint.pt, and the CSVs as of that checkpoint.  .lock is empty and says that one process writes here.
The score reported is the last epoch's: nothing is picked on dev.

A step, in this order: glue.loader -> forward_shared (one process: MultiExitBert.forward) -> compute_losses -> fill_gradients
-> optimizer.step.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path

import filelock                                                 # comes with torch
import pandas                                                   # with datasets
import safetensors.torch                                        # this and tqdm: with transformers
import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from tqdm import tqdm

import acl
import exits
import glue
import grad_surgery
from glue import InputError

METHODS = {
    "ce": "cross-entropy",
    "scl": "(1 - weight) CE + weight SCL",
    "acl-embed": "CE + weight ACL-Embed",
    "acl-grad": "acl-embed, whose gradient is dropped where it conflicts with CE's (--conflict discard)",
    "acl-cl": "acl-grad, and the deepest exit guides the others through the contrastive loss (--exits all)",
    "kd": "CE + weight distillation from the deepest exit to the others (--exits all)",
}
# What differs between tasks: epochs, and the encoder's learning rate (second-hand: 2e-5, RTE 5e-5; demo: from nothing).
EPOCHS = {"demo": 8, "rte": 8, "mrpc": 5, "cola": 5, "wnli": 5}
LR = {"demo": 1e-3, "rte": 5e-5}
GEOMETRY_ROWS = 2000                      # acl.geometry looks at all pairs of rows, and QQP's dev has 40,000


def parse_args(argv=None):
    p = argparse.ArgumentParser(
        usage="python train.py --task TASK --method METHOD [options]", formatter_class=argparse.RawTextHelpFormatter,
        description="\n".join(f"{title}:\n" + "\n".join(f"  {name:10} {text}" for name, text in table.items())
                              for title, table in (("Methods", METHODS), ("Rules of --conflict", grad_surgery.RULES))))
    p.error = lambda message: p.exit(2, f"train.py: {message}; see python train.py --help\n")
    add = p.add_argument
    add("--task", required=True, help=f"{', '.join(glue.TASKS)}")
    add("--method", required=True, choices=METHODS, metavar="METHOD", help="one of the methods above")
    add("--data", default="nyu-mll/glue", help="hub id, its local copy, or a folder with GLUE's download (%(default)s)")
    add("--model", default="google-bert/bert-base-uncased", help="hub id or folder of a BERT-style encoder (%(default)s)")
    add("--pooling", default="cls", choices=("cls", "mean"), help="representation: pooler of [CLS], or mean of tokens, which\n"
        "suits encoders tuned with mean pooling, such as all-MiniLM (%(default)s)")
    add("--exits", help="all, last, or layers such as 3,6,12 (all for acl-cl and kd, else last)")
    add("--seeds", type=int, nargs="+", default=[1], help="one run each (1)")
    add("--epochs", type=int, help="passes over train (by task: 8 demo, rte; 5 mrpc, cola, wnli; else 3)")
    add("--batch-size", type=int, default=32, help="samples a step, and so of the contrastive loss (%(default)s)")
    add("--lr", type=float, help="peak learning rate of the encoder (by task: 1e-3 demo; 5e-5 rte; else 2e-5)")
    add("--head-lr", type=float, help="that of the classifiers and of a pooler that is new (20 x --lr; demo: 1 x)")
    add("--weight", type=float, help="lambda of the contrastive or distillation term (0.1; kd: 0.5)")
    add("--temperature", type=float, help="tau of that term (0.5; kd: 2)")
    add("--conflict", choices=["none", *grad_surgery.RULES], metavar="RULE",
        help="a rule above, or none: one backward of the sum (discard for acl-grad and acl-cl, else none)")
    add("--conflict-at", choices=("parameters", "features"), default="parameters",
        help="features: at the representations, exit by exit, approximate, at the cost of one backward (%(default)s)")
    add("--exit-weights", choices=("depth", "uniform"), default="depth", help="exit of layer m weighs m, or 1 (%(default)s)")
    add("--students-embed", action=argparse.BooleanOptionalAction, default=True, help="acl-cl: students' own ACL-Embed (on)")
    add("--max-length", type=int, default=128, help="tokens kept of a row (%(default)s)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 autocast where the hardware has it")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: cuda if there is one")
    add("--max-steps", type=int, help="stop after so many steps")
    add("--limit-train", type=int, help="only the first so many rows of train")
    add("--holdout", type=int, help="the last so many rows of train become dev: choose options without looking at dev")
    add("--output", default="runs", help="folder of the runs (%(default)s)")
    add("--resume", action="store_true", help="go on with unfinished runs, skip finished ones")
    add("--save-steps", type=int, help="checkpoint every so many steps, besides every epoch's end")
    add("--predict", action="store_true", help="also write GLUE's submission TSV from the test split")
    args = p.parse_args(argv)

    defaults = {"exits": "all" if args.method in ("acl-cl", "kd") else "last",
                "epochs": EPOCHS.get(args.task, 3), "lr": LR.get(args.task, 2e-5),
                "head_lr": (args.lr or LR.get(args.task, 2e-5)) * (1 if args.task == "demo" else 20),
                "weight": 0.5 if args.method == "kd" else 0.1, "temperature": 2.0 if args.method == "kd" else 0.5,
                "conflict": "discard" if args.method in ("acl-grad", "acl-cl") else "none"}
    vars(args).update({name: value for name, value in defaults.items() if getattr(args, name) is None})
    for name in ("epochs", "batch_size", "max_steps", "limit_train", "holdout", "save_steps", "lr", "head_lr", "temperature"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            p.error(f"--{name.replace('_', '-')} must be a number above 0, not {getattr(args, name)}")
    for wrong, message in [
            (not 0 <= args.weight < math.inf or args.method == "scl" and args.weight > 1,
             f"--weight must be 0 or more (scl: at most 1), not {args.weight}"),
            (args.max_length < 8, f"--max-length must be 8 or more, not {args.max_length}"),
            (args.method == "ce" and args.conflict != "none", "--conflict needs a second loss: choose another method than ce"),
            (args.conflict_at == "features" and (args.conflict in ("none", "project") or args.method == "kd"),
             "--conflict-at features needs a contrastive term (not kd) and --conflict observe, discard or weigh"),
            (args.predict and args.holdout, "--predict needs the test split, which --holdout leaves out"),
            (len(set(args.seeds)) != len(args.seeds) or not all(0 <= seed < 2**31 for seed in args.seeds),
             f"--seeds must be different numbers from 0 to 2147483647, not {' '.join(map(str, args.seeds))}")]:
        if wrong:
            p.error(message)
    return args


# ------------------------------------------------------------------------------------------------------ one training step
def compute_losses(args, model, h, logits, labels):
    """h (M, N, d), logits (M, N, K), labels (N,) -> ce and cl, lists of M scalars: each exit's loss times w_m / sum w.

        L = sum_m w_m (L_CE^m + lambda L_CL^m) / sum_m w_m             w_m: exit m's layer number, or 1 (--exit-weights)
        SCL alone is a mixture, (1 - lambda) L_CE^m + lambda L_SCL^m       (arXiv 2011.01403); lambda enters in fill_gradients
    """
    pairs = [(h_m, classifier.weight) for h_m, classifier in zip(h, model.classifiers)]   # h^m (N, d), l^m (K, d)
    ce = [F.cross_entropy(z.float(), labels) for z in logits]
    teacher = len(ce) - 1                                                      # the deepest exit guides the others
    cl = [second_loss(args, m, teacher, pairs, logits, labels) for m in range(len(ce))]
    w = [layer if args.exit_weights == "depth" else 1 for layer in model.exits]
    return [[w_m / sum(w) * loss for w_m, loss in zip(w, losses)] for losses in (ce, cl)]


def second_loss(args, m, teacher, pairs, logits, labels):
    """L_CL^m, the method's second term at exit m, contrastive or distillation.  pairs: every exit's (h, label embeddings)."""
    (h_m, l_m), tau = pairs[m], args.temperature
    if args.method == "scl":
        return acl.scl_loss(h_m, labels, tau)
    if args.method in ("acl-embed", "acl-grad") or args.method == "acl-cl" and m == teacher:
        return acl.acl_embed_loss(h_m, labels, l_m, tau)
    if args.method == "acl-cl":
        guided = acl.acl_cl_loss(h_m, pairs[teacher][0], labels, pairs[teacher][1], tau)
        return guided + acl.acl_embed_loss(h_m, labels, l_m, tau) if args.students_embed else guided
    if args.method == "kd" and m != teacher:
        return acl.kd_loss(logits[m], logits[teacher], tau)
    return torch.zeros((), device=h_m.device)                                  # ce, and kd's teacher


def fill_gradients(args, model, h, ce, cl):
    """Leave the step's gradient in `.grad`; returns the Conflict that was seen, or None where none was looked for."""
    ce_loss = (1 - args.weight if args.method == "scl" else 1.0) * sum(ce)
    if args.conflict != "none" and args.conflict_at == "parameters":
        return grad_surgery.acl_grad(ce_loss, sum(cl), model.parameters(), args.weight, args.conflict, average)
    if args.conflict == "none":
        seen = None
        (ce_loss + args.weight * sum(cl)).backward()
    else:
        seen = grad_surgery.acl_grad_features(ce_loss, cl, h, args.weight, args.conflict)
    for p in model.parameters():
        p.grad = average(p.grad)
    return seen


def forward_shared(model, batch, bf16, step_seed):
    """The whole batch's h (M, N, d) and logits (M, N, K).  Of n processes each encodes every n-th row, then all share h.

    The losses see all N samples on every process.  Backward reaches a process's own rows alone, n times as strongly, so that
    the average over processes is the gradient, for the classifiers too, which every process computes whole.
    """
    (rank, n), tokens = process(), batch["input_ids"]                           # (N, L)
    # A step's dropout depends on seed, step and process (up to 64) alone: going on after a kill needs no generator's state.
    torch.manual_seed(64 * step_seed + rank)
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=bf16):
        if n == 1:
            return model(**batch)
        mine = slice(rank, None, n) if len(tokens) > rank else slice(1)                     # no row left: row 0, times 0
        h = model.encode(**{name: x[mine] for name, x in batch.items()}) * (len(tokens) > rank)    # (M, N / n, d)
        own = torch.zeros(len(h), len(tokens), h.shape[-1], device=h.device)                # (M, N, d)
        own[:, mine] += h
        whole = own.detach().clone()
        dist.all_reduce(whole)
        h = whole + n * (own - own.detach())                                   # whole's value, n times own's gradient
        torch.manual_seed(64 * step_seed)                                      # the classifiers' dropout: all processes alike
        return h, model.classify(h)


def average(gradient):
    """The gradient's mean over all processes, so that all take the same decision and the same step."""
    if gradient is None or process()[1] == 1:
        return gradient
    gradient = gradient.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(gradient)
    return gradient / process()[1]


def process():
    """(number of this process, number of processes)"""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def make_optimizer(args, model, total_steps):
    """AdamW, weight decay 0.01 on matrices only; linear warm-up over a tenth of the steps, then linear decay to 0."""
    heads = {id(p) for p in model.head_parameters()}
    groups = [{"params": [p for p in model.parameters() if (id(p) in heads) == is_head and (p.dim() > 1) == is_matrix],
               "lr": args.head_lr if is_head else args.lr, "weight_decay": 0.01 if is_matrix else 0.0}
              for is_head in (False, True) for is_matrix in (False, True)]
    optimizer = torch.optim.AdamW(groups, fused=True)
    return optimizer, transformers.get_linear_schedule_with_warmup(optimizer, total_steps // 10, total_steps)


# ----------------------------------------------------------------------------------------------------------- one whole run
def train_one(args, seed, splits, model, tokenizer, device, folder):
    """One run: train, evaluate after every epoch, leave everything in `folder`."""
    task, train = glue.TASKS[args.task], splits["train"]
    bf16, is_writer = use_bf16(args.precision, device), process()[0] == 0
    lengths = glue.row_lengths(train)
    steps_per_epoch = math.ceil(len(train) / args.batch_size)
    total_steps = min(args.epochs * steps_per_epoch, args.max_steps or math.inf)
    optimizer, schedule = make_optimizer(args, model, total_steps)
    locked = lock(folder) if is_writer else None                               # as long as this function runs
    step, seconds, logs = load_checkpoint(folder, model, optimizer, schedule, total_steps)
    if is_writer:
        write_json(folder / "config.json", {**run_options(args, seed), "exit_layers": model.exits, "bf16": bf16,
                                            "num_labels": len(task.labels), "device_name": device_name(device)})
        print(f"{folder}: {len(train)} rows, exits {model.exits}, {device_name(device)}, "
              f"{'bf16' if bf16 else 'fp32'}", flush=True)
    dev = None

    while step < total_steps:
        epoch = step // steps_per_epoch + 1
        order = torch.Generator().manual_seed(1000 * seed + epoch)             # the epoch's order depends on nothing else
        todo = glue.bucketed_batches(lengths, args.batch_size, order)[step % steps_per_epoch:][:total_steps - step]
        bar = tqdm(glue.loader(train, todo, tokenizer), f"epoch {epoch}/{args.epochs}", leave=False,
                   disable=None if is_writer else True)                        # None: where there is no terminal
        model.train()
        start = time.perf_counter()
        for batch in bar:
            labels = batch.to(device).pop("label")                             # (N,); `to` moves the batch in place
            h, logits = forward_shared(model, batch, bf16, seed * 1_000_003 + step)    # (M, N, d), (M, N, K)
            ce, cl = compute_losses(args, model, h, logits, labels)
            optimizer.zero_grad(set_to_none=True)
            seen = fill_gradients(args, model, h, ce, cl)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            ce_loss, cl_loss, norm = torch.stack([sum(ce), sum(cl), norm]).tolist()
            if not math.isfinite(ce_loss) or not math.isfinite(norm):
                raise FloatingPointError(f"step {step + 1}: cross-entropy {ce_loss}, contrastive loss {cl_loss}, gradient norm "
                                         f"{norm}; start again with a smaller --lr or --head-lr, or --precision fp32")
            optimizer.step()
            step += 1
            cosine, angle, kept = (f"{seen.cosine:.6f}", f"{seen.angle:.3f}", f"{seen.kept:.4f}") if seen else ("", "", "")
            logs["steps.csv"].append({"step": step, "epoch": epoch, "ce_loss": f"{ce_loss:.6f}", "cl_loss": f"{cl_loss:.6f}",
                                      "cosine": cosine, "angle": angle, "kept": kept, "lr": f"{schedule.get_last_lr()[0]:.4g}"})
            schedule.step()
            bar.set_postfix_str(f"ce {ce_loss:.3f}, cl {cl_loss:.3f}" + (f", cosine {seen.cosine:.2f}" if seen else ""))
            if is_writer and args.save_steps and step % args.save_steps == 0 and step % steps_per_epoch and step < total_steps:
                save_checkpoint(folder, model, optimizer, schedule, logs, step, seconds + time.perf_counter() - start)
        seconds += time.perf_counter() - start

        dev, rows = evaluate(args, model, splits, tokenizer, device)
        logs["exits.csv"] += [{"epoch": epoch, **row} for row in rows]
        if is_writer:
            save_checkpoint(folder, model, optimizer, schedule, logs, step, seconds)
            by_exit = [row[task.metrics[0]] for row in rows[:len(model.exits)]]    # the first dev split's
            print(f"epoch {epoch}/{args.epochs}  dev {task.metrics[0]} " + " ".join(f"{value:.1f}" for value in by_exit)
                  + f"  mean {statistics.mean(by_exit):.1f}", flush=True)
    dev = dev or evaluate(args, model, splits, tokenizer, device)[0]           # killed between the last epoch and finish
    if is_writer:
        finish(args, seed, splits, model, tokenizer, device, folder, dev, logs, step, seconds)


def evaluate(args, model, splits, tokenizer, device):
    """What dev_logits.safetensors holds: float32 logits (M, R, K) and labels (R,); and exits.csv's rows without their epoch."""
    tensors, rows = {}, []
    for name in (n for n in splits if n.startswith("dev")):
        labels = torch.tensor(splits[name]["label"][:])                        # (R,)
        h, logits = exits.all_exits(model, splits[name], tokenizer, device, GEOMETRY_ROWS)     # (M, .., d), (M, R, K)
        tensors |= {f"{name}.logits": logits, f"{name}.labels": labels}
        for layer, x, z, classifier in zip(model.exits, h, logits, model.classifiers):
            geometry = acl.geometry(x, labels[:len(x)], classifier.weight.detach().float().cpu())
            rows.append({"split": name, "exit_layer": layer, **glue.score(args.task, z, labels), **geometry})
    return tensors, rows


def finish(args, seed, splits, model, tokenizer, device, folder, dev, logs, step, seconds):
    """Write dev_logits, model, predictions and, last of all, result.json, whose presence says "finished"."""
    task, metric = glue.TASKS[args.task], glue.TASKS[args.task].metrics[0]
    save_whole(safetensors.torch.save_file, dev, folder / "dev_logits.safetensors")
    model.encoder.config.save_pretrained(folder / "model")                     # makes the folder
    tokenizer.save_pretrained(folder / "model")
    save_whole(safetensors.torch.save_file, model.state_dict(), folder / "model" / "model.safetensors")
    if args.predict:
        for name in (n for n in splits if n.startswith("test")):
            _, logits = exits.all_exits(model, splits[name], tokenizer, device)
            file = task.folder + {"test_matched": "-m", "test_mismatched": "-mm"}.get(name, "") + ".tsv"
            names = [task.labels[k] for k in logits[-1].argmax(dim=-1).tolist()]
            pandas.DataFrame({"prediction": names}).to_csv(folder / file, sep="\t", index_label="index", lineterminator="\n")
    last = [row for row in logs["exits.csv"] if row["epoch"] == logs["exits.csv"][-1]["epoch"]]
    main_split = last[0]["split"]
    by_exit = [row[metric] for row in last if row["split"] == main_split]
    best = max((row for row in logs["exits.csv"] if (row["split"], row["exit_layer"]) == (main_split, model.exits[-1])),
               key=lambda row: row[metric])
    angles, kept = ([float(row[name]) for row in logs["steps.csv"] if row["angle"]] for name in ("angle", "kept"))
    batches = math.ceil(len(splits["train"]) / args.batch_size)
    result = {"task": args.task, "method": args.method, "seed": seed, "metric": metric, "score": by_exit[-1],
              "dev": {row["split"]: {name: row[name] for name in task.metrics} for row in last},       # the deepest exit's
              "exit_layers": model.exits, "exit_scores": by_exit, "mean_exit_score": statistics.mean(by_exit),
              "best_epoch_picked_on_dev": {"epoch": best["epoch"], "score": best[metric]}, "steps": step,
              "conflict_share": statistics.mean(not angle <= 90 for angle in angles) if angles else None,
              "non_finite": sum(math.isnan(angle) for angle in angles),
              "kept": statistics.mean(kept) if kept else None, "seconds": round(seconds, 2),
              "examples_per_second": round(step * len(splits["train"]) / batches / seconds, 2)}
    write_json(folder / "result.json", result)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    print(f"{folder}: {metric} {by_exit[-1]:.2f}, {seconds:.0f} s")


# ----------------------------------------------------------------------------------------- files: logs, checkpoint, result
def lock(folder):
    """Make the run's folder and refuse a second process on it.  Held as long as the returned lock is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(folder / ".lock").acquire(blocking=False)
    except filelock.Timeout:
        raise InputError(f"{folder}: another process is writing this run; wait for it or choose another --output") from None
    except OSError as error:
        raise InputError(f"--output: cannot write {error.filename or folder} ({error.strerror}); choose another") from None


def save_checkpoint(folder, model, optimizer, schedule, logs, step, seconds):
    """Everything the rest of the run depends on, in one file that replaces the last one whole; then the logs as CSV."""
    save_whole(torch.save, {"step": step, "seconds": seconds, "logs": logs, "model": model.state_dict(),
                            "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, folder / "checkpoint.pt")
    for name, rows in logs.items():
        if rows:
            pandas.DataFrame(rows).to_csv(folder / name, index=False, float_format="%.4f", na_rep="nan", lineterminator="\n")


def load_checkpoint(folder, model, optimizer, schedule, total_steps):
    """Put everything back.  Returns step, seconds, logs ({file: rows}): 0, 0, empty ones without a checkpoint.  InputError."""
    path, logs = folder / "checkpoint.pt", {"steps.csv": [], "exits.csv": []}
    if not path.exists():
        return 0, 0.0, logs
    try:
        state = torch.load(path, weights_only=True)                            # tensors and plain values, no code
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        if not 0 < state["step"] <= total_steps or not logs.keys() <= state["logs"].keys():
            raise ValueError
        return int(state["step"]), float(state["seconds"]), state["logs"]
    except Exception as error:                         # torn or foreign in one of too many ways to list
        raise InputError(f"{path} is torn ({type(error).__name__}); remove {folder} and start again") from None


def run_options(args, seed):
    """What a run's numbers depend on, for its config.json."""
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    options = {k: v for k, v in vars(args).items() if k not in ("seeds", "output", "resume", "save_steps")}
    return {**options, "seed": seed, "change": None, "processes": process()[1], "versions": versions}    # results/variants.py


def check_same_run(folder, options):
    """InputError if the run in `folder` was made with other options, so that --resume neither mixes nor repeats it."""
    try:
        theirs = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{folder / 'config.json'} cannot be read ({type(error).__name__}); remove {folder}") from None
    for k in {**options, **theirs}:                    # an option that only one of them knows is another run too
        if k not in ("exit_layers", "bf16", "num_labels", "device_name") and theirs.get(k) != options.get(k):
            raise InputError(f"{folder} was made with another {k}: {theirs.get(k)}, now {options.get(k)}; repeat its options "
                             "or choose another --output")


def save_whole(save, content, path):
    """save(content, path), whole or not at all: written under another name, then renamed.  OSError where it cannot be."""
    new = path.with_name(path.name + ".new")
    try:
        save(content, new)
    except (RuntimeError, safetensors.SafetensorError) as error:               # what both libraries make of a full disk
        raise OSError(f"cannot write {new}: {glue.reason(error)}") from None
    new.replace(path)


def write_json(path, content):
    save_whole(lambda text, new: new.write_text(text, encoding="utf-8"), json.dumps(content, indent=1) + "\n", path)


# ------------------------------------------------------------------------------------------------------------ the machine
def use_bf16(precision, device):
    """--precision auto: bf16 autocast where the hardware computes in it; elsewhere it is emulated and many times slower."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool({"avx512_bf16", "amx_bf16"} & {name for name, has in torch.cpu.get_capabilities().items() if has is True})


def device_name(device):
    return torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def pick_device(wanted):
    """--device, and under torchrun the process group and this process's own GPU.  Raises InputError."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no GPU to be seen; use --device cpu")
    device = torch.device("cuda" if wanted == "auto" and torch.cuda.is_available() else wanted.replace("auto", "cpu"))
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")            # cuBLAS sums in a fixed order only with this
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        torch.use_deterministic_algorithms(True)
    return device


def run(args):
    """Check everything, then train seed after seed; nothing is written before the first run starts."""
    device = pick_device(args.device)
    is_writer = process()[0] == 0
    folders = [Path(args.output) / f"{args.task}_{args.method}_{seed}" for seed in args.seeds]
    for seed, folder in zip(args.seeds, folders):
        if folder.exists() and not args.resume and is_writer:
            state = "holds a finished run" if (folder / "result.json").exists() else "exists"
            raise InputError(f"{folder} {state}; use --resume, remove it, or choose another --output")
        if args.resume and any((folder / name).exists() for name in ("checkpoint.pt", "result.json")):
            check_same_run(folder, run_options(args, seed))
    splits = glue.load_task(args.task, args.data, args.limit_train, args.holdout)
    tokenised = None
    for seed, folder in zip(args.seeds, folders):
        if (folder / "result.json").exists():
            if is_writer:
                print(f"{folder}: finished, skipped")
            continue
        torch.manual_seed(seed)                                                # what is new in the model starts from here
        encoder, tokenizer = exits.demo_encoder() if args.task == "demo" else exits.load_encoder(args.model)
        model = exits.MultiExitBert(encoder, len(glue.TASKS[args.task].labels), args.exits, args.pooling).to(device)
        if args.method in ("acl-cl", "kd") and len(model.exits) == 1:
            raise InputError(f"--method {args.method} needs students: more than one exit")
        if args.max_length > model.max_length:
            raise InputError(f"--max-length {args.max_length}: this model has {model.max_length} positions")
        tokenised = tokenised or {name: glue.tokenize(split, tokenizer, args.max_length) for name, split in splits.items()}
        train_one(args, seed, tokenised, model, tokenizer, device, folder)
    if is_writer and len(folders) > 1:
        scores = [json.loads((folder / "result.json").read_text(encoding="utf-8"))["score"] for folder in folders]
        print(f"{args.task} {args.method}: {glue.TASKS[args.task].metrics[0]} {statistics.mean(scores):.2f} "
              f"sd {statistics.stdev(scores):.2f} ({len(scores)} seeds)")


def main(argv=None):
    try:
        run(parse_args(argv))
        return 0
    except (InputError, FloatingPointError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except (OSError, KeyboardInterrupt) as error:                             # disk full, folder gone or read-only; Ctrl-C
        print(f"train.py: {str(error) or 'interrupted'}; the same command with --resume goes on", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 1


if __name__ == "__main__":
    sys.exit(main())
