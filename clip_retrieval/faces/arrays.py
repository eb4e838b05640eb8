"""NumPy arrays with the methods of a tensor that programs written for OpenAI's `clip` call; no torch needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip_retrieval.encoder.tensors import is_torch_loaded, to_tensor
from clip_retrieval.tools.scores import softmax


class Sorted(NamedTuple):
    """Values in order, or the largest or smallest ones, and their places."""

    values: Array
    indices: Array


def reduction(name: str, places: str | None = None) -> Any:
    """Return NumPy's method of this name, which also takes torch's arguments.

    With `places`, the name of a second method, a reduction along a dimension gives both, as `max` of a tensor does,
    unless it has arguments that only NumPy knows (axis, keepdims, out, ...).
    """

    def reduce(self: Array, dim: int | None = None, *, keepdim: bool = False, **numpy: Any) -> Any:
        options = {"axis": dim, "keepdims": keepdim} | numpy
        values = wrap(getattr(np.ndarray, name)(self.numpy(), **options))
        if places is None or dim is None or numpy:
            return values
        return Sorted(values, wrap(getattr(np.ndarray, places)(self.numpy(), **options)))

    return reduce


class Array(np.ndarray[Any, Any]):
    """An array that torch's functions, such as torch.cat, take as a tensor on the CPU.

    `to` gives a tensor if torch is loaded, or if the device is not the CPU.
    """

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        _types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return function(*map(as_tensors, args), **{name: as_tensors(value) for name, value in (kwargs or {}).items()})

    def to(self, *where: Any, **options: Any) -> Any:
        if not is_torch_loaded() and where == ("cpu",) and not options:
            return self
        return to_tensor(self).to(*where, **options)

    def cuda(self, device: Any = "cuda") -> Any:
        return self.to(device)

    def cpu(self) -> Array:
        return self

    def detach(self) -> Array:
        return self

    def float(self) -> Array:
        return wrap(self.astype(np.float32, copy=False))

    def numpy(self) -> NDArray[Any]:
        return self.view(np.ndarray)

    def unsqueeze(self, dim: int) -> Array:
        return wrap(np.expand_dims(self, dim))

    def t(self) -> Array:
        return wrap(self.T)

    def exp(self) -> Array:
        return wrap(np.exp(self))

    def norm(self, *, dim: int | None = None, keepdim: bool = False) -> Array:
        return wrap(np.linalg.norm(self, axis=dim, keepdims=keepdim))

    def half(self) -> Array:
        return wrap(self.astype(np.float16, copy=False))

    def permute(self, *dims: int) -> Array:
        return wrap(np.transpose(self, dims[0] if isinstance(dims[0], Sequence) else dims))

    mean = reduction("mean")
    sum = reduction("sum")
    argmax = reduction("argmax")
    argmin = reduction("argmin")
    max = reduction("max", places="argmax")
    min = reduction("min", places="argmin")

    def sort(self, dim: int | None = None, *, descending: bool | None = None, **numpy: Any) -> Any:  # type: ignore[override]
        """Return the values in order and their places; without arguments of torch, sort in place as NumPy expects."""
        if dim is None and descending is None:
            return np.ndarray.sort(self, **numpy)
        axis = -1 if dim is None else dim
        places = np.argsort(self, axis=axis, kind="stable")
        places = np.flip(places, axis=axis) if descending else places
        return Sorted(wrap(np.take_along_axis(self, places, axis=axis)), wrap(places))

    def softmax(self, dim: int) -> Array:
        return wrap(softmax(self, axis=dim))

    def topk(self, k: int, dim: int = -1) -> Sorted:
        order = np.flip(np.argsort(self, axis=dim, kind="stable"), axis=dim)
        places = np.take(order, np.arange(k), axis=dim)
        return Sorted(wrap(np.take_along_axis(self, places, axis=dim)), wrap(places))


def wrap(array: Any) -> Array:
    return np.asarray(array).view(Array)


def as_tensors(value: Any) -> Any:
    """Return what is given to one of torch's functions, with every Array in it as a tensor."""
    if isinstance(value, Array):
        return to_tensor(value)
    if isinstance(value, list | tuple):
        return type(value)(map(as_tensors, value))
    return value
