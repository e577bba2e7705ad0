"""Batch norm over the rows of all workers. torch's own SyncBatchNorm is for CUDA alone."""

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

_OVER = (0, 2, 3)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """As BatchNorm2d over the whole batch, wherever its rows are; a worker's share may be empty."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        sums = all_reduce(torch.cat([x.sum(_OVER), x.new_tensor([x.numel() / x.shape[1]])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean[:, None, None]
        variance = all_reduce((centred * centred).sum(_OVER)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        return centred * (self.weight * torch.rsqrt(variance + self.eps))[:, None, None] + self.bias[:, None, None]


def share_batch_norms(module: nn.Module) -> None:
    """In place: parameters, buffers and their names stay."""
    for each in module.modules():
        if type(each) is nn.BatchNorm2d:
            each.__class__ = SharedBatchNorm2d
