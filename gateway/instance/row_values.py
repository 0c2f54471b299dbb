"""Symbolic sizes, numbers and tensors, in which the axis that holds the rows of the batch can be followed."""

import dataclasses
from collections.abc import Iterable
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Doubt:
    """Why a value may depend on several rows; `mixed` where it certainly does."""

    mixed: bool
    reason: str


def worst(*doubts: Doubt | None) -> Doubt | None:
    """The first doubt that is certain, else the first one."""
    found = None
    for doubt in doubts:
        if doubt is not None:
            if doubt.mixed:
                return doubt
            found = found or doubt
    return found


def mixed(reason: str) -> Doubt:
    """The value certainly depends on several rows."""
    return Doubt(mixed=True, reason=reason)


def unclear(reason: str) -> Doubt:
    """Nothing is known of the value."""
    return Doubt(mixed=False, reason=reason)


class Symbol:
    """A size that is only known at run time; `ROWS` is the number of rows, all others do not depend on it.

    `wide` marks one that stands for several sizes, `left` the number of groups that a reshape left to each row, which
    is 1 in most models.
    """

    __slots__ = ("doubt", "left", "wide")

    def __init__(self, doubt: Doubt | None = None, *, wide: bool = False, left: bool = False) -> None:
        self.doubt = doubt
        self.wide = wide
        self.left = left


ROWS = Symbol()
Factor = int | Symbol
Dim = tuple[Factor, ...]
"""The size of an axis as factors, the outer one first: `(ROWS, 8)` has eight entries for each row, `()` is 1."""
Dims = tuple[Dim, ...]


class Size:
    """A whole number that is a product of symbols and an integer."""

    __slots__ = ("factor", "symbols")

    def __init__(self, factor: int, symbols: Iterable[Symbol]) -> None:
        self.factor = factor
        self.symbols = tuple(sorted(symbols, key=id))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and other.factor == self.factor and other.symbols == self.symbols

    def __hash__(self) -> int:
        return hash((self.factor, self.symbols))

    @property
    def counts_rows(self) -> bool:
        """Whether the number of rows is a factor."""
        return ROWS in self.symbols


class Number:
    """A number that is not known; it depends on no row unless it has a doubt."""

    __slots__ = ("doubt",)

    def __init__(self, doubt: Doubt | None = None) -> None:
        self.doubt = doubt

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and other.doubt == self.doubt

    def __hash__(self) -> int:
        return hash(self.doubt)


class Store:
    """The memory that tensors share: a write through one of them is seen by all."""

    __slots__ = ("_doubt", "_next", "_written")

    def __init__(self) -> None:
        self._next: Store | None = None
        self._doubt: Doubt | None = None
        self._written = False

    def root(self) -> "Store":
        """The store that stands for all it was joined with."""
        store = self
        while store._next is not None:
            store = store._next
        return store

    def join(self, other: "Store") -> "Store":
        """One store for what may be either."""
        mine, others = self.root(), other.root()
        if mine is not others:
            others._next = mine  # noqa: SLF001
            mine.write(others._doubt, written=others._written)  # noqa: SLF001
        return mine

    def write(self, doubt: Doubt | None, *, written: bool = True) -> None:
        """Note that a value with this doubt was written."""
        root = self.root()
        root._doubt = worst(root._doubt, doubt)  # noqa: SLF001
        root._written = root._written or written  # noqa: SLF001

    @property
    def doubt(self) -> Doubt | None:
        """The worst of what was written."""
        return self.root()._doubt  # noqa: SLF001

    @property
    def written(self) -> bool:
        """Whether anything was written after the tensor was made."""
        return self.root()._written  # noqa: SLF001


@dataclasses.dataclass(slots=True, eq=False)
class Tensor:
    """A tensor in which an entry depends at most on the row that its place on the axis of `ROWS` names.

    Without ROWS in `dims` and without a doubt it does not depend on the batch. `dims` is None where not even the
    number of axes is known. `content` holds the numbers of a tensor of sizes. `position` says that each entry is the
    number of its own row, which is a doubt too for all but those who index with it.
    """

    dims: Dims | None
    doubt: Doubt | None = None
    content: Any = None
    position: bool = False
    boolean: bool | None = None
    store: Store = dataclasses.field(default_factory=Store)

    @property
    def rank(self) -> int | None:
        """How many axes there are, if that is known."""
        return None if self.dims is None else len(self.dims)

    @property
    def varies(self) -> bool:
        """Whether it may depend on the batch."""
        return self.doubt is not None or rows_axis(self.dims) is not None

    @property
    def constant(self) -> bool:
        """Whether it does not depend on the batch."""
        return not self.varies

    def current(self) -> "Tensor":
        """The tensor as it is after what was written into its memory."""
        if not self.store.written:
            return self
        return dataclasses.replace(
            self, doubt=worst(self.doubt, self.store.doubt), content=None, position=False, store=self.store
        )

    def doubted(self, doubt: Doubt | None) -> "Tensor":
        """The tensor with a further doubt."""
        return self if doubt is None else dataclasses.replace(self, doubt=worst(self.doubt, doubt), store=self.store)

    def like(self, other: "Tensor") -> bool:
        """Whether two tensors are the same as far as the analysis can tell them apart."""
        return (self.dims, self.doubt, self.content, self.position, self.boolean) == (
            other.dims,
            other.doubt,
            other.content,
            other.position,
            other.boolean,
        )


