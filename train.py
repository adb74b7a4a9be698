"""Fine-tune BERT on GLUE with cross-entropy, SCL, ACL-Embed, ACL-Grad, ACL-CL or distillation.

    python train.py --task demo --method acl-cl              # no download, 15 seconds
    python train.py --task rte --method ce acl-cl --seeds 1 2 3   # BERT-base, GLUE from the hub
    python train.py --task rte --method acl-grad --data FOLDER --model FOLDER     # without a hub
    python train.py --task mine --method acl-cl --data mine.csv           # texts of your own
    torchrun --nproc-per-node 2 train.py --task rte --method acl-cl       # processes share a batch

Each seed leaves runs/<task>_<method>_<seed>/ (tools/run.py writes it):

    config.json   every option, the seed, versions     steps.csv    a line a step: losses, angle ..
    exits.csv     a line an epoch and exit: scores ..  model/       the encoder, its tokenizer
    result.json   what the last epoch scored           classifiers.safetensors
    dev_logits.safetensors  every exit's dev logits    RTE.tsv ..   --predict: GLUE's submission

While it runs there is also checkpoint.pt; after a kill the same command with --resume continues.
The score reported is the last epoch's: nothing is picked on dev.
"""

import argparse
import contextlib
import math

import torch
import torch.nn.functional as F
import transformers
from tqdm import tqdm

import acl
import exits
import glue
import grad_surgery
from tools import machine, models, processes, run
from tools.errors import Parser, one_line_errors
from tools.geometry import geometry, telemetry

# -------------------------------------------------------------------------------- options

METHODS = {
    # Its exits and its gate by default, and its loss at each exit.
    "ce": ("last", "none", "cross-entropy"),
    "scl": ("last", "none", "(1 - weight) CE + weight SCL"),
    "acl-embed": ("last", "none", "CE + weight ACL-Embed"),
    "acl-grad": ("last", "discard", "CE + weight ACL-Embed"),
    "acl-cl": ("all", "discard", "CE + weight (ACL-Embed + ACL-CL from the deepest exit)"),
    "kd": ("all", "none", "CE + weight distillation from the deepest exit"),
}
GATES = {
    "none": "one backward of the plain sum; no angle is measured",
    "observe": "the plain sum, its angle measured (the paper's pilot)",
    "discard": "drop the second gradient in a conflict (the paper's ACL-Grad)",
}
EXAMPLES = """
examples:
  python train.py --task demo --method acl-cl
  python train.py --task rte --method ce scl acl-grad acl-cl --exits all --seeds 1 2 3
  python train.py --task mine --method acl-cl --data mine.csv --model FOLDER
"""


