"""Convolution and pooling for NumPy and CuPy arrays: torch.nn.functional's names and numbers, no framework."""

from fastconv import grad
from fastconv.api import (
    adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d,
    adaptive_max_pool1d, adaptive_max_pool2d, adaptive_max_pool3d,
    avg_pool1d, avg_pool2d, avg_pool3d,
    conv1d, conv2d, conv3d,
    conv_transpose1d, conv_transpose2d, conv_transpose3d,
    explain, fold,
    lp_pool1d, lp_pool2d, lp_pool3d,
    max_pool1d, max_pool2d, max_pool3d,
    max_unpool1d, max_unpool2d, max_unpool3d,
    unfold,
)  # fmt: skip
from fastconv.arguments import Options
from fastconv.backends import BackendUnavailable, Unsupported, backends
from fastconv.plan import Plan
from fastconv.prepared import (
    PreparedConv,
    prepare_conv1d, prepare_conv2d, prepare_conv3d,
    prepare_conv_transpose1d, prepare_conv_transpose2d, prepare_conv_transpose3d,
)  # fmt: skip
from fastconv.settings import get_backend, set_backend, use_backend
from fastconv.spec import ConvSpec, Op, PoolSpec, parse
from fastconv.threads import get_num_threads, set_num_threads

__all__ = [
    "BackendUnavailable", "ConvSpec", "Op", "Options", "Plan", "PoolSpec", "PreparedConv",
    "Unsupported", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "backends", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "explain", "fold", "get_backend", "get_num_threads", "grad", "lp_pool1d",
    "lp_pool2d", "lp_pool3d", "max_pool1d", "max_pool2d", "max_pool3d", "max_unpool1d",
    "max_unpool2d", "max_unpool3d", "parse", "prepare_conv1d", "prepare_conv2d", "prepare_conv3d",
    "prepare_conv_transpose1d", "prepare_conv_transpose2d", "prepare_conv_transpose3d",
    "set_backend", "set_num_threads", "unfold", "use_backend",
]  # fmt: skip

__version__ = "0.1.0"
