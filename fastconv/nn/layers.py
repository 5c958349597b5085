"""Layers: `forward` remembers what `backward` needs, `backward` leaves the gradients of the parameters in `grads`.

A kernel size of two entries makes a layer for images, one of one or three entries a layer for sequences or volumes,
and an int means two equal entries.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from fastconv import api, arguments, grad, prepared
from fastconv.arguments import Array, IntOrSizes, Padding
from fastconv.nn.initial import Initial, Seed, float_type, normal
from fastconv.prepared import PreparedConv
from fastconv.threads import single_threaded_blas

Arrays = dict[str, Array]


class Layer:
    """One step of a network; the base of all others.

    A layer of your own needs `forward` and `backward`: the first calls `keep`, the second `recall`.

    Attributes
    ----------
    params : dict of str to array
        What training changes, by name.
    grads : dict of str to array
        The gradient of each parameter, as the last `backward` left it.
    buffers : dict of str to array
        What is saved with the parameters but not trained.
    """

    def __init__(self) -> None:
        self._params: Arrays = {}
        self._grads: Arrays = {}
        self._buffers: Arrays = {}
        self._kept: tuple[Any, ...] | None = None
        self._keeps = True  # but not in a network that is only used: nn.prepare

    @property
    def params(self) -> Arrays:
        return self._params

    @property
    def grads(self) -> Arrays:
        return self._grads

    @property
    def buffers(self) -> Arrays:
        return self._buffers

    @property
    def layers(self) -> Mapping[str, Layer]:
        """The layers this one is made of, by name, in the order they compute; none for a plain layer."""
        return {}

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """Every layer inside this one, however deep, as ``("block1.conv2", layer)``, outer before inner."""
        for name, layer in self.layers.items():
            yield name, layer
            for inner, deeper in layer.named_layers():
                yield f"{name}.{inner}", deeper

    def forward(self, x: Array, train: bool = False) -> Array:
        """What the layer makes of `x`.

        Parameters
        ----------
        x : array
            Batch first.
        train : bool
            Whether dropout drops, and batch normalisation uses the batch's statistics.
        """
        raise NotImplementedError

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        """The gradient with respect to the last forward's input, given that with respect to its output.

        Parameters
        ----------
        dy : array, of the output's shape
        input_grad : bool
            Whether it is wanted at all. A network's first layer needs only the gradients of its parameters,
            and returns None.

        Raises
        ------
        RuntimeError
            Without a forward before it: each forward serves one backward, which frees what was kept for it.
        """
        raise NotImplementedError

    def convert(self, function: Callable[[Array], Array]) -> None:
        """Replace each parameter and buffer by ``function(array)``: ``convert(cupy.asarray)`` moves to the GPU."""
        for arrays in (self._params, self._buffers):
            for name, array in arrays.items():
                arrays[name] = function(array)

    def keep(self, *things: Any) -> None:
        """Remember what `backward` will need."""
        if self._keeps:
            self._kept = things

    def recall(self) -> tuple[Any, ...]:
        """What the last `forward` kept; it can be had once."""
        if self._kept is None:
            raise RuntimeError(
                f"{type(self).__name__}.backward: there was no forward since the last backward, expected one"
            )
        kept, self._kept = self._kept, None
        return kept

    def __repr__(self) -> str:
        shapes = (f"{name} {'x'.join(map(str, array.shape))}" for name, array in self.params.items())
        return f"{type(self).__name__}({', '.join(shapes)})"


class Composite(Layer):
    """A layer made of layers: the base of :class:`Sequential`, :class:`Residual` and :class:`Branches`.

    Its parameters, gradients and buffers are its own and those of its parts, each called after its part:
    ``"conv1.weight"``. One of your own needs `forward` and `backward`, which call those of each part once.

    Parameters
    ----------
    **layers : Layer
        By name, in the order they compute.
    """

    def __init__(self, **layers: Layer) -> None:
        super().__init__()
        self._layers = layers
        for name, layer in layers.items():
            if not isinstance(layer, Layer):
                raise TypeError(f"layer {name}: got {type(layer).__name__}, expected a fastconv.nn.Layer")
        if not layers:
            raise ValueError("layers: got none, expected at least one")

    @property
    def layers(self) -> Mapping[str, Layer]:
        return self._layers

    @property
    def chain(self) -> Sequence[str]:
        """Names of layers of which each takes what the one before it makes, and nobody else does."""
        return ()

    def made_of(self, layers: Mapping[str, Layer]) -> Self:
        """The same composition of other layers; such as stand in the chain may be left out."""
        twin = copy.copy(self)
        twin._layers = dict(layers)
        return twin

    def _collect(self, what: Callable[[Layer], Mapping[str, Array]]) -> Arrays:
        return {
            f"{name}.{key}": array
            for name, layer in self.layers.items()
            for key, array in what(layer).items()
        }

    @property
    def params(self) -> Arrays:
        return self._params | self._collect(lambda layer: layer.params)

    @property
    def grads(self) -> Arrays:
        return self._grads | self._collect(lambda layer: layer.grads)

    @property
    def buffers(self) -> Arrays:
        return self._buffers | self._collect(lambda layer: layer.buffers)

    def convert(self, function: Callable[[Array], Array]) -> None:
        super().convert(function)
        for layer in self.layers.values():
            layer.convert(function)

    def __repr__(self) -> str:
        width = max(map(len, self.layers))
        lines = [f"{name:{width}}  {layer!r}".replace("\n", "\n  ") for name, layer in self.layers.items()]
        count = sum(array.size for array in self.params.values())
        return "\n  ".join([f"{type(self).__name__}(", *lines]) + f"\n) with {count:,} parameters"


class Sequential(Composite):
    """Layers one after the other.

    Parameters
    ----------
    *layers, **named : Layer
        In order. A layer's parameters are called after it, ``"conv1.weight"``, or after its place, ``"0.weight"``,
        as in torch.

    Examples
    --------
    >>> from fastconv import nn
    >>> model = nn.Sequential(conv=nn.Conv(1, 8, 3), relu=nn.ReLU(), flatten=nn.Flatten())
    >>> list(model.params)
    ['conv.weight', 'conv.bias']
    """

    def __init__(self, *layers: Layer, **named: Layer) -> None:
        super().__init__(**{str(place): layer for place, layer in enumerate(layers)}, **named)

    @property
    def chain(self) -> Sequence[str]:
        return tuple(self.layers)

    def forward(self, x: Array, train: bool = False) -> Array:
        return forward_through(self.layers.values(), x, train)

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        return backward_through(self.layers.values(), dy, input_grad)


def forward_through(layers: Iterable[Layer], x: Array, train: bool) -> Array:
    """What `layers`, one after the other, make of `x`."""
    for layer in layers:
        x = layer.forward(x, train)
    return x


def backward_through(layers: Iterable[Layer], dy: Array, input_grad: bool) -> Array:
    """The gradient with respect to what went into the first of `layers`, given that of what came out of the last."""
    layers = list(layers)
    # Below the first layer that learns no gradient is of use.
    first = 0 if input_grad else next((at for at, layer in enumerate(layers) if layer.params), len(layers))
    for layer in reversed(layers[first + 1 :]):
        dy = layer.backward(dy)
    return layers[first].backward(dy, input_grad) if first < len(layers) else None


# ---------------------------------------------------------------------------- convolution


class _Convolution(Layer):
    """What both directions share: a function and its gradients, which take the same geometry."""

    def __init__(
        self, name: str, rank: int, weight: Array, channels: int, bias: bool, *geometry: Any
    ) -> None:
        super().__init__()
        self._params["weight"] = weight
        if bias:
            self._params["bias"] = np.zeros(channels, weight.dtype)
        self._geometry = geometry
        self._forward = getattr(api, f"{name}{rank}d")
        self._input_grad = getattr(grad, f"{name}{rank}d_input")
        self._weight_grad = getattr(grad, f"{name}{rank}d_weight")
        self._bias_grad = getattr(grad, f"conv{rank}d_bias")
        self._prepare = getattr(prepared, f"prepare_{name}{rank}d")
        self._options: dict[str, str] = {}

    def forward(self, x: Array, train: bool = False) -> Array:
        self.keep(x)
        weight, bias = self._params["weight"], self._params.get("bias")
        return self._forward(x, weight, bias, *self._geometry, **self._options)

    def prepared(self) -> PreparedConv:
        """The forward with its weights packed; see :func:`fastconv.prepare_conv2d`."""
        weight, bias = self._params["weight"], self._params.get("bias")
        made: PreparedConv = self._prepare(weight, bias, *self._geometry, **self._options)
        return made

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        (x,) = self.recall()
        weight = self._params["weight"]
        self._grads["weight"] = self._weight_grad(x, weight.shape, dy, *self._geometry, **self._options)
        if "bias" in self._params:
            self._grads["bias"] = self._bias_grad(dy)
        return self._input_grad(x.shape, weight, dy, *self._geometry, **self._options) if input_grad else None


class Conv(_Convolution):
    """Convolution: :func:`fastconv.conv2d`, or its like for one or three axes, with a weight and a bias.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or sequence of int
        One entry per spatial axis; an int means two equal ones.
    stride, padding, dilation, groups, padding_mode
        As in :func:`fastconv.conv2d`.
    bias : bool
    init : {"he", "xavier", "plain"} or float
        How the weight begins: normal with a standard deviation of ``sqrt(2 / fan_in)``,
        ``sqrt(2 / (fan_in + fan_out))``, 0.01, or as given. The bias begins at 0.
    rng : numpy.random.Generator or int, optional
        Where the numbers come from. Give all layers one generator: layers given the same int begin alike.
    dtype : {"float32", "float64"}
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: IntOrSizes, stride: IntOrSizes = 1,
        padding: Padding = 0, dilation: IntOrSizes = 1, groups: int = 1, bias: bool = True,
        padding_mode: str = "zeros", *, init: Initial = "he", rng: Seed = None, dtype: str = "float32",
    ) -> None:  # fmt: skip
        rank, c, o, g, kernel = _checked(in_channels, out_channels, kernel_size, groups)
        taps = math.prod(kernel)
        weight = normal((o, c // g, *kernel), init, c // g * taps, o // g * taps, rng, dtype)
        stride = arguments.sizes("stride", stride, rank, 1)
        dilation = arguments.sizes("dilation", dilation, rank, 1)
        super().__init__("conv", rank, weight, o, bias, stride, padding, dilation, g)
        self._options = {"padding_mode": padding_mode}


class ConvTranspose(_Convolution):
    """Transposed convolution: :func:`fastconv.conv_transpose2d` or its like, with a weight and a bias.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or sequence of int
        One entry per spatial axis; an int means two equal ones.
    stride, padding, output_padding, groups, dilation
        As in :func:`fastconv.conv_transpose2d`.
    bias, init, rng, dtype
        As in :class:`Conv`. Of a stride's taps only one in each axis meets an output, and fan_in counts those.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: IntOrSizes, stride: IntOrSizes = 1,
        padding: Padding = 0, output_padding: IntOrSizes = 0, groups: int = 1, bias: bool = True,
        dilation: IntOrSizes = 1, *, init: Initial = "he", rng: Seed = None, dtype: str = "float32",
    ) -> None:  # fmt: skip
        rank, c, o, g, kernel = _checked(in_channels, out_channels, kernel_size, groups)
        stride = arguments.sizes("stride", stride, rank, 1)
        taps = math.prod(kernel)
        fan_in = c // g * taps / math.prod(stride)
        weight = normal((c, o // g, *kernel), init, fan_in, o // g * taps, rng, dtype)
        output_padding = arguments.sizes("output_padding", output_padding, rank, 0)
        dilation = arguments.sizes("dilation", dilation, rank, 1)
        super().__init__(
            "conv_transpose", rank, weight, o, bias, stride, padding, output_padding, g, dilation
        )


def _checked(
    in_channels: int, out_channels: int, kernel_size: IntOrSizes, groups: int
) -> tuple[int, int, int, int, tuple[int, ...]]:
    """Rank, channels in and out, groups, and kernel, each as it should be."""
    rank = arguments.rank_of("kernel_size", kernel_size, 2)
    kernel = arguments.sizes("kernel_size", kernel_size, rank, 1)
    c = arguments.integer("in_channels", in_channels, 1)
    o = arguments.integer("out_channels", out_channels, 1)
    return rank, c, o, api._divided(groups, in_channels=c, out_channels=o), kernel


# ---------------------------------------------------------------------------- pooling


class _Pool(Layer):
    """A pool and its gradient, which take the same arguments."""

    def __init__(self, name: str, size: IntOrSizes, *rest: Any, called: str = "kernel_size") -> None:
        super().__init__()
        rank = arguments.rank_of(called, size, 2)
        self._forward = getattr(api, f"{name}{rank}d")
        self._backward = getattr(grad, f"{name}{rank}d")
        self._arguments = (arguments.sizes(called, size, rank, 1), *rest)

    def forward(self, x: Array, train: bool = False) -> Array:
        self.keep(x)
        return self._forward(x, *self._arguments)

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        (x,) = self.recall()
        return self._backward(dy, x, *self._arguments)


class MaxPool(_Pool):
    """Max pooling: :func:`fastconv.max_pool2d` or its like.

    Parameters
    ----------
    kernel_size : int or sequence of int
        One entry per spatial axis; an int means two equal ones.
    stride, padding, dilation, ceil_mode
        As in :func:`fastconv.max_pool2d`.
    """

    def __init__(
        self, kernel_size: IntOrSizes, stride: IntOrSizes | None = None, padding: Padding = 0,
        dilation: IntOrSizes = 1, ceil_mode: bool = False,
    ) -> None:  # fmt: skip
        super().__init__("max_pool", kernel_size, stride, padding, dilation, ceil_mode)

    def forward(self, x: Array, train: bool = False) -> Array:
        if not train:
            return super().forward(x)
        # A backward follows: to keep where the maxima stand costs less than to look for them again.
        y, indices = self._forward(x, *self._arguments, return_indices=True)
        self.keep(x, indices)
        return y

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        x, *found = self.recall()
        return self._backward(dy, x, *self._arguments, indices=found[0] if found else None)


class AvgPool(_Pool):
    """Average pooling: :func:`fastconv.avg_pool2d` or its like.

    Parameters
    ----------
    kernel_size : int or sequence of int
        One entry per spatial axis; an int means two equal ones.
    stride, padding, ceil_mode, count_include_pad, divisor_override
        As in :func:`fastconv.avg_pool2d`.
    """

    def __init__(
        self, kernel_size: IntOrSizes, stride: IntOrSizes | None = None, padding: Padding = 0,
        ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            "avg_pool", kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        )


class AdaptiveAvgPool(_Pool):
    """Averages over windows that share out any image: :func:`fastconv.adaptive_avg_pool2d` or its like.

    Parameters
    ----------
    output_size : int or sequence of int
        One entry per spatial axis; an int means two equal ones. At 1 each channel becomes its mean, which is called
        global average pooling.
    """

    def __init__(self, output_size: IntOrSizes) -> None:
        super().__init__("adaptive_avg_pool", output_size, called="output_size")


# ---------------------------------------------------------------------------- the rest


class Flatten(Layer):
    """Everything but the batch in one axis."""

    def forward(self, x: Array, train: bool = False) -> Array:
        self.keep(x.shape)
        return x.reshape(len(x), math.prod(x.shape[1:]))

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        (shape,) = self.recall()
        return dy.reshape(shape)


class Linear(Layer):
    """An affine map: ``x @ weight.T + bias``.

    Parameters
    ----------
    in_features, out_features : int
    bias, init, rng, dtype
        As in :class:`Conv`.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *,
        init: Initial = "he", rng: Seed = None, dtype: str = "float32",
    ) -> None:  # fmt: skip
        super().__init__()
        inputs = arguments.integer("in_features", in_features, 1)
        outputs = arguments.integer("out_features", out_features, 1)
        self._params["weight"] = normal((outputs, inputs), init, inputs, outputs, rng, dtype)
        if bias:
            self._params["bias"] = np.zeros(outputs, dtype)

    def forward(self, x: Array, train: bool = False) -> Array:
        weight = self._params["weight"]
        if x.ndim != 2 or x.shape[1] != weight.shape[1]:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected (batch, {weight.shape[1]}); Flatten makes images rows"
            )
        self.keep(x)
        y = _product(x, weight.T)
        return y + self._params["bias"] if "bias" in self._params else y

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        (x,) = self.recall()
        self._grads["weight"] = _product(dy.T, x)
        if "bias" in self._params:
            self._grads["bias"] = dy.sum(axis=0)
        return _product(dy, self._params["weight"]) if input_grad else None