def parse_args(argv=None):
    """The command line as a list of namespaces, one for each method, their defaults filled in.

    Ends the program with status 2 for wrong options.
    """
    p = Parser("train.py", description=__doc__.splitlines()[0], epilog=epilog())

    # Defaults that depend on the task or the method are in brackets here, and in fill_defaults.
    add = p.add_argument_group("what to train").add_argument
    add("--task", required=True, type=str.lower,
        help="cola sst2 mrpc qqp mnli qnli rte wnli demo, or your own")
    add("--method", required=True, nargs="+", choices=METHODS, help="one or more; see below")
    add("--seeds", type=int, nargs="+", default=[1], help="one run each (1)")
    add("--data", default="nyu-mll/glue",
        help="hub id, folder of GLUE files, or a file of yours (%(default)s)")
    add("--model", default="google-bert/bert-base-uncased",
        help="hub id or folder of an encoder (%(default)s)")
    add("--exits", help="all, last, or layers such as 3,6,12 (all if acl-cl or kd is among the "
        "methods; else last)")
    add("--pooling", choices=("mean", "cls"), default="mean",
        help="h: the mean of the tokens, or the pooler's [CLS] (%(default)s)")

    add = p.add_argument_group("the method").add_argument
    add("--weight", type=float, help="lambda of the second loss (0.5; demo: 0.01, its kd: 0.5)")
    add("--temperature", type=float, help="tau of the second loss (0.5; demo: 0.05; kd: 1)")
    add("--conflict", choices=GATES,
        help="gate, see below (discard for acl-grad and acl-cl; else none)")
    add("--conflict-at", choices=("parameters", "features"), default="parameters",
        help="where it is looked for; features: at h, approximate, one backward (%(default)s)")
    add("--exit-weights", choices=("depth", "uniform"), default="depth",
        help="w_m: the exit's layer number, or 1 (%(default)s)")
    add("--no-students-embed", dest="students_embed", action="store_false",
        help="acl-cl: students without an ACL-Embed of their own")

    add = p.add_argument_group("the training").add_argument
    add("--epochs", type=int, help="passes over train (3; rte: 4; demo: 7)")
    add("--batch-size", type=int, help="samples a step, and in a contrastive loss (32; demo: 64)")
    add("--lr", type=float, help="peak learning rate of the encoder (1e-4; demo: 1e-3)")
    add("--head-lr", type=float, help="that of the classifiers, and of a pooler that is new "
        "(20 times --lr; demo: --lr)")
    add("--max-length", type=int, default=128, help="tokens kept of a sample (%(default)s)")
    add("--max-steps", type=int, help="stop after so many steps")
    add("--limit-train", type=int, help="only the first so many samples of train")
    add("--holdout", type=int, help="the last so many of train become dev: to choose options")

    add = p.add_argument_group("machine and files").add_argument
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="auto: bf16 autocast where the hardware has it (%(default)s)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
        help="auto: cuda, else cpu (%(default)s)")
    add("--output", default="runs", help="folder of the runs (%(default)s)")
    add("--resume", action="store_true", help="go on with unfinished runs")
    add("--save-steps", type=int, help="checkpoint every so many steps, and every epoch's end")
    add("--predict", action="store_true", help="also write GLUE's submission from the test split")
    together = p.parse_args(argv)
    for name in ("method", "seeds"):
        values = getattr(together, name)
        if len(set(values)) < len(values):
            p.error(f"--{name} must not name one twice: {' '.join(map(str, values))}")

    # Methods that are compared have the same exits.
    if together.exits is None:
        exits_of = [METHODS[method][0] for method in together.method]
        together.exits = "all" if "all" in exits_of else "last"
    runs = []
    for method in together.method:
        args = argparse.Namespace(**vars(together))
        args.method = method
        fill_defaults(args)
        check_options(args, p)
        runs.append(args)
    return runs


def epilog():
    """What stands below the options of --help: the methods, the gates, and examples."""
    lines = ["methods:"]
    for method, (exits_at, gate, meaning) in METHODS.items():
        lines.append(f"  {method:10}{meaning}; exits: {exits_at}, gate: {gate}")
    lines.append("\ngates (--conflict):")
    for gate, meaning in GATES.items():
        lines.append(f"  {gate:10}{meaning}")
    return "\n".join(lines) + "\n" + EXAMPLES


