"""The benchmark runs at its smallest, and times each contestant once in a round."""

import pytest
import torch

from benchmarks import surgery

torch.set_num_threads(1)


@pytest.mark.parametrize("exits", ["last", "all"])
def test_every_contestant_is_timed_in_one_table(exits, capsys):
    surgery.main(["--shape", "tiny", "--rounds", "2", "--batch-size", "2", "--exits", exits])
    printed = capsys.readouterr().out.splitlines()
    ratios = {}
    for name in surgery.CONTESTANTS:
        [line] = [line for line in printed if line.startswith(f"{name}  ")]
        ms, ratios[name] = map(float, line.split()[-2:])
        assert ms > 0
    assert ratios["plain sum"] == 1
    assert printed[-1].startswith("ratio of one more backward")


def test_a_round_times_each_contestant_once_and_the_first_is_dropped(monkeypatch):
    calls = []
    monkeypatch.setattr(surgery, "step", lambda *arguments: calls.append(arguments))
    seconds = surgery.clock(None, None, 2, torch.device("cpu"))
    names = list(surgery.CONTESTANTS)
    assert len(calls) == 3 * len(names)
    assert seconds.shape == (2, len(names))
    assert list(seconds.columns) == names
    signs = [sign for *_, sign in calls]
    assert signs.count(-1) == len(names)
