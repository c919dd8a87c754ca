"""The same network and recipe in PyTorch as its users write it: channels_last, autocast, torch.compile.

``python -m tests.bench.torch_peer BATCHES STEPS SIZE POLICY LOCK`` prints images/s by batch size, a line of
JSON each; it compiles at once, and measures when it gets the lock.
"""

import json
import sys
import time

import torch
from filelock import FileLock
from torch import nn
from torch.nn import functional as F

PICTURES = 2048


class Bottleneck(nn.Module):
    """ResNet v1's block: its stride in the first 1x1 convolution, as in Keras' ResNet50."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, width, 1, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 4 * width, 1),
            nn.BatchNorm2d(4 * width),
        )
        self.short = nn.Identity()
        if inputs != 4 * width:
            self.short = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))

    def forward(self, x):
        return F.relu(self.branch(x) + self.short(x))


def network() -> nn.Module:
    """ResNet-50, average pooled, Dense 1024, ReLU, dropout 0.4, Dense 1."""
    blocks, inputs = [], 64
    for stage, count in enumerate((3, 4, 6, 3)):
        for number in range(count):
            blocks.append(Bottleneck(inputs, 64 * 2**stage, 2 if stage and not number else 1))
            inputs = 256 * 2**stage
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2048, 1024),
        nn.ReLU(),
        nn.Dropout(0.4),
        nn.Linear(1024, 1),
    )


def augmented(x):
    """Flips and zooms of up to 10 %, on the device; float (N, 3, height, width)."""
    n = len(x)
    zoom = 1 + 0.1 * (2 * torch.rand(n, device=x.device) - 1)
    signs = [torch.where(torch.rand(n, device=x.device) < 0.5, zoom, -zoom) for _ in range(2)]
    theta = torch.zeros(n, 2, 3, device=x.device)
    theta[:, 0, 0], theta[:, 1, 1] = signs
    return F.grid_sample(
        x,
        F.affine_grid(theta, list(x.shape), align_corners=False),
        padding_mode="reflection",
        align_corners=False,
    )


def training(batch: int, steps: int, height: int, width: int, policy: str):
    """Give a function that trains an epoch; compiled."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    X = torch.randint(0, 256, (max(PICTURES, batch), 3, height, width), dtype=torch.uint8, device=device)
    X = X.contiguous(memory_format=torch.channels_last)
    y = (torch.arange(len(X), device=device) % 2).float()
    mean = torch.tensor([103.939, 116.779, 123.68], device=device)[:, None, None]
    model = network().to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.RMSprop(model.parameters(), 0.001, alpha=0.9, eps=1e-7, foreach=True)
    half = {"mixed_bfloat16": torch.bfloat16, "mixed_float16": torch.float16}.get(policy)
    scaler = torch.amp.GradScaler(device, enabled=half == torch.float16)

    @torch.compile(dynamic=False)
    def loss_of(rows):
        x = augmented(X[rows].float()).flip(1) - mean
        with torch.autocast(device, half, enabled=half is not None):
            predicted = model(x)
        return F.mse_loss(torch.sigmoid(predicted.float()[:, 0]), y[rows])

    def epoch(steps=steps):
        for rows in torch.randint(0, len(X), (steps, batch), device=device):
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss_of(rows)).backward()
            scaler.step(optimizer)
            scaler.update()
        if device == "cuda":
            torch.cuda.synchronize()

    epoch(2)
    return epoch


def seconds(call) -> float:
    """Time a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main(batches: str, steps: str, size: str, policy: str, lock: str) -> None:
    """Print the median rate of three epochs, after one more, for each batch size."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    width, height = map(int, size.split("x"))
    sizes = [int(batch) for batch in batches.split(",")]
    epochs = {batch: training(batch, int(steps), height, width, policy) for batch in sizes}
    with FileLock(lock):
        for batch, epoch in epochs.items():
            usual = sorted([seconds(epoch) for _ in range(4)][1:])[1]
            print(json.dumps({"batch": batch, "images_a_second": batch * int(steps) / usual}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
