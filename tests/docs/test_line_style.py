"""Lines of product code that say two things: counted for every 10,000 tokens, and never more than
today.

Lower a bound when the code has fewer. Tokens are those of Python's tokenizer without layout,
comments and docstrings.
"""

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PRODUCT = ("cluster", "serving", "tailorbird", "training", "tuning")
CHARACTERS_PER_LINE = 41.5
PER_10_000_TOKENS = {
    "paired assignments": 0.7,
    "conditional expressions": 12.4,
    "nested comprehensions": 0.6,
}
LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def is_text(node: ast.AST) -> bool:
    """Tell if a statement is a string, such as a docstring."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def num_tokens(source: str, *, tree: ast.AST) -> int:
    texts = {node.lineno for node in ast.walk(tree) if is_text(node) and isinstance(node, ast.Expr)}
    return sum(
        token.type not in LAYOUT and not (token.type == tokenize.STRING and token.start[0] in texts)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
    )


def is_pair(node: ast.AST) -> bool:
    """Tell if a statement assigns several values to several names. A swap is not counted."""
    if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Tuple):
        return False
    if isinstance(node.value, COMPREHENSIONS):
        return True
    if not isinstance(node.value, ast.Tuple):
        return False
    targets = {ast.unparse(target) for target in node.targets[0].elts}
    return targets.isdisjoint(ast.unparse(value) for value in node.value.elts)


def is_nested(node: ast.AST) -> bool:
    if not isinstance(node, COMPREHENSIONS):
        return False
    inner = [child for child in ast.walk(node) if isinstance(child, COMPREHENSIONS)]
    return len(inner) > 1 or len(node.generators) > 1


def faults(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if is_pair(node):
            yield "paired assignments"
        if isinstance(node, ast.IfExp):
            yield "conditional expressions"
        if is_nested(node):
            yield "nested comprehensions"


def test_lines_of_the_product_do_not_become_denser() -> None:
    lines: list[str] = []
    counts: Counter[str] = Counter()
    tokens = 0
    for folder in PRODUCT:
        for path in (ROOT / folder).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
            lines += [line.strip() for line in source.splitlines() if line.strip()]
            counts.update(faults(tree))
            tokens += num_tokens(source, tree=tree)
    assert sum(map(len, lines)) / len(lines) <= CHARACTERS_PER_LINE
    rates = {name: 10_000 * counts[name] / tokens for name in PER_10_000_TOKENS}
    exceeded = {name: rate for name, rate in rates.items() if rate > PER_10_000_TOKENS[name]}
    assert not exceeded