def rows_axis(dims: Dims | None) -> int | None:
    """The first axis that holds the rows."""
    if dims is None:
        return None
    for axis, dim in enumerate(dims):
        if ROWS in dim:
            return axis
    return None


def one_entry_a_row(dim: Dim) -> bool:
    """Whether an axis has one entry for each row, as far as a reshape does not leave that open."""
    return dim[:1] == (ROWS,) and all(isinstance(factor, Symbol) and factor.left for factor in dim[1:])


def fresh(count: int = 1) -> Dims:
    """Axes of sizes that are not known and do not depend on the rows."""
    return tuple((Symbol(),) for _ in range(count))


def size_of(dim: Dim) -> Any:
    """The size of an axis as a number."""
    for factor in dim:
        if isinstance(factor, Symbol) and factor.doubt is not None:
            return Number(factor.doubt)
    return product(dim)


def product(factors: Iterable[Any]) -> Any:
    """The product of integers, symbols and sizes: an integer, a Size, or a Number where a factor is not known."""
    number, symbols, doubt, opaque = 1, [], None, False
    for factor in factors:
        if isinstance(factor, Symbol):
            symbols.append(factor)
        elif isinstance(factor, Size):
            number *= factor.factor
            symbols += factor.symbols
        elif isinstance(factor, int):
            number *= factor
        else:
            opaque, doubt = True, worst(doubt, doubt_of(factor))
    if opaque:
        if ROWS in symbols:
            doubt = worst(doubt, unclear("computes with the number of rows"))
        return Number(doubt)
    return Size(number, symbols) if symbols and number else number


def quotient(whole: Any, part: Any) -> Any:
    """The exact quotient of two sizes, None where it is not a product of what is known."""
    if isinstance(whole, int):
        whole = Size(whole, ())
    if isinstance(part, int):
        part = Size(part, ())
    if not isinstance(whole, Size) or not isinstance(part, Size) or not part.factor or whole.factor % part.factor:
        return None
    symbols = list(whole.symbols)
    for symbol in part.symbols:
        if symbol not in symbols:
            return None
        symbols.remove(symbol)
    return product((whole.factor // part.factor, *symbols))


def dim_of(size: Any) -> Dim:
    """An axis of this size."""
    if isinstance(size, bool) or not isinstance(size, int | Size):
        return (Symbol(doubt_of(size)),)
    if isinstance(size, int):
        return () if size == 1 else (size,)
    numbers = () if size.factor == 1 else (size.factor,)
    return (
        *(symbol for symbol in size.symbols if symbol is ROWS),
        *numbers,
        *(s for s in size.symbols if s is not ROWS),
    )


def doubt_of(value: Any) -> Doubt | None:
    """The doubt of a value of any kind, its elements included."""
    if isinstance(value, Tensor | Number):
        return value.doubt
    if isinstance(value, list | tuple):
        return worst(*map(doubt_of, value))
    return None


def counting(op: str, number: Any) -> Doubt | None:
    """The doubt that comes with a number that an operator computes with."""
    if isinstance(number, Size) and number.counts_rows:
        return mixed(f"{op} computes with the number of rows")
    return doubt_of(number)


def join_dim(left: Dim, right: Dim) -> Dim | None:
    """An axis that may be either; None where one holds the rows in another way."""
    if left == right:
        return left
    if ROWS in left or ROWS in right:
        return None
    for dim in (left, right):
        if len(dim) == 1 and isinstance(dim[0], Symbol) and dim[0].wide:
            return dim
    return (Symbol(wide=True),)


def join_tensors(left: Tensor, right: Tensor) -> Tensor:
    """A tensor that may be either."""
    if left is right:
        return left
    doubt, store = worst(left.doubt, right.doubt), left.store.join(right.store)
    same = left.content is not None and left.content == right.content
    content = left.content if same else None
    boolean = left.boolean if left.boolean == right.boolean else None
    dims: Dims | None = None
    if left.dims is not None and right.dims is not None and len(left.dims) == len(right.dims):
        pairs = [join_dim(mine, other) for mine, other in zip(left.dims, right.dims, strict=True)]
        if None not in pairs:
            dims = tuple(pair for pair in pairs if pair is not None)
    if dims is None and (left.varies or right.varies):
        doubt = worst(doubt, unclear("has branches whose results differ in shape"))
    return Tensor(dims, doubt, content, left.position and right.position, boolean, store)