# A product of matrices that hold no more elements in all is BLAS's on one thread.
SMALL = 1 << 20


def _product(a: Array, b: Array) -> Array:
    """``a @ b``.

    OpenBLAS' threads wait for their next product for 20 ms, on the CPUs that the next layers want: a step of LeNet-5 took 18 ms
    instead of 13 on one thread, and 16 instead of 10 on two. Large products are worth that.
    """
    if type(a) is not np.ndarray or a.size + b.size > SMALL:
        return a @ b
    with single_threaded_blas():
        return a @ b


class Dropout(Layer):
    """In training, sets a share `p` of all elements to 0 and scales the others by ``1 / (1 - p)``.

    Parameters
    ----------
    p : float
        From 0 up to, not including, 1.
    rng : numpy.random.Generator or int, optional
        Where the choice comes from, on the GPU too: a seed drops the same elements everywhere.
    """

    def __init__(self, p: float = 0.5, *, rng: Seed = None) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p: got {p!r}, expected a share from 0 up to, not including, 1")
        self.p = p
        self._rng = np.random.default_rng(rng)

    def forward(self, x: Array, train: bool = False) -> Array:
        if not train:
            self.keep(1)
            return x
        scale = (self._rng.random(x.shape) >= self.p).astype(x.dtype) / (1 - self.p)
        scale = np.asarray(scale, like=x)
        self.keep(scale)
        return x * scale

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        (scale,) = self.recall()
        return dy * scale


