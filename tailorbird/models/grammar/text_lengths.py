"""Rewrite the grammar of texts with a maximum length, so that all long texts of a schema share a
few rules.

xgrammar finds the allowed tokens of each of the first 127 and last 128 characters of such a text,
for each length of the schema. Here, it does so for the last `NEAR_END` characters and for shorter
texts, once for all lengths.
"""

import re

NEAR_END = 32
"""Characters at the end of a longer text, whose grammar all texts with a `maxLength` share."""

_TEXT = re.compile(
    r'^(?P<name>\w+) ::= \(\("\\"" (?P<chars>\w+)\{(?P<fewest>\d+), (?P<most>\d+)\} "\\""\)\)$',
    re.M,
)
_RULES = """
text_length_more ::= ({char} | text_length_never) (=(text_length_never))
text_length_never ::= "a" text_length_never
text_length_end ::= {char}{{{count}}} "\\""
"""
"""A text of at least `NEAR_END` characters is several times `text_length_more` and then
`text_length_end`. After each character, the parser follows both possibilities: one more, or the end
from here on. Tokens of several characters are found with the second one. With the first one they
are rejected by the lookahead, a rule without an end, because xgrammar would have to try each of
them at each position. The same rule as an alternative prevents that xgrammar replaces the
references to `text_length_more`. Tokens of more than `NEAR_END` characters are not used."""
_SHORT = 'text_length_short_{fewest} ::= {char}{{{fewest},{most}}} "\\""\n'


def with_shared_lengths(grammar: str, *, char: str) -> str:
    """Return a grammar in EBNF for the same texts; `char` is the class of the characters of texts
    with a length.

    Texts of at most `NEAR_END` characters and those of which more characters or no maximum are
    required keep their rules.
    """
    short: dict[int, str] = {}

    def shared(text: re.Match[str]) -> str:
        fewest = int(text["fewest"])
        most = int(text["most"])
        if not fewest <= NEAR_END < most or f"\n{text['chars']} ::= (({char}))\n" not in grammar:
            return text[0]
        long = f'("\\"" text_length_more{{0,{most - NEAR_END}}} text_length_end)'
        if fewest == NEAR_END:
            return f"{text['name']} ::= {long}"
        short[fewest] = _SHORT.format(fewest=fewest, most=NEAR_END - 1, char=char)
        return f'{text["name"]} ::= ("\\"" text_length_short_{fewest}) | {long}'

    rewritten = _TEXT.sub(shared, grammar)
    if rewritten == grammar:
        return grammar
    return rewritten + _RULES.format(char=char, count=NEAR_END) + "".join(short.values())