def fill_defaults(args):
    """Fill in the defaults that depend on the task or the method, all in one place.

    Those of the losses and the rates come from held-out parts of train (results/README.md); the
    demo's are made to show conflicts.
    """
    is_demo = args.task == "demo"
    weight, temperature = 0.5, 0.5
    if is_demo:
        weight, temperature = 0.01, 0.05  # so that the gate can be watched: few conflicts at 0.5
    if args.method == "kd":
        weight, temperature = 0.5, 1.0
    defaults = {
        "weight": weight,
        "temperature": temperature,
        "conflict": METHODS[args.method][1],
        "epochs": {"demo": 7, "rte": 4}.get(args.task, 3),
        "batch_size": 64 if is_demo else 32,
        "lr": 1e-3 if is_demo else 1e-4,
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.head_lr is None:
        args.head_lr = args.lr if is_demo else 20 * args.lr


def check_options(args, p):
    """End the program with one line and status 2 for values that make no sense."""
    positive = ("epochs", "batch_size", "lr", "head_lr", "temperature", "max_length")
    optional = ("max_steps", "limit_train", "holdout", "save_steps")
    for name in positive + optional:
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            p.error(f"--{name.replace('_', '-')} must be a number above 0, not {value}")
    largest = 1.0 if args.method == "scl" else math.inf  # scl mixes both losses
    if not 0 <= args.weight <= largest or math.isinf(args.weight):
        p.error(f"--weight must be a number from 0 (for scl 0 to 1), not {args.weight}")
    if args.max_length < 8:
        p.error(f"--max-length {args.max_length} leaves no room for texts beside special tokens")
    if args.exits == "last" and METHODS[args.method][0] == "all":
        p.error(f"--method {args.method} needs students: use --exits all")
    if args.task == "demo":
        for name in ("data", "model"):
            if getattr(args, name) != p.get_default(name):
                p.error(f"--task demo makes its own {name}: leave out --{name}, or choose another "
                        "--task")
    if args.method == "ce" and args.conflict != "none":
        p.error("--conflict needs a second loss: choose another method than ce")
    if args.conflict_at == "features":
        if args.method == "kd":
            p.error("--conflict-at features needs a contrastive loss, which kd has not")
        if args.conflict == "none":
            p.error("--conflict-at features needs --conflict observe or discard")
    if not args.students_embed and args.method != "acl-cl":
        p.error("--no-students-embed is for --method acl-cl, whose students have an ACL-Embed")
    if args.predict and args.holdout:
        p.error("--predict needs the test split, which --holdout leaves out")
    if min(args.seeds) < 0:
        p.error("--seeds must be numbers of 0 or more")


# ------------------------------------------------------------------------- the two losses


def losses(args, model, h, logits, labels):
    """L_CE and L_ACL of one batch: means over the exits m = 1 .. M with weights w_m.

        L_CE  = sum_m w_m L_CE^m  / sum_m w_m        w_m: the layer that exit m sits on, or 1
        L_ACL = sum_m w_m L_ACL^m / sum_m w_m

    h (M, N, d), logits (M, N, K), labels (N,).  Returns the scalar L_CE and the M summands of
    L_ACL, without lambda: the gate may judge exit by exit, so they are not added up yet.
    L_ACL is the method's second loss, whichever that is: also SCL's or distillation's.
    """
    M, N, _ = logits.shape
    w = [1] * M if args.exit_weights == "uniform" else model.exit_layers
    w = torch.tensor(w, dtype=torch.float32, device=h.device)  # (M,)
    w = w / w.sum()

    # cross_entropy wants the classes in the second place: (M, K, N).
    per_sample = F.cross_entropy(logits.float().mT, labels.expand(M, N), reduction="none")  # (M, N)
    ce_loss = (w * per_sample.mean(dim=1)).sum()

    acl_losses = second_loss(args, h, model.label_embeddings(), logits, labels)  # (M,)
    return ce_loss, w * acl_losses


def second_loss(args, h, label_embeddings, logits, labels):
    """L_ACL^m of each exit m, the method's second loss: (M,).

    h (M, N, d), label_embeddings (M, K, d), logits (M, N, K), labels (N,).
    """
    tau = args.temperature
    if args.method == "ce":
        return torch.zeros(len(h), device=h.device)
    if args.method == "scl":
        return acl.scl_loss(h, labels, tau)

    # The deepest exit is the teacher (our reading), the others are its students.  Where only they
    # have a loss, the teacher's is 0.
    if args.method == "kd":
        students = acl.kd_loss(logits[:-1], logits[-1], tau)  # (M - 1,)
        return F.pad(students, (0, 1))

    # Each exit has an ACL-Embed of its own; with --no-students-embed the teacher alone.
    acl_embed = acl.acl_embed_loss(h, labels, label_embeddings, tau)  # (M,)
    if args.method in ("acl-embed", "acl-grad"):
        return acl_embed
    students = acl.acl_cl_loss(h[:-1], h[-1], labels, label_embeddings[-1], tau)  # (M - 1,)
    if not args.students_embed:
        return torch.cat([students, acl_embed[-1:]])
    return acl_embed + F.pad(students, (0, 1))


# ------------------------------------------------------------------------------- one step


def training_step(args, model, batch, bf16):
    """Leave one step's gradient in `.grad`.  lambda is args.weight.

        ce, kd, acl-embed   g = g_CE + lambda g_ACL                          one backward
        acl-grad, acl-cl    g = g_CE + lambda 1[<g_CE, g_ACL> >= 0] g_ACL    grad_surgery.acl_grad
        scl                 g = (1 - lambda) g_CE + lambda g_SCL             arXiv 2011.01403

    --conflict gives any method with a second loss another gate, or none.  Returns L_CE and L_ACL,
    detached and without lambda, and a list of cosines between the two gradients: one, or one for
    each exit with --conflict-at features, or none without a gate.
    """
    labels = batch["label"]  # (N,)
    with torch.autocast(labels.device.type, torch.bfloat16, enabled=bf16):
        h, logits = model(batch)  # (M, N, d), (M, N, K)
    ce_loss, acl_losses = losses(args, model, h, logits, labels)
    acl_loss = acl_losses.sum()

    # lambda is applied below and nowhere else.  SCL mixes the losses, the others add them.
    weight = args.weight
    ce_term = (1 - weight) * ce_loss if args.method == "scl" else ce_loss

    # The gradient: a plain sum without a gate, else what the gate makes of the two.
    model.zero_grad()
    parameters = list(model.parameters())
    drop = args.conflict == "discard"
    cosines = []
    if args.conflict == "none":
        (ce_term + weight * acl_loss).backward()
    elif args.conflict_at == "features":
        cosines = grad_surgery.acl_grad_features(ce_term, acl_losses, h, parameters, weight, drop)
    else:
        cosines = [grad_surgery.acl_grad(ce_term, acl_loss, parameters, weight, drop)]
    return ce_loss.detach(), acl_loss.detach(), cosines


# -------------------------------------------------------------------------------- one run


def train_one(args, seed, task, splits, model, tokenizer, device, this_run):
    """Train, evaluate after every epoch, leave everything in the run's folder.

    splits: tokenised; this_run: a tools.run.Run.
    """
    train = splits["train"]
    lengths = glue.row_lengths(train)
    bf16 = machine.use_bf16(args.precision, device)
    steps_per_epoch = math.ceil(len(train) / args.batch_size)
    total_steps = args.epochs * steps_per_epoch
    if args.max_steps:
        total_steps = min(total_steps, args.max_steps)
    optimizer, schedule = make_optimizer(args, model, total_steps)
    step = this_run.restore(model, optimizer, schedule)
    model = processes.share(model)  # unchanged for one process
    where = machine.device_name(device)
    if processes.count() > 1:
        where += f", {processes.count()} processes"
    precision = "bf16" if bf16 else "fp32"
    processes.say(f"{this_run.folder}: {len(train)} samples, exits {model.exit_layers}, {where}, "
                  f"{precision}")
    if total_steps < 100 and not args.max_steps:
        processes.say(f"{total_steps} steps in all are few: more --epochs, a smaller --batch-size "
                      "or a larger --lr may help")
    dev = None

    while step < total_steps:
        # The epoch's batches, minus what was done before a kill and what --max-steps cuts off.
        epoch = step // steps_per_epoch + 1
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        batches = glue.bucketed_batches(lengths, args.batch_size, generator)
        batches = batches[step % steps_per_epoch:]
        batches = batches[:total_steps - step]
        loader = glue.loader(train, batches, tokenizer)
        is_silent = None if processes.is_first() else True  # None: where there is no terminal
        bar = tqdm(loader, f"epoch {epoch}/{args.epochs}", leave=False, disable=is_silent)

        model.train()
        this_run.start_clock()
        for batch in bar:
            # Dropout's seed comes from seed and step alone, so that a resumed run draws the same
            # masks.  Steps are 64 apart: each of several processes adds its number, up to 63.
            torch.manual_seed(64 * (seed * 1_000_003 + step))
            ce_loss, acl_loss, cosines = training_step(args, model, batch.to(device), bf16)

            # The gradient's length is cut to 1, as BERT's fine-tuning does (our reading).  Three
            # numbers in one transfer, since each transfer waits for the device.
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            ce_loss, acl_loss, norm = torch.stack([ce_loss, acl_loss, norm]).tolist()
            step += 1

            # Stop before the optimizer spoils the weights with what is not finite.  acl_loss alone
            # may be: then the gate has left its gradient out, or else norm is not finite.
            if not math.isfinite(ce_loss) or not math.isfinite(norm):
                raise FloatingPointError(
                    f"step {step}: ce_loss {ce_loss}, acl_loss {acl_loss}, gradient norm {norm}; "
                    "start again with a smaller --lr or --head-lr, or --precision fp32"
                )
            optimizer.step()

            # A step's numbers; steps count from 1, lr is the encoder's.  To send them elsewhere,
            # add a line after log_step.
            row = {"step": step, "epoch": epoch, "ce_loss": ce_loss}
            if args.method != "ce":
                row["acl_loss"] = acl_loss
            row |= telemetry(cosines, drop=args.conflict == "discard")
            row["lr"] = schedule.get_last_lr()[0]
            this_run.log_step(row)
            schedule.step()
            bar.set_postfix(ce_loss=f"{ce_loss:.3f}")
            if args.save_steps and step % args.save_steps == 0 and step % steps_per_epoch:
                this_run.save(model, optimizer, schedule, step)

        dev, rows = evaluate(model, task, splits, tokenizer, device)
        this_run.log_exits([{"epoch": epoch, **row} for row in rows])
        this_run.save(model, optimizer, schedule, step)
        scores = [row[task.metrics[0]] for row in rows if row["split"] == rows[0]["split"]]
        by_exit = " ".join(f"{score:.1f}" for score in scores)
        processes.say(f"epoch {epoch}/{args.epochs}, step {step}  dev {task.metrics[0]} by exit: "
                      f"{by_exit}  mean {sum(scores) / len(scores):.1f}")

    # A run killed after its last epoch but before the end: only evaluation is left.
    if dev is None:
        dev, _ = evaluate(model, task, splits, tokenizer, device)

    # Samples seen, for examples_per_second: an epoch's last batch may be smaller.
    samples = step * len(train) / steps_per_epoch
    logs = this_run.logs
    result = run.summary(logs, task, args, seed, dev, model.exit_layers, samples)
    this_run.finish(model, tokenizer, dev, result)


def make_optimizer(args, model, total_steps):
    """AdamW, weight decay 0.01 on matrices only; linear warm-up over a tenth of the steps, then
    linear decay to 0 (our reading)."""
    heads = {id(p) for p in model.head_parameters()}
    groups = {}
    for p in model.parameters():
        lr = args.head_lr if id(p) in heads else args.lr
        weight_decay = 0.01 if p.dim() > 1 else 0.0
        settings = (lr, weight_decay)
        if settings not in groups:
            groups[settings] = {"params": [], "lr": lr, "weight_decay": weight_decay}
        groups[settings]["params"].append(p)
    optimizer = torch.optim.AdamW(groups.values(), fused=True)
    warm_up = total_steps // 10
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warm_up, total_steps)
    return optimizer, schedule


