"""A pretrained model as a step of a scikit-learn pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from neigenmaps.errors import NotFittedError, ShapeError
from neigenmaps.nn.model import NeuralEigenmapModel
from neigenmaps.types import Scaling


class EigenmapTransformer(TransformerMixin, BaseEstimator):
    """Images to ordered codes: `make_pipeline(EigenmapTransformer("run/model", truncate_dim=16), LogisticRegression())`.

    model: a folder written by `save_pretrained`, or a `NeuralEigenmapModel`. truncate_dim, scaling, batch_size: as in
    `encode`. Nothing is learned: `fit` loads the model (`model_`, `n_features_out_`).

    Images are (N, C, H, W), or flat rows (N, C * H * W) as other steps of a pipeline hand them on: uint8, or floating in
    [0, 1]. Codes are NumPy, float32. Errors as `encode` and `from_pretrained`; ShapeError for rows of another width.
    """

    def __init__(
        self,
        model: str | Path | NeuralEigenmapModel,
        *,
        truncate_dim: int | None = None,
        scaling: Scaling = "sqrt_eigenvalue",
        batch_size: int = 512,
    ) -> None:
        self.model = model
        self.truncate_dim = truncate_dim
        self.scaling = scaling
        self.batch_size = batch_size

    def fit(self, images: Any, y: Any = None) -> Self:
        given = self.model
        self.model_ = given if isinstance(given, NeuralEigenmapModel) else NeuralEigenmapModel.from_pretrained(given)
        self.n_features_out_ = self.model_.available_dims() if self.truncate_dim is None else self.truncate_dim
        return self

    def transform(self, images: Any) -> NDArray[np.float32]:
        if not hasattr(self, "model_"):
            raise NotFittedError("this transformer has not loaded its model yet: call fit first")
        codes = self.model_.encode(
            self._shaped(images), truncate_dim=self.truncate_dim, scaling=self.scaling, batch_size=self.batch_size
        )
        return codes.cpu().numpy()

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        return np.array([f"eigenfunction{j}" for j in range(1, self.n_features_out_ + 1)], dtype=object)

    def _shaped(self, images: Any) -> Any:
        shape = self.model_.config["in_chans"], self.model_.config["image_size"], self.model_.config["image_size"]
        if np.ndim(images) != 2:
            return images
        if np.shape(images)[1] != int(np.prod(shape)):
            raise ShapeError(
                f"expected images {shape}, or rows of {int(np.prod(shape))} pixels, got {tuple(np.shape(images))}: resize them"
            )
        rows = images if isinstance(images, torch.Tensor) else np.asarray(images)
        return rows.reshape(len(rows), *shape)
