"""Damages HLO text in the ways that files, terminals and other compilers' versions do."""

import random
import re
from collections.abc import Callable

HUGE = (
    "0", "1", "7", "4096", "65536", "99999999", "2147483648", "4611686018427387904",
    "9223372036854775807", "99999999999999999999", "1" * 40, "9" * 5000, "-1", "?", "<=8",
)  # fmt: skip
_TOKEN = re.compile(r"[A-Za-z_][\w.-]*|\d+|\s+|[^\w\s]")
_NUMBER = re.compile(r"\d+")
_BRACKET = re.compile(r'[(){}\[\]"]')
_NAME = re.compile(r"%[\w.-]+")
_ODD = "²٣\u2028\x00\x0b\r\t\"\\'{}[]()=,%/*"
_MOST_TEXT = 4_000_000

Mutation = Callable[[random.Random, str, str], str]


def _span(rng: random.Random, pattern: re.Pattern[str], text: str) -> tuple[int, int] | None:
    """Where one match stands, near a random position."""
    start = rng.randrange(len(text) + 1)
    match = pattern.search(text, start) or pattern.search(text)
    return None if match is None else match.span()


def flip_character(rng: random.Random, text: str, other: str) -> str:
    at = rng.randrange(len(text) + 1)
    char = rng.choice(_ODD) if rng.random() < 0.5 else chr(rng.randrange(1, 256))
    return text[:at] + char + text[at + 1 :]


def change_number(rng: random.Random, text: str, other: str) -> str:
    span = _span(rng, _NUMBER, text)
    return text if span is None else text[: span[0]] + rng.choice(HUGE) + text[span[1] :]


def delete_token(rng: random.Random, text: str, other: str) -> str:
    span = _span(rng, _TOKEN, text)
    return text if span is None else text[: span[0]] + text[span[1] :]


def double_token(rng: random.Random, text: str, other: str) -> str:
    span = _span(rng, _TOKEN, text)
    if span is None:
        return text
    token = text[span[0] : span[1]]
    return text[: span[1]] + token * rng.choice((1, 1, 2, 50)) + text[span[1] :]


def swap_tokens(rng: random.Random, text: str, other: str) -> str:
    first, second = _span(rng, _TOKEN, text), _span(rng, _TOKEN, text)
    if first is None or second is None or first == second:
        return text
    (a, b), (c, d) = sorted((first, second))
    return text[:a] + text[c:d] + text[b:c] + text[a:b] + text[d:]


def remove_bracket(rng: random.Random, text: str, other: str) -> str:
    span = _span(rng, _BRACKET, text)
    return text if span is None else text[: span[0]] + text[span[1] :]


def rename(rng: random.Random, text: str, other: str) -> str:
    """One name replaced by another of the same text: circles of operands and of calls."""
    first, second = _span(rng, _NAME, text), _span(rng, _NAME, text)
    if first is None or second is None:
        return text
    name = text[second[0] : second[1]]
    return text[: first[0]] + name + text[first[1] :]


def rename_everywhere(rng: random.Random, text: str, other: str) -> str:
    first, second = _span(rng, _NAME, text), _span(rng, _NAME, text)
    if first is None or second is None:
        return text
    return text.replace(text[slice(*first)], text[slice(*second)])


def shuffle_lines(rng: random.Random, text: str, other: str) -> str:
    lines = text.split("\n")
    start = rng.randrange(len(lines))
    end = start + rng.randrange(2, 12)
    part = lines[start:end]
    rng.shuffle(part)
    return "\n".join([*lines[:start], *part, *lines[end:]])


def repeat_lines(rng: random.Random, text: str, other: str) -> str:
    lines = text.split("\n")
    start = rng.randrange(len(lines))
    end = start + rng.randrange(1, 40)
    return "\n".join([*lines[:end], *lines[start:end] * rng.choice((1, 1, 5)), *lines[end:]])


def delete_lines(rng: random.Random, text: str, other: str) -> str:
    lines = text.split("\n")
    start = rng.randrange(len(lines))
    return "\n".join([*lines[:start], *lines[start + rng.randrange(1, 20) :]])


def join_lines(rng: random.Random, text: str, other: str) -> str:
    at = text.find("\n", rng.randrange(len(text) + 1))
    return text if at < 0 else text[:at] + rng.choice(("", " ")) + text[at + 1 :]


def cut_off(rng: random.Random, text: str, other: str) -> str:
    return text[: rng.randrange(len(text) + 1)]


def cut_head(rng: random.Random, text: str, other: str) -> str:
    return text[rng.randrange(len(text) + 1) :]


def splice(rng: random.Random, text: str, other: str) -> str:
    return text[: rng.randrange(len(text) + 1)] + other[rng.randrange(len(other) + 1) :]


def append(rng: random.Random, text: str, other: str) -> str:
    return text + "\n" + other


MUTATIONS: tuple[Mutation, ...] = (
    flip_character, change_number, delete_token, double_token, swap_tokens, remove_bracket,
    rename, rename_everywhere, shuffle_lines, repeat_lines, delete_lines, join_lines,
    cut_off, cut_head, splice, append,
)  # fmt: skip
# What leaves most of a text as it is gets further into the reader.
_WEIGHTS = tuple(1 if m in (cut_off, cut_head, splice, append) else 4 for m in MUTATIONS)


def mutate(rng: random.Random, text: str, other: str) -> tuple[str, tuple[str, ...]]:
    """One to eight mutations; the text, and what was done to it.

    Args:
      rng: decides.
      text: to damage.
      other: a second text, for splices.
    """
    chosen = rng.choices(MUTATIONS, _WEIGHTS, k=rng.choice((1, 1, 2, 3, 5, 8)))
    for mutation in chosen:
        text = mutation(rng, text, other)[:_MOST_TEXT]
    return text, tuple(mutation.__name__ for mutation in chosen)
