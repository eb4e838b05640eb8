"""How an index is searched, per call: settings such as nprobe=64,efSearch=128, and faiss's parameters for them.

Nothing here changes an index: searches with different settings may share one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import faiss

from clip_retrieval.errors import ConfigError, QueryError

QUANTIZER = "quantizer_"  # prefix of settings of an IVF index's coarse quantizer
SETTINGS: dict[str, type[int] | type[float]] = {
    "nprobe": int,  # lists of an IVF index to scan
    "max_codes": int,  # most rows to scan in these lists; 0: all
    "ht": int,  # polysemous filter of product quantizers: largest Hamming distance; all bits or more: off
    "efSearch": int,  # size of HNSW's candidate queue
    "k_factor_rf": float,  # candidates to refine, in multiples of k
    "qb": int,  # bits of the query in RaBitQ; 0: fp32
}
ZERO_MEANS_OFF = ("max_codes", "ht", "qb")


class Settings(Mapping[str, float]):
    """Values of settings by name; immutable and hashable, so threads and caches may share them."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, float] | None = None) -> None:
        self._values = {name: check_setting(name, value) for name, value in sorted((values or {}).items())}

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __or__(self, others: Mapping[str, float]) -> Settings:
        return Settings({**self._values, **others})

    def __repr__(self) -> str:
        return f"Settings({format_settings(self)})"


def check_setting(name: str, value: float) -> float:
    """Return the value as the setting's type; raises ConfigError that names what is wrong."""
    kind = SETTINGS.get(name.removeprefix(QUANTIZER))
    if kind is None:
        raise ConfigError(f"{name!r} is not a search setting; there are {', '.join(SETTINGS)} and {QUANTIZER}efSearch")
    least = 0 if can_be_off(name) else 1
    if not math.isfinite(value) or value < least or value != kind(value):
        raise ConfigError(
            f"{name} takes {'a whole number' if kind is int else 'a number'} from {least} on, not {value}"
        )
    return kind(value)


def can_be_off(name: str) -> bool:
    """Say whether 0 switches a setting off, which gives the most thorough search."""
    return name.removeprefix(QUANTIZER) in ZERO_MEANS_OFF


def parse_settings(text: str) -> Settings:
    """Return the settings in a string of faiss or autofaiss, such as nprobe=64,quantizer_efSearch=128,ht=2048."""
    values: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        try:
            values[name.strip()] = float(value)
        except ValueError as error:
            raise ConfigError(f"{text!r} are not search settings; write nprobe=64,efSearch=128") from error
    return Settings(values)


def format_settings(settings: Mapping[str, float]) -> str:
    """Return the string that `parse_settings` and faiss.ParameterSpace read."""
    return ",".join(f"{name}={value:.12g}" for name, value in settings.items())


def settings_of(index: Any) -> Settings:
    """Return all settings of this index with their tuned values; only these names may be used in a search."""
    return Settings(read_settings(faiss.downcast_index(index)))


def widest(of_parts: Sequence[Settings]) -> Settings:
    """Return for each setting its slowest value, so no part is searched less well than alone."""
    values: dict[str, list[float]] = {}
    for settings in of_parts:
        for name, value in settings.items():
            values.setdefault(name, []).append(value)
    return Settings({name: 0 if can_be_off(name) and 0 in found else max(found) for name, found in values.items()})


def read_settings(index: Any) -> dict[str, float]:
    if isinstance(index, faiss.IndexPreTransform | faiss.IndexIDMap):
        return read_settings(faiss.downcast_index(index.index))
    if isinstance(index, faiss.IndexRefine):
        return {"k_factor_rf": max(1.0, index.k_factor), **read_settings(faiss.downcast_index(index.base_index))}
    if isinstance(index, faiss.IndexHNSW):
        return {"efSearch": index.hnsw.efSearch}
    if isinstance(index, faiss.IndexIVF):
        quantizer = read_settings(faiss.downcast_index(index.quantizer))
        values = {"nprobe": index.nprobe, **{QUANTIZER + name: value for name, value in quantizer.items()}}
        if isinstance(index, faiss.IndexIVFPQ):
            values["ht"] = index.polysemous_ht
        if isinstance(index, faiss.IndexIVFRaBitQ):
            values["qb"] = index.qb
        return values if isinstance(index, faiss.IndexIVFFastScan) else {**values, "max_codes": index.max_codes}
    if isinstance(index, faiss.IndexPQ):
        return {"ht": index.polysemous_ht if index.search_type == faiss.IndexPQ.ST_polysemous else 0}
    return {"qb": index.qb} if isinstance(index, faiss.IndexRaBitQ) else {}


def set_up(index: Any, settings: Mapping[str, float]) -> None:
    """Set the polysemous filter of an IVF-PQ, which cannot be chosen per search, once before the first search."""
    index = faiss.downcast_index(index)
    for name in ("index", "base_index"):
        if hasattr(index, name):
            set_up(getattr(index, name), settings)
    if isinstance(index, faiss.IndexIVFPQ) and "ht" in settings:
        index.polysemous_ht = filter_distance(index.pq, settings)


