"""The options of `python grad_surgery.py RUN ..`, apart from the report, so that --help and a wrong
option need not wait for torch."""

from tools.command_line import Parser, run_command


def parse_args(argv=None):
    """The command line as a namespace; ends the program with status 2 for wrong options."""
    p = Parser("grad_surgery.py", description="Angles between CE's and the contrastive gradient "
               "in runs whose gate looked at them (any --conflict but none).")
    p.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, finished or not")
    p.add_argument("--all", action="store_true", help="several runs: each run's histogram, too")
    return p.parse_args(argv)


def main(argv=None):
    """Returns the exit status."""
    args = parse_args(argv)
    return run_command("grad_surgery.py", lambda: start(args))


def start(args):
    """The long imports, and the report."""
    from tools import angles

    angles.report(args)
