"""Training: one step, and the loop around it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from fastconv.arguments import Array, integer
from fastconv.nn.initial import Seed
from fastconv.nn.layers import Layer
from fastconv.nn.loss import softmax_cross_entropy
from fastconv.nn.optimisers import SGD, Adam


class Epoch(NamedTuple):
    """What one pass over the images came to.

    Attributes
    ----------
    loss, accuracy : float
        Means over the epoch's images, each as it was when it was trained on.
    test_accuracy : float or None
        On the images held out, after the epoch; None where there are none.
    seconds : float
        Training alone.
    """

    loss: float
    accuracy: float
    test_accuracy: float | None
    seconds: float


def train_step(model: Layer, optimiser: SGD | Adam, x: Array, labels: Array) -> tuple[float, float]:
    """Forward, backward, and one step of the optimiser.

    Returns
    -------
    loss, accuracy : float
        On this batch, before the step.
    """
    logits = model.forward(x, train=True)
    loss, dlogits = softmax_cross_entropy(logits, labels)
    model.backward(dlogits, input_grad=False)
    optimiser.step(model.params, model.grads)
    return loss, float((logits.argmax(axis=1) == labels).mean())


def accuracy(model: Layer, x: Array, labels: Array, batch_size: int = 256) -> float:
    """Share of the images whose largest logit is the right one.

    Parameters
    ----------
    model : Layer
    x : array
        Images, batch first.
    labels : integer array, shape (N,)
    batch_size : int
        How many go through the network at once: memory grows with it, and the result does not depend on it.
    """
    _check(x, labels)
    size = integer("batch_size", batch_size, 1)
    right = 0
    for at in range(0, len(x), size):
        logits = model.forward(x[at : at + size])
        right += int((logits.argmax(axis=1) == labels[at : at + size]).sum())
    return right / len(x)


def cosine(done: float) -> float:
    """A schedule: from 1 to 0 along half a cosine (Loshchilov and Hutter, SGDR, 2017).

    Parameters
    ----------
    done : float
        The share of the training that is done.
    """
    return 0.5 + 0.5 * math.cos(math.pi * done)


def fit(
    model: Layer,
    x: Array,
    labels: Array,
    *,
    epochs: int = 10,
    batch_size: int = 100,
    optimiser: SGD | Adam | None = None,
    test: tuple[Array, Array] | None = None,
    schedule: Callable[[float], float] | None = None,
    augment: Callable[[Array, np.random.Generator], Array] | None = None,
    rng: Seed = None,
    progress: bool = True,
) -> list[Epoch]:
    """Train a classifier on batches of shuffled images.

    Parameters
    ----------
    model : Layer
    x : array
        Images, batch first.
    labels : integer array, shape (N,)
        Their classes, from 0.
    epochs : int
        How many times all images are seen.
    batch_size : int
    optimiser : SGD or Adam, optional
        ``Adam()`` by default.
    test : tuple of array, optional
        Images and labels held out, to measure accuracy on after each epoch.
    schedule : callable, optional
        What the optimiser's learning rate is multiplied by, given the share of the training that is done;
        :func:`cosine` is one.
    augment : callable, optional
        What each batch is turned into before it is trained on, given it and `rng`; :func:`shifted` is one.
    rng : numpy.random.Generator or int, optional
        A seed for the order: with the model's own it makes training reproducible to the bit.
    progress : bool
        Whether a bar shows loss, accuracy and time.

    Returns
    -------
    list of Epoch

    Raises
    ------
    ValueError, TypeError
    """
    from fastconv.progress import bar as progress_bar  # rich takes longer to load than fastconv

    _check(x, labels)
    epochs, batch_size = integer("epochs", epochs, 1), integer("batch_size", batch_size, 1)
    rng, optimiser = np.random.default_rng(rng), optimiser or Adam()
    rate, steps, step, history = optimiser.lr, epochs * -(-len(x) // batch_size), 0, []
    with progress_bar(disable=not progress) as bar:
        task = bar.add_task("starting", total=steps)
        try:
            for epoch in range(1, epochs + 1):
                loss = right = 0.0
                began = time.perf_counter()
                for seen, rows in _batches(len(x), batch_size, rng):
                    rows = np.asarray(rows, like=x)
                    batch = x[rows] if augment is None else augment(x[rows], rng)
                    optimiser.lr = rate if schedule is None else rate * schedule(step / steps)
                    batch_loss, batch_accuracy = train_step(model, optimiser, batch, labels[rows])
                    loss += batch_loss * len(rows)
                    right += batch_accuracy * len(rows)
                    step += 1
                    text = f"epoch {epoch}  loss {loss / seen:.4f}  accuracy {right / seen:.1%}"
                    bar.update(task, completed=step, description=text)
                seconds = time.perf_counter() - began
                held_out = None if test is None else accuracy(model, *test, batch_size)
                history.append(Epoch(loss / len(x), right / len(x), held_out, seconds))
        finally:
            optimiser.lr = rate
    return history


def _batches(count: int, size: int, rng: np.random.Generator) -> Iterator[tuple[int, Array]]:
    """Every row once, in random order: how many have come, and the newest of them."""
    order = rng.permutation(count)
    for at in range(0, count, size):
        yield min(at + size, count), order[at : at + size]


def _check(x: Array, labels: Array) -> None:
    if not len(x) or tuple(labels.shape) != (len(x),):
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)} for {len(x)} images, expected one for each of at least one"
        )