class BatchNorm(Layer):
    """Gives each channel mean 0 and variance 1 over batch and space, then a scale (weight) and a shift (bias).

    In training by the batch's own statistics, of which running means are kept; otherwise by these.

    Parameters
    ----------
    channels : int
    eps : float
        Added to the variance.
    momentum : float
        The share of the newest batch in the running statistics.
    dtype : {"float32", "float64"}

    References
    ----------
    S. Ioffe and C. Szegedy, Batch normalization, 2015.
    """

    def __init__(
        self, channels: int, eps: float = 1e-5, momentum: float = 0.1, *, dtype: str = "float32"
    ) -> None:
        super().__init__()
        count = arguments.integer("channels", channels, 1)
        dtype = float_type(dtype)
        self.eps, self.momentum = eps, momentum
        self._params = {"weight": np.ones(count, dtype), "bias": np.zeros(count, dtype)}
        self._buffers = {"running_mean": np.zeros(count, dtype), "running_var": np.ones(count, dtype)}

    def forward(self, x: Array, train: bool = False) -> Array:
        weight, bias = self._params["weight"], self._params["bias"]
        if x.ndim < 2 or x.shape[1] != len(weight):
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (batch, {len(weight)}, ...)")
        axes = (0, *range(2, x.ndim))
        count = x.size // len(weight)
        if train:
            if count < 2:
                raise ValueError(
                    f"x: got shape {tuple(x.shape)}, expected at least two values a channel to train on"
                )
            mean, var = x.mean(axis=axes), x.var(axis=axes)
            self._follow("running_mean", mean)
            self._follow("running_var", var * (count / (count - 1)))
        else:
            mean, var = self._buffers["running_mean"], self._buffers["running_var"]
        inverse = _along(1 / np.sqrt(var + self.eps), x)
        normal = (x - _along(mean, x)) * inverse
        self.keep(normal, inverse, axes, count if train else None)
        return normal * _along(weight, x) + _along(bias, x)

    def backward(self, dy: Array, input_grad: bool = True) -> Array:
        normal, inverse, axes, count = self.recall()
        self._grads["bias"] = dy.sum(axis=axes)
        self._grads["weight"] = (dy * normal).sum(axis=axes)
        if not input_grad:
            return None
        scale = _along(self._params["weight"], dy) * inverse
        if count is None:
            return dy * scale
        # The batch's mean and variance depend on x too: what they would change of it is taken out.
        shift, slope = _along(self._grads["bias"], dy), _along(self._grads["weight"], dy)
        return scale * (dy - (shift + normal * slope) / count)

    def _follow(self, name: str, new: Array) -> None:
        running = self._buffers[name]
        running += self.momentum * (new - running)


def _along(channels: Array, x: Array) -> Array:
    """One number per channel, shaped to meet `x`."""
    return channels.reshape(-1, *(1,) * (x.ndim - 2))
