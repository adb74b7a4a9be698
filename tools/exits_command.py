"""The options of `python exits.py RUN ..`, apart from what they start, so that --help and a wrong
option need not wait for torch."""

import sys

from tools.command_line import Parser, quiet_libraries, run_command

# The rules of exits.py by name, and their settings.  One of your own: a line here.
EXIT_RULES = {
    "entropy": ("threshold",),
    "confidence": ("threshold",),
    "patience": ("patience",),
    "pcee": ("threshold", "patience"),
}

DESCRIPTION = """Score against speed-up of finished runs, and prediction with early exit.

  python exits.py runs/rte_acl-cl_1               a table: score at 1.5x, 2x, 3x, and by exit
  python exits.py runs/rte_*                      several runs: methods side by side, mean±sd
  python exits.py runs/rte_acl-cl_1 --examples    which dev sample left at which layer
  python exits.py runs/rte_acl-cl_1 --clock       the speed-up by the clock, at batch 1 and 32
  python exits.py runs/rte_acl-cl_1 --predict new.tsv --rule entropy --threshold 0.3
  python exits.py runs/rte_acl-cl_1 --predict -   answers the lines you type
"""


def parse_args(argv=None):
    """The command line as a namespace; ends the program with status 2 for wrong options."""
    p = Parser("exits.py", description=DESCRIPTION)
    add = p.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    add("--all", action="store_true", help="every rule, and each rule's best settings")
    add("--rule", choices=EXIT_RULES,
        help="who leaves when (entropy; --predict without one: nobody)")
    add("--threshold", type=float, help="of the rule (the setting next above 2x)")
    add("--patience", type=int, help="of the rule, 1 or more exits")
    add("--examples", action="store_true", help="write RUN/examples.tsv")
    add("--clock", action="store_true", help="measure the speed-up, write RUN/clock.csv")
    add("--predict", metavar="FILE", help="classify the samples of a .tsv, .csv, .jsonl, .json, "
        ".parquet or .txt; - reads lines")
    add("--output", metavar="FILE", help="of --predict (FILE_predictions.tsv beside FILE)")
    add("--batch-size", type=int, help="of --predict (1: the milliseconds are the sample's own)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="cpu",
        help="of --clock and --predict")
    args = p.parse_args(argv)
    check_options(args, p)
    return args


def check_options(args, p):
    """One line and status 2 for what does not go together."""
    has_setting = args.threshold is not None or args.patience is not None
    if has_setting and not (args.examples or args.clock or args.predict):
        p.error("--threshold and --patience are for --examples, --clock and --predict; the table "
                "tries all settings, so leave them out")
    if not args.predict and (args.output or args.batch_size is not None):
        p.error("--output and --batch-size are for --predict")
    if args.predict and (args.examples or args.clock or args.all):
        p.error("--predict stands alone, without --all, --examples or --clock")
    if args.predict and len(args.runs) > 1:
        p.error("--predict takes one run")
    if args.predict == "-" and args.output:
        p.error("--predict - answers on the screen, so --output has nothing to write")
    if args.batch_size is not None and args.batch_size < 1:
        p.error(f"--batch-size must be 1 or more, not {args.batch_size}")


def main(argv=None):
    """Returns the exit status."""
    args = parse_args(argv)
    return run_command("exits.py", lambda: start(args))


def start(args):
    """The long imports, and what the options ask for."""
    if "torch" not in sys.modules and sys.stderr.isatty():
        print("importing torch and transformers ..", file=sys.stderr, flush=True)
    quiet_libraries()
    if args.predict:
        from tools import prediction

        prediction.run(args)
    else:
        from tools import exits_report

        exits_report.report(args)