def takes_selector(index: Any) -> bool:
    """Say whether faiss leaves rows out of a search in this index by itself.

    Tested for each type: fast scan without lists and PQ refuse, RaBitQ's fast scan ignores the selector, additive
    quantizers end the process. For these, a search must ask for more rows and drop some.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return takes_selector(index.index)
    if isinstance(index, faiss.IndexRefine):
        return takes_selector(index.base_index)
    if isinstance(index, faiss.IndexIDMap):  # its ids are translated in the outermost parameters only
        inner = faiss.downcast_index(index.index)
        return takes_selector(inner) and not isinstance(inner, faiss.IndexPreTransform | faiss.IndexRefine)
    return isinstance(index, TAKE_SELECTORS)


TAKE_SELECTORS = tuple(
    getattr(faiss, name)
    for name in (
        *("IndexFlat", "IndexScalarQuantizer", "IndexRaBitQ", "IndexHNSW"),
        *("IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ", "IndexIVFPQFastScan", "IndexIVFRaBitQ"),
    )
    if hasattr(faiss, name)
)


def search_parameters(index: Any, settings: Mapping[str, float], selector: Any = None) -> Any:
    """Return faiss's parameters for one search: the settings, else the tuned values of the index, and the selector.

    Make new ones for each search: faiss writes into them (the selector, below an id map). They keep alive what they
    point to. A setting that the index does not know changes nothing. None if the index takes no parameters; a
    selector is left out if `takes_selector` says no.
    """
    index = faiss.downcast_index(index)
    wanted = {**read_settings(index), **settings}
    return make_parameters(index, with_quantizer(index, wanted, settings), selector if takes_selector(index) else None)


def with_quantizer(index: Any, wanted: dict[str, float], given: Mapping[str, float]) -> dict[str, float]:
    """Apply efSearch to the coarse quantizer if the index has no other graph, as faiss does."""
    name = f"{QUANTIZER}efSearch"
    if name in read_settings(index) and name not in given and "efSearch" in given:
        return {**wanted, name: given["efSearch"]}
    return wanted


def make_parameters(index: Any, settings: Mapping[str, float], selector: Any) -> Any:
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIDMap):
        return make_parameters(index.index, settings, selector)
    if isinstance(index, faiss.IndexPreTransform):
        inner = make_parameters(index.index, settings, selector)
        return inner and faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        base = make_parameters(index.base_index, settings, selector)
        given = {"k_factor": settings["k_factor_rf"], **({"base_index_params": base} if base else {})}
        return faiss.IndexRefineSearchParameters(**given)
    chosen = {"sel": selector} if selector is not None else {}
    for kind, make in MAKERS:
        if isinstance(index, kind):
            return make(index, settings, chosen)
    return faiss.SearchParameters(**chosen) if chosen else None


def make_ivf(index: Any, settings: Mapping[str, float], chosen: dict[str, Any]) -> Any:
    below = {name.removeprefix(QUANTIZER): value for name, value in settings.items() if name.startswith(QUANTIZER)}
    quantizer = make_parameters(index.quantizer, below, None)
    chosen["nprobe"] = min(int(settings["nprobe"]), index.nlist)
    if not isinstance(index, faiss.IndexIVFFastScan):  # fast scan refuses a limit
        chosen["max_codes"] = int(settings["max_codes"])
    if quantizer:
        chosen["quantizer_params"] = quantizer
    if isinstance(index, faiss.IndexIVFPQ):
        ht, own = filter_distance(index.pq, settings), index.polysemous_ht
        if ht != own:  # faiss ignores its own field for this
            raise QueryError(f"ht={ht} cannot be chosen for one search: the index is set to ht={own}")
        table = index.scan_table_threshold
        return faiss.IVFPQSearchParameters(**chosen, polysemous_ht=ht, scan_table_threshold=table)
    if isinstance(index, faiss.IndexIVFRaBitQ):
        return faiss.IVFRaBitQSearchParameters(**chosen, qb=int(settings["qb"]))
    return faiss.SearchParametersIVF(**chosen)


def make_hnsw(index: Any, settings: Mapping[str, float], chosen: dict[str, Any]) -> Any:
    graph = index.hnsw
    return faiss.SearchParametersHNSW(
        **chosen,
        efSearch=int(settings["efSearch"]),
        check_relative_distance=graph.check_relative_distance,
        bounded_queue=graph.search_bounded_queue,
    )


def make_pq(index: Any, settings: Mapping[str, float], chosen: dict[str, Any]) -> Any:
    ht = filter_distance(index.pq, settings)
    kind = faiss.IndexPQ.ST_polysemous if ht else faiss.IndexPQ.ST_PQ
    return faiss.SearchParametersPQ(**chosen, search_type=kind, polysemous_ht=ht)


def make_rabitq(index: Any, settings: Mapping[str, float], chosen: dict[str, Any]) -> Any:  # noqa: ARG001 -- one shape
    return faiss.RaBitQSearchParameters(**chosen, qb=int(settings["qb"]))


def filter_distance(pq: Any, settings: Mapping[str, float]) -> int:
    """Return the Hamming distance that the polysemous filter lets pass; 0, off, if that is every distance."""
    return int(settings["ht"]) if settings["ht"] < pq.code_size * 8 else 0


MAKERS: tuple[tuple[Any, Callable[[Any, Mapping[str, float], dict[str, Any]], Any]], ...] = (
    (faiss.IndexIVF, make_ivf),
    (faiss.IndexHNSW, make_hnsw),
    (faiss.IndexPQ, make_pq),
    (faiss.IndexRaBitQ, make_rabitq),
)