def evaluate(model, task, splits, tokenizer, device):
    """Every exit on the dev splits.  Returns the tensors for dev_logits.safetensors, float32 logits
    (M, R, K) and labels (R,), and a row of exits.csv for each exit, without the epoch."""
    tensors = {}
    rows = []
    for name, split in splits.items():
        if not name.startswith("dev"):
            continue
        labels = torch.tensor(split["label"][:])  # (R,)

        # 2,000 samples of h are enough: the geometry looks at all pairs, and QQP's dev has 40,000.
        h, logits = exits.all_exits(model, split, tokenizer, device, keep_h=2000)
        tensors[f"{name}.logits"] = logits
        tensors[f"{name}.labels"] = labels
        for m, layer in enumerate(model.exit_layers):
            label_embeddings = model.classifiers[m].weight.detach().float().cpu()
            row = {"split": name, "exit_layer": layer}
            row |= glue.score(task.metrics, logits[m], labels)
            row |= geometry(h[m], labels[:h.shape[1]], label_embeddings)
            rows.append(row)
    return tensors, rows


# --------------------------------------------------------------------------- all the runs


def train_all(runs):
    """Train every method with every seed.  runs: what parse_args returns.

    All folders are looked at before anything is trained or written.  Raises InputError.
    """
    machine.quiet_libraries()
    machine.pick_threads(runs[0].task)
    device = machine.pick_device(runs[0].device)
    processes.start(device)
    planned = processes.from_first(lambda: [run.plan(args) for args in runs])
    for args, plan in zip(runs, planned):
        train_method(args, plan, device)
        run.show_finished(plan)
    run.show_next([folder for plan in planned for _, folder, _ in plan])


