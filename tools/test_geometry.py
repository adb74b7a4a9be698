"""The three numbers of exits.csv, by hand and per exit."""

import math

import pytest
import torch

import exits
import glue
import train
from tools.geometry import geometry
from tools.testing import Words, labels_of, small_model, words_split


def test_geometry_by_hand():
    """Two classes, each at one point, at right angles; label embedding 0 on its class, 1
    opposite its class.  Of six pairs 2 are at distance 0, 4 at distance^2 2."""
    h = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3]])
    label_embeddings = torch.tensor([[1.0, 0], [0, -1]])
    numbers = geometry(h, torch.tensor([0, 0, 1, 1]), label_embeddings)
    assert numbers["label_cosine"] == pytest.approx(0)
    assert numbers["alignment"] == pytest.approx(0)
    assert numbers["uniformity"] == pytest.approx(math.log((2 * 1 + 4 * math.exp(-4)) / 6))


def test_alignment_of_a_spread_class():
    """One class at right angles: one pair, ||z_i - z_j||^2 = 2; a sample is no pair with
    itself."""
    h = torch.tensor([[1.0, 0], [0, 2], [-1, 0]])
    numbers = geometry(h, torch.tensor([0, 0, 1]), torch.eye(2))
    assert numbers["alignment"] == pytest.approx(2)


def test_a_class_without_samples_is_nan():
    h = torch.tensor([[1.0, 0], [0, 2]])
    numbers = geometry(h, torch.tensor([0, 0]), torch.eye(2))
    assert math.isnan(numbers["label_cosine"])
    assert numbers["alignment"] == pytest.approx(2)


def test_every_exit_is_measured_on_its_own():
    model, split, device = small_model(), words_split(), torch.device("cpu")
    splits = {"dev": split, "train": split}
    tensors, rows = train.evaluate(model, glue.TASKS["rte"], splits, Words(), device)
    h, logits = exits.all_exits(model, split, Words(), device, keep_h=9)
    labels = labels_of(split)
    assert list(tensors) == ["dev.logits", "dev.labels"]
    assert torch.equal(tensors["dev.logits"], logits)
    assert torch.equal(tensors["dev.labels"], labels)
    for m, row in enumerate(rows):
        expected = {"split": "dev", "exit_layer": m + 1}
        expected["accuracy"] = glue.accuracy(logits[m].argmax(dim=-1), labels)
        expected |= geometry(h[m], labels, model.classifiers[m].weight.detach())
        assert row == expected
