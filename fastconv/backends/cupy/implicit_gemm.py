"""Forward convolution as one product whose columns are never stored: out channels by output positions.

Half the work of a planner is in ``product.py``; what is left is what the digits count.
"""

from __future__ import annotations

from fastconv.backends import Run
from fastconv.backends.cupy.geometry import AXES, Axis, check_counts, lifted, volume
from fastconv.backends.cupy.launch import Program, View, kept
from fastconv.backends.cupy.pooling import BANDWIDTH
from fastconv.backends.cupy.product import Placed, Shape, Types, choose, pixels_of, product, taps_of, tiles_of
from fastconv.backends.cupy.run import OnDevice
from fastconv.spec import DTYPES, ConvSpec


def forward_axes(spec: ConvSpec) -> list[Axis]:
    """How a forward convolution reads its input."""
    axes = [
        Axis(*row)
        for row in zip(
            spec.in_size,
            spec.out_size,
            spec.stride,
            spec.kernel_size,
            spec.dilation,
            (-before for before, _ in spec.padding),
            strict=True,
        )
    ]
    return [Axis(1, 1, 1, 1, 1, 0)] * (AXES - spec.rank) + axes


def types_of(spec: ConvSpec) -> Types:
    """The types of a convolution and of its gradients."""
    return Types(spec.dtype, DTYPES[spec.dtype].accumulate, spec.out_dtype)


def check_positions(spec: ConvSpec) -> None:
    """Decline images whose padded axes, or whose positions all together, 32 bits cannot count."""
    for size, pads in zip(spec.in_size, spec.padding, strict=True):
        check_counts(**{"positions along an axis": size + pads[0] + max(pads[1], 0)})
    check_counts(
        **{
            "output positions of the batch": spec.batch * volume(spec.out_size),
            "products of one sum": spec.in_channels // spec.groups * volume(spec.kernel_size),
        }
    )


def implicit_gemm(spec: ConvSpec, precision: str, workspace_limit: int | None) -> Run:
    """Forward: out channels by output positions of the whole batch."""
    check_positions(spec)
    out_channels, in_channels = spec.out_channels // spec.groups, spec.in_channels // spec.groups
    axes, types = forward_axes(spec), types_of(spec)
    shape = Shape(
        out_channels, spec.batch * volume(spec.out_size), in_channels * volume(spec.kernel_size), spec.groups
    )
    choice = choose(shape, tiles_of(types.sums), types.sums, workspace_limit)
    linear = spec.padding_mode == "zeros"

    @kept
    def build(x: View, w: View, bias: View | None, y: View) -> Program:
        xs, ws, ys = lifted(x.strides, 0), lifted(w.strides, 0), lifted(y.strides, 0)
        return product(
            shape,
            types,
            choice,
            rows=taps_of(
                axes, in_channels, xs[1:], ws[1:], linear=linear, channels_first=not x.channels_last
            ),
            columns=pixels_of(axes, spec.batch, (xs[0], *xs[2:]), (ys[0], *ys[2:]), linear=linear),
            axes=axes,
            gathered=Placed(0, 0, group=in_channels * xs[1]),
            gathered_strides=xs[2:],
            dense=Placed(1, 0, row=ws[0], group=out_channels * ws[0]),
            result=Placed(3, 0, ys[1], out_channels * ys[1], y.aligned),
            bias=bias and Placed(2, 0, row=bias.strides[0], group=out_channels * bias.strides[0]),
            mode=spec.padding_mode,
            lanes=int(x.channels_last),
        )

    return Run(
        call=OnDevice(build),
        seconds=max(choice.seconds, spec.nbytes() / BANDWIDTH),
        shared=choice.workspace(shape, types.sums),
        note=choice.note(shape),
    )
