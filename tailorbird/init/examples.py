"""Examples for the page of a service, from training rows that are not in the test split."""

from itertools import islice

from tailorbird.data.pii import redact
from tailorbird.data.profiling.column_roles import ColumnRoles, roles_of
from tailorbird.data.profiling.sample import read_sample, spread
from tailorbird.data.rows import DataError, query_of
from tailorbird.data.splits import normalise
from tailorbird.init.inspect_data import DataSummary, conversations_in, texts_in

NUM_EXAMPLES = 3
SHORTEST, LONGEST = 8, 100  # characters of an example


def example_texts(summary: DataSummary) -> tuple[str, ...]:
    """Return up to `NUM_EXAMPLES` training texts, for chat the last messages of the user, that no test row has.

    Return none if a run splits the rows at random, or if the test split has more rows than a sample. Texts in which
    `redact` finds personal data are omitted.
    """
    if summary.uris.test is None:
        return ()
    test = read_sample(summary.uris.test)
    try:
        tested = {normalise(query) for query in _queries(roles_of(test, roles=summary.roles))}
    except DataError:  # a column is missing, which a run reports
        return ()
    suitable = (
        text
        for text in map(str.strip, spread(_queries(summary.roles)))
        if SHORTEST <= len(text) <= LONGEST
        and text.isprintable()
        and redact(text) == text
        and normalise(text) not in tested
    )
    return tuple(islice(dict.fromkeys(suitable), NUM_EXAMPLES)) if test.is_whole else ()


def _queries(roles: ColumnRoles) -> list[str]:
    return texts_in(roles) if roles.text is not None else [query_of(turns) for turns in conversations_in(roles)]
