"""A linear classifier of scikit-learn as the weights of a Keras layer."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

NEVER = -30.0  # score of a class that training lacks


def linear_layer(classifier, Z, y, *, outputs: int, sample_weight=None) -> tuple[np.ndarray, np.ndarray]:
    """Fit it, and give what a Dense layer wants.

    Parameters
    ----------
    classifier : an unfitted linear classifier with ``coef_`` and ``intercept_``
    Z : float array (N, features)
    y : int array (N,): 0 or 1 with one output, else 0..outputs-1; classes may be missing
    sample_weight : float array (N,), optional

    Returns
    -------
    kernel (features, outputs) and bias (outputs,); float64
    """
    present = np.unique(y)
    kernel, bias = np.zeros((Z.shape[1], outputs)), np.full(outputs, NEVER)
    if len(present) < 2:
        bias[present if outputs > 1 else 0] = -NEVER if outputs > 1 or present[0] == 1 else NEVER
        return kernel, bias
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # good enough, and the same each time
        fitted = classifier.fit(Z, y, sample_weight=sample_weight)
    coef, intercept = fitted.coef_.T, fitted.intercept_
    if len(present) == 2 and outputs > 1:  # scikit-learn gives one column for two classes
        coef, intercept = np.hstack([-coef, coef]), np.concatenate([-intercept, intercept])
    columns = [0] if outputs == 1 else present
    kernel[:, columns], bias[columns] = coef, intercept
    return kernel, bias
