"""Images resized before a net that takes no images of their size."""

from __future__ import annotations

import copy

import torch
from torch import nn

from rkd.nets.resize import Resize


def test_as_a_hook_it_resizes_what_the_net_takes() -> None:
    net = nn.Identity()
    net.register_forward_pre_hook(Resize((6, 8), antialias=False))
    x = torch.rand(2, 3, 4, 4)
    expected = nn.functional.interpolate(x, (6, 8), mode="bilinear", align_corners=False)
    assert torch.equal(net(x), expected) and torch.equal(Resize((6, 8), False).images(x), expected)
    assert copy.deepcopy(net)(x).shape == (2, 3, 6, 8), "copies keep it"


def test_where_images_become_smaller_pixels_are_averaged() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[:, :, 1::2] = 1
    smaller = Resize((2, 2), antialias=True).images(x)
    assert bool(((smaller > 0.3) & (smaller < 0.7)).all())
