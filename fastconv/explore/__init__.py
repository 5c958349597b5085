"""What a network sees: pure functions from a network and arrays to arrays, and a picture for each.

A network is any :class:`fastconv.nn.Layer` made of others. What is computed is computed by fastconv's own functions
and the layers' own ``backward``; only the figures need matplotlib, and only the linear classifiers scikit-learn
(``pip install "fastconv[learn]"``).
"""

from fastconv.explore.attribution import (
    ClassMaps, Occlusion, cam, deconvnet, grad_cam, input_gradient, occlusion, plot_class_maps, plot_gradients,
    plot_occlusion,
)  # fmt: skip
from fastconv.explore.display import Scaled, enlarged, plot_lines, plot_maps, scaled, tile
from fastconv.explore.filters import filters, plot_filters, total_variation
from fastconv.explore.hand_made import (
    GaborBank, GaborFit, Tuning, baselines, gabor_bank, gabor_fit, hand_made_features, hog, plot_gabor_fit,
    plot_tuning, tuning,
)  # fmt: skip
from fastconv.explore.invariance import (
    ShiftChange, match_score, plot_rotation_accuracy, plot_shift_change, rotation_accuracy, rotation_pairs,
    shift_change, turned,
)  # fmt: skip
from fastconv.explore.maps import (
    Sparsity, dead_filters, gini, part_auc, plot_feature_maps, plot_sparsity, selectivity, sparsity,
)  # fmt: skip
from fastconv.explore.photographs import photograph, photograph_maps
from fastconv.explore.probes import (
    Texture, best_filters, classifier, layer_features, plot_probes, probe, probe_layers, shuffle_patches, texture_scores,
)  # fmt: skip
from fastconv.explore.receptive import (
    ReceptiveField, measured_receptive_field, plot_receptive_fields, receptive_field, receptive_fields,
)  # fmt: skip
from fastconv.explore.roles import Role, effective_filters, layer_roles, plot_layer_roles
from fastconv.explore.sanity import correlation, plot_randomisation, randomisation_test, randomised
from fastconv.explore.taps import Taps, capture, feature_maps, taps
from fastconv.explore.units import (
    Maximised, TopPatches, dream, maximise, plot_maximised, plot_top_patches, top_patches,
)  # fmt: skip
from fastconv.explore.viewer import LayerView, layer_view, layer_views, plot_layer_view

__all__ = [
    "ClassMaps", "GaborBank", "GaborFit", "LayerView", "Maximised", "Occlusion", "ReceptiveField", "Role", "Scaled",
    "ShiftChange", "Sparsity", "Taps", "Texture", "TopPatches", "Tuning", "baselines", "best_filters", "cam", "capture",
    "classifier", "correlation", "dead_filters", "deconvnet", "dream", "effective_filters", "enlarged", "feature_maps",
    "filters", "gabor_bank", "gabor_fit", "gini", "grad_cam", "hand_made_features", "hog", "input_gradient",
    "layer_features", "layer_roles", "layer_view", "layer_views", "match_score", "maximise", "measured_receptive_field",
    "occlusion", "part_auc", "photograph", "photograph_maps", "plot_class_maps", "plot_feature_maps", "plot_filters",
    "plot_gabor_fit", "plot_gradients", "plot_layer_roles", "plot_layer_view", "plot_lines", "plot_maps",
    "plot_maximised", "plot_occlusion", "plot_probes", "plot_randomisation", "plot_receptive_fields",
    "plot_rotation_accuracy", "plot_shift_change", "plot_sparsity", "plot_top_patches", "plot_tuning", "probe",
    "probe_layers", "randomisation_test", "randomised", "receptive_field", "receptive_fields", "rotation_accuracy",
    "rotation_pairs", "scaled", "selectivity", "shift_change", "shuffle_patches", "sparsity", "taps",
    "texture_scores", "tile", "top_patches", "total_variation", "tuning", "turned",
]  # fmt: skip
