"""Overlap of boxes is torchvision's own, and costs no torchvision."""

import subprocess
import sys

import torch
import torchvision.ops

from worker.models.overlap import box_iou, nms


def test_overlap_is_torchvisions() -> None:
    torch.manual_seed(1)
    corners = torch.rand(500, 2) * 100
    boxes = torch.cat([corners, corners + torch.rand(500, 2) * 40], 1)
    scores = torch.rand(500)
    for iou in (0.0, 0.3, 0.7, 1.0):
        assert torch.equal(nms(boxes, scores, iou), torchvision.ops.nms(boxes, scores, iou))
    assert nms(boxes[:0], scores[:0], 0.5).shape == (0,)
    torch.testing.assert_close(box_iou(boxes[:9], boxes), torchvision.ops.box_iou(boxes[:9], boxes))


def test_exemplar_needs_no_torchvision_and_no_compiler_and_bears_both() -> None:
    code = (
        "import sys, torch\n"
        "from worker import models\n"
        "models.load('exemplar', torch.device('cpu'), None, {})\n"
        "assert not {'torchvision', 'torch._dynamo'} & sys.modules.keys()\n"
        "import torchvision.ops\n"
        "assert torchvision.ops.nms(torch.ones(1, 4), torch.ones(1), 0.5).tolist() == [0]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
