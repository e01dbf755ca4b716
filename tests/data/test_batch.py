"""A batch divided into parts for gradient accumulation."""

import torch

from sda.data.batch import Batch, Labelled


def test_parts_of_a_batch():
    images, labels = torch.arange(24).view(6, 1, 2, 2), torch.arange(6).view(6, 1, 1)
    batch = Batch(Labelled(images, labels), None, images[:2])
    parts = batch.parts(2)
    assert [len(part.source.images) for part in parts] == [3, 3] and [len(part.unlabelled) for part in parts] == [1, 1]
    assert torch.equal(torch.cat([part.source.labels for part in parts]), labels) and parts[0].labelled is None
    assert batch.parts(1) == [batch]
