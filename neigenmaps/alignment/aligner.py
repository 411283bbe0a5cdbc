"""What every aligner does: fit named spaces, map any of them into one universe and back, take in a newcomer, be saved.

A subclass learns and maps (the methods with an underscore); checks, names, dtypes and files are here. Data stay where
they are and keep their precision: maps are float64 and are cast to the rows they meet, float32 at least.
"""

from __future__ import annotations

import abc
import copy
import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from neigenmaps.alignment.rows import MatchedRows, Rows, as_tensor, check_finite, check_varies, matched_rows
from neigenmaps.alignment.storage import read_state, write_state
from neigenmaps.errors import (
    AlignmentWarning,
    CheckpointError,
    InputError,
    NotFittedError,
    RowMismatchError,
    ShapeError,
    UnknownNameError,
)
from neigenmaps.functional.row_agreement import agreeing_groups, agreement_p_values

HELD_OUT = 0.2  # share of a newcomer's rows that its certificate is measured on
LARGEST_CERTIFICATE = 2000  # rows: all their cosines are held at once
LOOKS = (100, 1000)  # rows that fit looks at for their order; the second number only where the first leaves a doubt


class Certificate(NamedTuple):
    """How well a newcomer agrees with the universe on rows that its map has not seen.

    rank1: share of rows whose own consensus (mean unit row of the others) is nearer than any other row's, cosine, ties
    against. agreement: mean cosine with it. p_value: of the agreement among permuted pairings, add-one.
    """

    rank1: float
    agreement: float
    p_value: float
    n_held_out: int


