"""Layers, models and training: thin layers over the functions of fastconv and :mod:`fastconv.grad`.

Elementwise steps are NumPy's functions, which hand over to CuPy's where the arrays are CuPy's; everything else is
fastconv's. Nothing here asks where the arrays live.
"""

from fastconv.nn.activations import LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from fastconv.nn.belief import ConvRBM, ProbabilisticMaxPool, pretrain
from fastconv.nn.blocks import Branches, Residual
from fastconv.nn.capsules import Capsules, Lengths, PrimaryCapsules, squash, squash_grad
from fastconv.nn.data import digits, shifted
from fastconv.nn.files import load, save
from fastconv.nn.inference import Prepared, fold_batch_norm, prepare
from fastconv.nn.layers import (
    AdaptiveAvgPool, AvgPool, BatchNorm, Composite, Conv, ConvTranspose, Dropout, Flatten, Layer, Linear, MaxPool,
    Sequential,
)  # fmt: skip
from fastconv.nn.loss import softmax, softmax_cross_entropy
from fastconv.nn.models import (
    alexnet, googlenet, lenet5, mobilenet_v1, resnet18, resnet50, simple_conv_net, vgg16,
)  # fmt: skip
from fastconv.nn.normalisation import LocalContrastNorm, LocalResponseNorm
from fastconv.nn.optimisers import SGD, Adam
from fastconv.nn.recurrent import RNN
from fastconv.nn.training import Epoch, accuracy, cosine, fit, train_step
from fastconv.nn.transformer import SpatialTransformer, affine_sample, affine_sample_grad, identity_affine

__all__ = [
    "RNN", "SGD", "Adam", "AdaptiveAvgPool", "AvgPool", "BatchNorm", "Branches", "Capsules", "Composite", "Conv",
    "ConvRBM", "ConvTranspose", "Dropout", "Epoch", "Flatten", "Layer", "LeakyReLU", "Lengths", "Linear",
    "LocalContrastNorm", "LocalResponseNorm", "MaxPool", "Prepared", "PrimaryCapsules", "ProbabilisticMaxPool",
    "ReLU", "Residual", "Sequential", "SiLU", "Sigmoid", "SpatialTransformer", "Tanh", "accuracy",
    "affine_sample", "affine_sample_grad", "alexnet", "cosine", "digits", "fit", "fold_batch_norm", "googlenet",
    "identity_affine", "lenet5", "load", "mobilenet_v1", "prepare", "pretrain", "resnet18", "resnet50", "save",
    "shifted", "simple_conv_net", "softmax", "softmax_cross_entropy", "squash", "squash_grad", "train_step",
    "vgg16",
]  # fmt: skip
