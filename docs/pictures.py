"""Makes the pictures of ``docs/explore.md``: ``python docs/pictures.py`` (about a minute on two cores)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fastconv import explore, nn

DOCS = Path(__file__).parent


def network(rng: int, init: nn.initial.Initial = "plain") -> nn.Sequential:
    """The network of the page."""
    seed = np.random.default_rng(rng)
    return nn.Sequential(
        conv1=nn.Conv(1, 16, 5, padding=2, init=init, rng=seed), relu1=nn.ReLU(), pool1=nn.MaxPool(2),
        conv2=nn.Conv(16, 24, 3, padding=1, rng=seed), relu2=nn.ReLU(), pool2=nn.MaxPool(2),
        conv3=nn.Conv(24, 32, 3, padding=1, rng=seed), relu3=nn.ReLU(),
        flatten=nn.Flatten(), affine1=nn.Linear(32 * 49, 64, rng=seed), relu4=nn.ReLU(),
        affine2=nn.Linear(64, 10, rng=seed),
    )  # fmt: skip


def save(name: str, figure: Figure) -> None:
    """As PNG of few colours: 60 kB at most."""
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    figure.savefig(file, format="png", dpi=90)
    path = DOCS / f"explore-{name}.png"
    Image.open(file).convert("RGB").quantize(128).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Train, look, and write all pictures."""
    split = nn.digits()
    begun, model = network(0), network(0)
    nn.fit(
        model, split.x, split.labels, epochs=8, batch_size=50, optimiser=nn.Adam(0.003), schedule=nn.cosine,
        augment=nn.shifted, test=split[2:], rng=0,
    )  # fmt: skip
    print(f"{nn.accuracy(model, split.test_x, split.test_labels):.1%} of the digits held out")
    x = np.stack([split.test_x[split.test_labels == digit][0] for digit in (0, 2, 4, 6, 9)])

    save("filters", explore.plot_filters(explore.filters(model), explore.filters(begun), columns=4))
    maps = explore.feature_maps(model, x[1:2])
    save("maps", explore.plot_feature_maps(maps, x[1]))
    save("strength", explore.plot_feature_maps(maps, x[1], common=True))
    save("grad-cam", explore.plot_class_maps(x, explore.grad_cam(model, x)))
    gradients = {
        "plain gradient": explore.input_gradient(model, x),
        "guided": explore.input_gradient(model, x, rule="guided"),
        "deconvnet, strongest map of conv3": explore.deconvnet(model, x, "conv3"),
    }
    save("gradients", explore.plot_gradients(x, gradients))
    save("occlusion", explore.plot_occlusion(x, explore.occlusion(model, x)))
    save("view", explore.plot_layer_view(x[1], explore.layer_view(model, x[1], "conv2")))
    start = np.random.default_rng(0).normal(0, 0.1, (10, 1, 28, 28)).astype("float32")
    dreamt = explore.maximise(
        model, start, np.arange(10), steps=40, step=0.2, smooth=1.0, limits=(float(x.min()), float(x.max()))
    )
    save("maximised", explore.plot_maximised(dreamt, [str(digit) for digit in range(10)]))
    save("whose", explore.plot_randomisation(model, x, rng=0))
    for name, some in {"trained": model, "begun": begun}.items():
        roles = explore.layer_roles(some, split, 4, rng=0)
        save(f"roles-{name}", explore.plot_layer_roles(roles))
        for layer, role in roles.items():
            numbers = " | ".join(f"{value:.2f}" for value in role[1:])
            print(f"| {name} | `{layer}` | {role.field} | {numbers} |")
    print(explore.baselines(split), explore.probe_layers(model, split))
    angles = [0, 15, 30, 45, 60, 90]
    print(explore.rotation_accuracy(model, split.test_x, split.test_labels, angles).round(2))
    print(
        {
            k: round(float(np.nanmean(v)), 2)
            for k, v in explore.randomisation_test(model, split.test_x, rng=0).items()
        }
    )
    bank = explore.gabor_bank(11, 8, (5.0,), 4)
    save("tuning", explore.plot_tuning(explore.tuning(bank.filters, 5.0), at=8))
    fit = explore.gabor_fit(explore.filters(model))
    save("gabor", explore.plot_gabor_fit(explore.filters(model), fit, limit=8))
    print("Gabor fit", explore.gabor_fit(explore.filters(begun)).correlation.mean(), fit.correlation.mean())


if __name__ == "__main__":
    main()
