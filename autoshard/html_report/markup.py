"""HTML as a tree, so that whatever a user named is escaped by construction.

Text becomes a text node and is escaped when the tree is written; nothing here takes a string for
markup. Only `<script>` and `<style>`, whose content is ours, are written as they are (the rule of
HTML, which `xml.etree` follows).
"""

import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias
from xml.etree import ElementTree

Node: TypeAlias = ElementTree.Element | str

# HTML has no way to write these, and a browser would show a file with them as damaged.
_UNWRITABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


# A cell of more characters wraps; shorter ones stay on one line.
_LONG = 36


def clean(text: str) -> str:
    """The text with characters that HTML cannot hold replaced by U+FFFD."""
    return _UNWRITABLE.sub("�", text)


def element(tag: str, *children: Node | None, **attributes: str | None) -> ElementTree.Element:
    """An element; a child or attribute that is None is left out.

    An underscore in an attribute's name stands for a hyphen, a final one only keeps off Python's
    keywords: `class_="wide"`, `aria_label="..."`.
    """
    node = ElementTree.Element(tag)
    for name, value in attributes.items():
        if value is not None:
            node.set(name.rstrip("_").replace("_", "-"), clean(value))
    last: ElementTree.Element | None = None
    for child in children:
        if child is None:
            continue
        if isinstance(child, ElementTree.Element):
            node.append(child)
            last = child
        elif last is None:
            node.text = (node.text or "") + clean(child)
        else:
            last.tail = (last.tail or "") + clean(child)
    return node


def verbatim(tag: str, content: str, **attributes: str) -> ElementTree.Element:
    """A `<script>` or `<style>` whose content, ours, is written as it is."""
    node = element(tag, **attributes)
    node.text = content
    return node


def write(root: ElementTree.Element) -> str:
    """A whole document as text."""
    body = ElementTree.tostring(root, encoding="unicode", method="html")
    return f"<!DOCTYPE html>\n{body}\n"


def paragraph(*children: Node | None, class_: str | None = None) -> ElementTree.Element:
    return element("p", *children, class_=class_)


def bullets(items: Iterable[Node]) -> ElementTree.Element:
    """An unordered list."""
    return element("ul", *(element("li", item) for item in items))


def tag(basis: str) -> ElementTree.Element:
    """The small label that says where a figure comes from."""
    return element("span", basis, class_=f"basis {basis}")


def code(text: str) -> ElementTree.Element:
    return element("code", text)


def table(
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Node]],
    numbers: Iterable[int] = (),
    class_: str | None = None,
) -> ElementTree.Element:
    """A table that scrolls within its own frame.

    Args:
      caption: what it shows, read by screen readers as its name.
      columns: their headings.
      rows: cells; the first of a row is its heading.
      numbers: positions of the columns that hold numbers.
      class_: CSS class of the frame.
    """
    right = frozenset(numbers)

    def cell(position: int, content: Node) -> ElementTree.Element:
        name, scope = ("td", None) if position else ("th", "row")
        class_ = "number" if position in right else None
        text = content if isinstance(content, str) else "".join(content.itertext())
        return element(name, content, class_="long" if len(text) > _LONG else class_, scope=scope)

    head = (
        element("th", text, scope="col", class_="number" if i in right else None)
        for i, text in enumerate(columns)
    )
    body = (element("tr", *(cell(i, node) for i, node in enumerate(row))) for row in rows)
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", *head)),
            element("tbody", *body),
        ),
        class_="scroll" if class_ is None else f"scroll {class_}",
        role="region",
        tabindex="0",
        aria_label=caption,
    )
