"""A union-find over dimension atoms that can split.

A dimension is a product of atoms, major to minor; a dimension of size 1 is the empty product. Two
dimensions are unified by walking both products: equal atoms are merged, a larger one is split where
the smaller one ends, everywhere that it occurs at once. What cannot be refined (12 = 4 x 3 against
3 x 4) is left unrelated: nobody will assume that a sharding passes.
"""

import math
from collections.abc import Iterable

Dim = tuple[int, ...]


class Atoms:
    """The mutable store used while a graph is analysed."""

    def __init__(self) -> None:
        self._size: list[int] = []
        self._parent: list[int] = []
        self._children: list[Dim] = []

    def new(self, size: int) -> Dim:
        """A fresh dimension of `size`."""
        if size == 1:
            return ()
        self._size.append(size)
        self._parent.append(len(self._parent))
        self._children.append(())
        return (len(self._size) - 1,)

    def size(self, atom: int) -> int:
        """The size of an atom."""
        return self._size[self.find(atom)]

    def find(self, atom: int) -> int:
        """The representative of an atom's class."""
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom

    def expand(self, dim: Iterable[int]) -> Dim:
        """A dimension in terms of today's unsplit representatives."""
        result: list[int] = []
        stack = list(dim)[::-1]
        while stack:
            root = self.find(stack.pop())
            children = self._children[root]
            if children:
                stack.extend(children[::-1])
            else:
                result.append(root)
        return tuple(result)

    def unify(self, first: Iterable[int], second: Iterable[int]) -> bool:
        """Make two dimensions one. Returns False if a coprime rest had to be left unrelated."""
        left, right = list(self.expand(first))[::-1], list(self.expand(second))[::-1]
        while left and right:
            a, b = self._pop(left), self._pop(right)
            if a == b:
                continue
            size_a, size_b = self._size[a], self._size[b]
            if size_a == size_b:
                self._parent[b] = a
                continue
            common = math.gcd(size_a, size_b)
            if common == 1:
                return False
            for atom, size, stack in ((a, size_a, left), (b, size_b, right)):
                if size == common:
                    stack.append(atom)
                else:
                    stack.extend(self._split(atom, common)[::-1])
        return not left and not right

    def _pop(self, stack: list[int]) -> int:
        """The next unsplit representative; atoms may have been split since they were stacked."""
        while True:
            root = self.find(stack.pop())
            children = self._children[root]
            if not children:
                return root
            stack.extend(children[::-1])

    def _split(self, atom: int, major: int) -> Dim:
        children = self.new(major) + self.new(self._size[atom] // major)
        self._children[atom] = children
        return children
