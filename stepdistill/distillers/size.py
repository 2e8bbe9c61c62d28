"""How long a method is: the lines of its file that hold code."""

from __future__ import annotations

import ast
import io
import tokenize

LAYOUT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip


def lines_of_code(source: str) -> int:
    """Lines that hold code; blank lines, comments and docstrings do not count.

    >>> lines_of_code('''\"""About.\"""
    ...
    ... x = 1  # one
    ... def f():
    ...     \"""Says.\"""
    ...     return x
    ... ''')
    3
    """
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {
        line
        for token in tokens
        if token.type not in LAYOUT
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(lines - docstring_lines(source))


def docstring_lines(source: str) -> set[int]:
    """The lines of all docstrings, of attributes too: strings that stand alone."""
    alone = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    return {line for node in alone for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
