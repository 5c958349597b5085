"""The loss of a classifier, with its gradient."""

from __future__ import annotations

import numpy as np

from fastconv.arguments import Array


def softmax(logits: Array) -> Array:
    """Probabilities from logits: positive, and each row sums to 1.

    Parameters
    ----------
    logits : array, shape (N, classes)
    """
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))  # the largest is exp(0): nothing overflows
    return exps / exps.sum(axis=1, keepdims=True)


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Mean over the batch of ``-log softmax(logits)[label]``, and its gradient.

    Parameters
    ----------
    logits : array, shape (N, classes)
    labels : integer array, shape (N,)
        The right class of each row, from 0.

    Returns
    -------
    loss : float
    dlogits : array, of logits' shape
        What `backward` of the network takes.

    Raises
    ------
    ValueError, TypeError

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv import nn
    >>> loss, dlogits = nn.softmax_cross_entropy(np.array([[0.0, 0.0]]), np.array([1]))
    >>> round(loss, 4), dlogits.tolist()
    (0.6931, [[0.5, -0.5]])
    """
    if logits.ndim != 2 or not logits.size:
        raise ValueError(
            f"logits: got shape {tuple(logits.shape)}, expected (batch, classes), none of them 0"
        )
    count, classes = logits.shape
    if tuple(labels.shape) != (count,):
        raise ValueError(
            f"labels: got shape {tuple(labels.shape)}, expected ({count},), one for each row of logits"
        )
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels: got dtype {labels.dtype.name}, expected integers")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(f"labels: got {low} to {high}, expected classes from 0 to {classes - 1}")
    right = labels[:, None] == np.arange(classes, like=labels)
    shifted = logits - logits.max(axis=1, keepdims=True)
    exps = np.exp(shifted)
    sums = exps.sum(axis=1, keepdims=True)
    loss = float((np.log(sums)[:, 0] - shifted[right]).mean())
    return loss, (exps / sums - right) / count