def train_method(args, planned, device):
    """Train one method, seed after seed.  planned: [(seed, folder, state)] of run.plan."""
    task, texts = glue.load_task(
        args.task, args.data, args.limit_train, args.holdout, with_test=args.predict
    )
    tokens = None  # of all splits, for every seed
    for seed, folder, state in planned:
        if state != "finished" or tokens is None:
            model, tokenizer = models.build_model(args, seed, len(task.labels), device)
        if tokens is None:
            tokens = {name: glue.tokenize(split, tokenizer, args.max_length)
                      for name, split in texts.items()}
            config = run.config_of(args, seed, task, tokens, model, device)
            for other_seed, other, _ in planned:
                run.check_same(other, {**config, "seed": other_seed})

        # A finished run has its model on disk, from which it can still predict.
        if state != "finished":
            with contextlib.closing(run.Run(folder, {**config, "seed": seed})) as this_run:
                train_one(args, seed, task, tokens, model, tokenizer, device, this_run)
        elif args.predict:
            model, tokenizer = models.load_model(folder, config)
            model = processes.share(model.to(device))
        if args.predict:
            run.write_submission(model, task, tokens, tokenizer, device, folder)


def main(argv=None):
    runs = parse_args(argv)
    with one_line_errors("train.py"):
        train_all(runs)


if __name__ == "__main__":
    main()