class AbstractAligner(abc.ABC):
    """Fitted: names_, widths_ (by name), n_components_ (width of the universe)."""

    random_state: int
    names_: tuple[str, ...]
    widths_: dict[str, int]
    n_components_: int
    _rows: MatchedRows | None

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = [f"{k}={v!r}" for k, v in self._parameters().items() if repr(v) != repr(defaults[k].default)]
        return f"{type(self).__name__}({', '.join(changed)})"

    def fit(
        self,
        spaces: Mapping[str, Rows] | Sequence[Rows],
        *,
        weights: Rows | None = None,
        masks: Mapping[str, Tensor | NDArray[np.bool_]] | None = None,
        doubt_above: float = 0.05,
    ) -> Self:
        """Learn from (N, F_m) each, row n of every space one thing; a sequence is named "0", "1", ...

        weights: (N,), how much each row counts. masks: by name, (N,) bool, True where a space has the row; what stands in
        a missing row is not read. The rows are kept by reference for `add`. Warns (AlignmentWarning) where spaces fall into
        groups that agree with p above `doubt_above`, as shuffled rows do; 1 never warns. Errors as in `matched_rows`.
        """
        rows = matched_rows(spaces, weights, masks)
        self._learn(rows)
        self._settle(rows.names, self._as_counted(rows), keep_rows=True)
        self._doubt_order(rows, doubt_above)
        return self

    def transform(self, X: Rows, *, source: str) -> Tensor:
        """Rows of `source` (N, F) in the universe, (N, K).

        Raises NotFittedError, UnknownNameError, ShapeError for another width, NonFiniteError.
        """
        self._check_name(source)
        x_NF = self._checked(source, X, self.widths_[source])
        return self._to_universe(_working(x_NF), source).to(x_NF.dtype)

    def inverse_transform(self, U: Rows, *, target: str) -> Tensor:
        """Rows of the universe (N, K) in the space `target`, (N, F). Errors as in `transform`."""
        self._check_name(target)
        u_NK = self._checked("the universe", U, self.n_components_)
        return self._from_universe(_working(u_NK), target).to(u_NK.dtype)

    def translate(self, X: Rows, *, source: str, target: str) -> Tensor:
        """Rows of `source` in the space `target`. Errors as in `transform`."""
        self._check_name(source)
        self._check_name(target)
        x_NF = self._checked(source, X, self.widths_[source])
        return self._translate(_working(x_NF), source, target).to(x_NF.dtype)

    def add(
        self,
        name: str,
        X: Rows,
        *,
        against: Mapping[str, Rows] | None = None,
        permutations: int = 199,
        doubt_above: float = 0.05,
    ) -> Certificate:
        """Take in a newcomer at the price of one map; every earlier map stays as it is, to the bit.

        X: (N, F), its rows matched with those given to `fit`, or with `against`: rows of spaces already known, needed when
        the aligner was streamed or loaded and so has no rows. The certificate holds out a fifth of them; the final map
        is learned from all. Warns (AlignmentWarning) where its p value lies above `doubt_above`: as good as shuffled rows.

        Raises:
            InputError: a name already taken, no rows to match, fewer than 10 rows. RowMismatchError: other numbers of rows.
            Further as in `matched_rows`.
        """
        self._check_fitted()
        rows = self._rows_with(name, X, against)
        generator = torch.Generator().manual_seed(self.random_state)
        order_N = torch.randperm(len(rows), generator=generator).to(rows.spaces[0].device)
        n_held = min(int(HELD_OUT * len(rows)), LARGEST_CERTIFICATE)
        trial = copy.copy(self)
        trial._learn_newcomer(rows.take(order_N[n_held:]))
        trial._settle((*self.names_, name), rows, keep_rows=False)
        certificate = trial._certify(rows.take(order_N[:n_held]), permutations, generator)
        if permutations and certificate.p_value > doubt_above:
            warnings.warn(
                f"{name!r} agrees with the universe no better than shuffled rows do (p = {certificate.p_value:.2f} on "
                f"{certificate.n_held_out} held-out rows): are its rows in the order of the others?",
                AlignmentWarning,
                stacklevel=2,
            )
        self._learn_newcomer(rows)
        self._settle((*self.names_, name), rows, keep_rows=against is None)
        return certificate

    def refit(self) -> Self:
        """Learn all maps anew from everything seen, newcomers and streamed batches on a par with the first spaces."""
        if not hasattr(self, "names_"):
            raise NotFittedError(f"this {type(self).__name__} has seen no rows: call fit first")
        self._relearn()
        return self

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with a JSON header, whole or not at all; rows are not in it."""
        self._check_fitted()
        tensors, facts = self._state()
        facts = {"names": self.names_, "widths": self.widths_, "n_components": self.n_components_, **facts}
        write_state(path, type(self).__name__, tensors, {"parameters": self._parameters(), "facts": facts})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote, onto the CPU. Raises CheckpointError when it is damaged or of another kind."""
        tensors, header = read_state(path, cls.__name__)
        try:
            aligner = cls(**header["parameters"])
            facts = header["facts"]
            aligner.n_components_ = int(facts["n_components"])
            aligner.names_, aligner.widths_, aligner._rows = tuple(facts["names"]), dict(facts["widths"]), None
            aligner._restore(tensors, facts)
        except (KeyError, TypeError, InputError) as error:
            raise CheckpointError(f"{path} does not hold a {cls.__name__} of this version: {error!r}") from error
        return aligner

    @abc.abstractmethod
    def _learn(self, rows: MatchedRows) -> None:
        """Set the learned attributes and `n_components_`; those read before must be bound anew, not changed in place."""

    def _as_counted(self, rows: MatchedRows) -> MatchedRows:
        """Rows with the weights that `_learn` came to give them."""
        return rows

    @abc.abstractmethod
    def _learn_newcomer(self, rows: MatchedRows) -> None:
        """Learn the map of the last of `rows.names` beside the known others; bind anew, change nothing in place."""

    @abc.abstractmethod
    def _relearn(self) -> None: ...

    @abc.abstractmethod
    def _to_universe(self, x_NF: Tensor, source: str) -> Tensor: ...

    @abc.abstractmethod
    def _from_universe(self, u_NK: Tensor, target: str) -> Tensor: ...

    def _translate(self, x_NF: Tensor, source: str, target: str) -> Tensor:
        return self._from_universe(self._to_universe(x_NF, source), target)

    @abc.abstractmethod
    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and what JSON can hold, from which `_restore` makes the learned attributes."""

    @abc.abstractmethod
    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None: ...

    def _parameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def _settle(self, names: tuple[str, ...], rows: MatchedRows, *, keep_rows: bool) -> None:
        """Names and widths, once learned; `rows` tell the widths of all names that were not known before."""
        widths = {name: x_NF.shape[1] for name, x_NF in zip(rows.names, rows.spaces, strict=True)}
        self.widths_ = {name: widths[name] if name in widths else self.widths_[name] for name in names}
        self.names_, self._rows = names, rows if keep_rows else None

    def _doubt_order(self, rows: MatchedRows, doubt_above: float) -> None:
        generator = torch.Generator().manual_seed(self.random_state)
        order_N = torch.randperm(len(rows), generator=generator).to(rows.spaces[0].device)
        for n_rows in LOOKS:
            some = rows.take(order_N[:n_rows])
            p_MM = agreement_p_values(some.spaces, torch.stack([some.present(name) for name in rows.names], dim=1))
            first, *apart = agreeing_groups(p_MM, doubt_above)
            if not apart:
                return
        alone = [m for group in apart for m in group]
        warnings.warn(
            f"{_listed(rows.names, alone)} agree with {_listed(rows.names, first)} no better than shuffled rows do (p = "
            f"{float(p_MM[alone][:, first].min()):.2f} at best, {len(some)} rows): are the rows of all spaces in one order?",
            AlignmentWarning,
            stacklevel=3,
        )

    def _rows_with(self, name: str, X: Rows, against: Mapping[str, Rows] | None) -> MatchedRows:
        """Known rows and the newcomer's, matched; the newcomer last."""
        if name in self.names_:
            raise InputError(f"{name!r} is taken: expected a new name beside {', '.join(self.names_)}")
        x_NF = as_tensor(name, X)
        check_varies(name, x_NF)
        if against is not None:
            for known, rows_NF in against.items():
                self._check_name(known)
                self._checked(known, rows_NF, self.widths_[known])
            rows = matched_rows({**against, name: x_NF})
        elif self._rows is None:
            raise NotFittedError(
                "expected rows to match the newcomer with, but a streamed or loaded aligner keeps none: pass "
                "against={name: rows} of spaces it knows"
            )
        else:
            kept = self._rows
            if len(kept) != len(x_NF):
                raise RowMismatchError(
                    f"expected {len(kept)} rows of {name!r}, matched with those of `fit`, got {len(x_NF)}: match them, "
                    "or pass against={name: rows}"
                )
            scale_NM = kept.scale_NM
            if scale_NM is not None:  # a row's weight is that of the space that counts it most
                scale_NM = torch.cat([scale_NM, scale_NM.amax(dim=1, keepdim=True)], dim=1)
            rows = MatchedRows((*kept.names, name), (*kept.spaces, x_NF), scale_NM)
        if len(rows) < 10:
            raise InputError(f"expected at least 10 rows to certify a newcomer on, got {len(rows)}: match more")
        return rows

    def _certify(self, held: MatchedRows, permutations: int, generator: torch.Generator) -> Certificate:
        *known, newcomer = held.names
        units = {
            name: F.normalize(self.transform(x_NF, source=name).double(), dim=1) * held.present(name)[:, None]
            for name, x_NF in zip(held.names, held.spaces, strict=True)
        }
        consensus_NK = F.normalize(torch.stack([units[name] for name in known]).sum(dim=0), dim=1)
        cosine_NN = units[newcomer] @ consensus_NK.T
        own_N = cosine_NN.diagonal()
        others_NN = cosine_NN.clone().fill_diagonal_(-torch.inf)
        null = []
        for _ in range(permutations):
            order_N = torch.randperm(len(own_N), generator=generator).to(own_N.device)
            null.append(cosine_NN.gather(1, order_N[:, None]).mean())
        as_high = sum(int(value >= own_N.mean()) for value in null)
        rank1 = (own_N > others_NN.amax(dim=1)).double().mean()
        return Certificate(float(rank1), float(own_N.mean()), (1 + as_high) / (1 + permutations), len(own_N))

    def _checked(self, name: str, X: Rows, width: int) -> Tensor:
        x_NF = as_tensor(name, X)
        if x_NF.shape[1] != width:
            raise ShapeError(f"expected rows of {name} with width {width}, got {tuple(x_NF.shape)}: wrong space?")
        check_finite(name, x_NF)
        return x_NF

    def _check_fitted(self) -> None:
        if not (hasattr(self, "names_") and hasattr(self, "n_components_")):
            raise NotFittedError(f"this {type(self).__name__} has learned no maps: call fit first")

    def _check_name(self, name: str) -> None:
        self._check_fitted()
        if name not in self.names_:
            raise UnknownNameError("space", name, self.names_)


def _listed(names: tuple[str, ...], chosen: list[int]) -> str:
    return ", ".join(repr(names[m]) for m in chosen)


def _working(x_NF: Tensor) -> Tensor:
    return x_NF if x_NF.dtype == torch.float64 else x_NF.float()
