"""Signs of life: a bar on a terminal, a line now and then in a file, a line for a long wait."""

import contextlib
import sys
import threading
import time

from tqdm import tqdm

from tools import processes

SECONDS_BETWEEN_LINES = 30


class Progress:
    """Goes through batches and shows how far it is.

        for batch in (bar := Progress(loader, "epoch 1/8")):
            bar.note("ce 0.693")
    """

    def __init__(self, batches, title):
        self.title = title
        self.total = len(batches)
        self.done = 0
        self.last_line = time.monotonic()
        on_terminal = sys.stderr.isatty() and processes.is_first()
        self.bar = tqdm(batches, title, leave=False, disable=not on_terminal)

    def __iter__(self):
        yield from self.bar

    def note(self, text):
        """After a batch: what to show beside the bar."""
        self.done += 1
        self.bar.set_postfix_str(text)
        now = time.monotonic()
        if self.bar.disable and now - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = now
            processes.say(f"{self.title}, step {self.done}/{self.total}: {text}")


@contextlib.contextmanager
def waiting(what, after=1.0):
    """Print `what ..` on standard error if the work inside takes longer than a second."""
    def show():
        print(f"{what} ..", file=sys.stderr, flush=True)

    timer = threading.Timer(after, show)
    timer.daemon = True
    if processes.is_first():
        # A sign of life is worth no stop where the machine has no thread to give.
        with contextlib.suppress(RuntimeError):
            timer.start()
    try:
        yield
    finally:
        timer.cancel()
