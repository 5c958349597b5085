"""What a network sees: pure functions from a network and arrays to arrays, and a picture for each.

A network is any :class:`fastconv.nn.Layer` made of others. What is computed is computed by fastconv's own functions
and the layers' own ``backward``; only the figures need matplotlib, and only the linear classifiers scikit-learn
(``pip install "fastconv[learn]"``).
"""

from fastconv.explore.attribution import (
    ClassMaps,
    Occlusion,
    cam,
    deconvnet,
    grad_cam,
    input_gradient,
    occlusion,
    plot_class_maps,
    plot_gradients,
    plot_occlusion,
)  # fmt: skip
from fastconv.explore.display import Scaled, enlarged, plot_maps, scaled, tile
from fastconv.explore.filters import filters, plot_filters, total_variation
from fastconv.explore.maps import plot_feature_maps
from fastconv.explore.taps import Taps, capture, feature_maps, taps

__all__ = [
    "ClassMaps", "Occlusion", "Scaled", "Taps", "cam", "capture", "deconvnet", "enlarged", "feature_maps", "filters",
    "grad_cam", "input_gradient", "occlusion", "plot_class_maps", "plot_feature_maps", "plot_filters",
    "plot_gradients", "plot_maps", "plot_occlusion", "scaled", "taps", "tile", "total_variation",
]  # fmt: skip
