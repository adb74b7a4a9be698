"""What every command of this project does alike: one line for bad input, quiet libraries.

Exit status: 0 done; 1 stopped by the machine or the numbers (a full disk, memory, NaN); 2 bad
input; 130 Ctrl-C.
"""

import argparse
import difflib
import os
import sys

PACKAGES = ("torch", "transformers", "datasets")  # of requirements.txt


class InputError(Exception):
    """The user's input is wrong.  Its text is one line that says what and what to do."""


def reason(error):
    """A library's error in one line: its class, and the first line of its text."""
    text = f"{type(error).__name__}: {error}"
    return text.splitlines()[0]


class Parser(argparse.ArgumentParser):
    """argparse, but one line and status 2 for a wrong option, and the description as written."""

    def __init__(self, *arguments, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("allow_abbrev", False)  # --epoch is a slip, not --epochs
        super().__init__(*arguments, **options)

    def add_argument(self, *names, **options):
        """--help shows an option's default behind its meaning."""
        default = options.get("default")
        if default not in (None, "", argparse.SUPPRESS):
            values = default if isinstance(default, list) else [default]
            shown = " ".join(str(value) for value in values)
            options["help"] = f"{options.get('help', '')} ({shown})".lstrip()
        return super().add_argument(*names, **options)

    def parse_args(self, args=None, namespace=None):
        let_output_close()  # --help prints, too
        sys.excepthook = self.tell  # of what comes before run_command, such as slow imports
        for word in sys.argv[1:] if args is None else args:
            self.check_spelling(word)
        return super().parse_args(args, namespace)

    def check_spelling(self, word):
        """argparse itself speaks first of the option that a misspelt one leaves missing."""
        option = word.partition("=")[0]
        known = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    known += parser._option_string_actions
        if option.startswith("--") and option not in ("--", *known):
            similar = difflib.get_close_matches(option, known, n=1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            self.error(f"there is no option {option}{hint}")

    def error(self, message):
        # Under torchrun every process reads the same options; the first one speaks.
        is_first = "WORLD_SIZE" not in os.environ or os.environ.get("RANK") == "0"
        line = f"{self.prog}: {message}; see python {self.prog} --help\n"
        self.exit(2, line if is_first else None)

    def tell(self, kind, error, traceback):
        """No traceback for Ctrl-C, which Python itself makes status 130, or a missing package."""
        if kind is KeyboardInterrupt:
            fail(self.prog, "interrupted", 130)
        elif is_missing_package(error):
            fail(self.prog, f"{error}: pip install -r requirements.txt", 1)
        else:
            sys.__excepthook__(kind, error, traceback)


def is_missing_package(error):
    """A package that is not installed, or too old to have a module that is imported from it."""
    module = getattr(error, "name", None) or ""
    return isinstance(error, ModuleNotFoundError) and module.partition(".")[0] in PACKAGES


def run_command(program, command, hint=""):
    """Call command(); returns the exit status, after one line on standard error if it failed.

    hint: what to do after a stop that was nobody's fault, such as a full disk.
    """
    let_output_close()
    try:
        command()
        return 0
    except InputError as error:
        return fail(program, error, 2)
    except FloatingPointError as error:
        return fail(program, error, 1)
    except KeyboardInterrupt:
        return fail(program, f"interrupted{hint}", 130)
    except OSError as error:  # a full disk, a folder that is gone or cannot be written
        return fail(program, f"{error}{hint}", 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "use a smaller --batch-size or --max-length"
        return fail(program, f"out of memory ({reason(error)[:120]}); {advice}", 1)


def fail(program, error, status):
    """Print the one line, unless another process has (`is_told`); returns the status."""
    if not getattr(error, "is_told", False):
        line = " ".join(str(error).splitlines())
        print(f"{program}: {line}", file=sys.stderr)
    return status


def is_out_of_memory(error):
    """torch has a class of its own for some GPUs; elsewhere only the text tells."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    signs = ("can't allocate memory", "out of memory", "bad_alloc", "alloc_failed")
    return any(sign in text for sign in signs)


class Forgiving:
    """A text stream that goes on in silence when its reader has gone (`| head`), its terminal
    too, or its disk is full: standard output that closes is no reason to stop training."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        try:
            return self.stream.write(text)
        except OSError:
            self.send_to_nowhere()
            return len(text)

    def flush(self):
        try:
            self.stream.flush()
        except OSError:
            self.send_to_nowhere()

    def send_to_nowhere(self):
        """What is still in the buffer would fail again when Python ends, so the file goes too."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def let_output_close():
    """Wrap standard output and error once; what their encoding lacks prints as ?."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Forgiving):
            continue
        if stream is None:  # closed from the start (2>&-), yet libraries ask it what it is
            stream = open(os.devnull, "w")
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
        setattr(sys, name, Forgiving(stream))


def quiet_libraries():
    """Commands speak for themselves; an import of a module leaves the libraries as they are."""
    import datasets
    import huggingface_hub
    import transformers

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()
