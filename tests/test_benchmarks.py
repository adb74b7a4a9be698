"""The benchmark runs at its smallest, and times each contestant once in a round."""

import pytest
import torch

from benchmarks import surgery
from tests.small import gradients_of

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


@pytest.mark.parametrize("sign, twin", [(1, "plain sum"), (-1, "plain CE")])
def test_both_decisions_are_timed(sign, twin):
    """With one exit both gates keep the second gradient, or drop it where it is turned round."""
    model, batch = surgery.model_and_batch("tiny", "last", 8, "cpu")
    gradients = []
    for name in (twin, "acl_grad", "acl_grad_features"):
        surgery.step(model, batch, surgery.CONTESTANTS[name], 0, sign)
        gradients.append(gradients_of(model))
    torch.testing.assert_close(gradients[1:], [gradients[0]] * 2)


def test_a_round_times_each_contestant_once_and_the_first_is_dropped(monkeypatch):
    signs = []
    monkeypatch.setattr(surgery, "step", lambda *arguments: signs.append(arguments[-1]))
    seconds = surgery.clock(None, None, 2, torch.device("cpu"))
    names = list(surgery.CONTESTANTS)
    assert seconds.shape == (2, len(names))
    assert list(seconds.columns) == names
    assert signs == [1] * len(names) + [-1] * len(names) + [1] * len(names)
