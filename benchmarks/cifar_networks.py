"""The ten small CIFAR-10 networks of the Latent Functional Maps authors, their layers, and what the benchmarks ask of them."""

from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from neigenmaps.spectral.graph import edge_weights

MEAN, STD = (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)
STRIDES = (1, 1, 2, 1, 1, 2, 1, 1)  # of the eight convolutions, none padded
LAYERS = (*(f"conv {number}" for number in range(1, 9)), "pool")


def weights_of(folder: Path, seed: int) -> dict[str, Tensor]:
    return load_file(folder / "lfm_cifar_cnn" / f"model_seed_{seed}.safetensors")


@torch.no_grad()
def layer_features(weights: dict[str, Tensor], images_NHWC: Tensor) -> list[Tensor]:
    """Features (N, F) after every block (convolution, batch norm in evaluation mode, ReLU; flattened) and after the pool."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    x = (images_NHWC.permute(0, 3, 1, 2).float() / 255 - mean) / std
    layers = []
    for number, stride in enumerate(STRIDES):
        conv, norm = f"layers.{number}.0", f"layers.{number}.1"
        x = F.conv2d(x, weights[f"{conv}.weight"], weights[f"{conv}.bias"], stride=stride)
        statistics = (weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        x = F.relu(F.batch_norm(x, *statistics))
        layers.append(x.flatten(1))
    return [*layers, x.mean(dim=(2, 3))]


def angular_graph(x_NF: Tensor, n_neighbors: int) -> sp.csr_matrix:
    """The adjacency of `neighbor_graph(x_NF, n_neighbors)`, by the Gram matrix: seconds less where F is several times N."""
    unit_NF = F.normalize(x_NF)
    square_NN = (2 - 2 * unit_NF @ unit_NF.T).clamp_min(0).fill_diagonal_(float("inf"))
    square_NK, index_NK = square_NN.topk(n_neighbors, largest=False)
    distance_NK = square_NK.double().sqrt()
    weights_NK = edge_weights("gaussian", distance_NK.numpy(), distance_NK[:, -1:].numpy(), distance_NK[:, -1:].numpy())
    ends = np.repeat(np.arange(len(x_NF)), n_neighbors), index_NK.flatten().numpy()
    directed = sp.csr_matrix((weights_NK.ravel(), ends), shape=square_NN.shape)
    return ((directed + directed.T) / 2).tocsr()


def gram_rows(x_NF: Tensor) -> Tensor:
    """Rows of at most N columns with the same inner products: the Cholesky factor of the Gram matrix.

    The 1e-5 that makes it definite adds one constant to all squared distances.
    """
    if x_NF.shape[1] <= len(x_NF):
        return x_NF
    gram_NN = (x_NF @ x_NF.T).double()
    scale = gram_NN.diagonal().mean()
    return torch.linalg.cholesky(gram_NN / scale + 1e-5 * torch.eye(len(x_NF)).double()).float()
