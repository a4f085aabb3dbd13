"""Measure the search for the nearest training rows: time per request, size and construction of the
index.

Run it with one thread per process: `OMP_NUM_THREADS=1 python -m benchmarks.evaluation.retrieval`.
The rows are 100,000 titles and terms of ICD-10-CM, and 100,000 paragraphs of 20 titles each, about
1,000 characters. The queries are not in the index. Bound: retrieval adds at most 5 ms to a request
(median) on one core.

`--encoder file:///path/to/model` also measures the titles with the embeddings of an encoder, and
the parts of a search: the embedding of the query and the cosines with all rows. No bound applies to
them.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import simple_icd_10_cm as icd

from benchmarks.rounds import finish, print_table
from tailorbird.config.base import digest
from tailorbird.data.rows import Rows
from tailorbird.models.loading import load_text_encoder
from tailorbird.models.pretrained import dtype_name
from tailorbird.models.retrieval.index import MAX_ROWS, RetrievalIndex, build_index, embed_index
from tailorbird.registry.versions import PinnedEncoder
from tailorbird.storage.node_cache import sha256_files

NUM_QUERIES, NUM_EXAMPLES, NUM_TITLES, BOUND_MS = 500, 4, 20, 5.0
WEIGHT = 0.75  # weight of the embeddings in the similarity


def icd_rows() -> tuple[list[str], list[str]]:
    """Return texts and codes of ICD-10-CM in random order: the title of each code, and the terms
    that it includes."""
    pairs = []
    for code in dict.fromkeys(icd.get_all_codes()):
        texts = [icd.get_description(code), *icd.get_inclusion_term(code)]
        pairs += [(text, code) for text in dict.fromkeys(texts)]
    order = np.random.default_rng(0).permutation(len(pairs))
    return [pairs[row][0] for row in order], [pairs[row][1] for row in order]


def paragraphs(titles: list[str], *, num_rows: int) -> list[str]:
    """Return texts of `NUM_TITLES` random titles each."""
    picks = np.random.default_rng(1).integers(len(titles), size=(num_rows, NUM_TITLES))
    return [". ".join(titles[position] for position in row) for row in picks]


def measure(
    texts: list[str], answers: list[str], *, encoder: PinnedEncoder | None = None
) -> dict[str, float]:
    """Return the figures of an index of all texts but the last `NUM_QUERIES`, which are the
    queries."""
    queries, texts, answers = texts[-NUM_QUERIES:], texts[:-NUM_QUERIES], answers[:-NUM_QUERIES]
    ids = tuple(map(str, range(len(texts))))
    rows = Rows(
        ids, tuple(texts), tuple(answers), conversations=tuple((("user", text),) for text in texts)
    )
    start = time.process_time()
    index = build_index(rows, seed=0)
    if encoder is not None:
        index = embed_index(index, encoder=load_text_encoder(encoder, device="cpu"), weight=WEIGHT)
    build_s = time.process_time() - start
    times = np.array([request_ms(index, query) for query in queries])
    parts = {}
    if index.embeddings is not None:
        embeddings = index.embeddings
        vectors = [embeddings.encoder.embed([query])[0] for query in queries]
        parts = {
            "embedding ms": median_ms(lambda query: embeddings.encoder.embed([query]), queries),
            "cosines ms": median_ms(lambda vector: embeddings.rows @ vector, vectors),
            "embeddings MB": embeddings.rows.nbytes / 1e6,
        }
    matrix = index.postings.matrix
    return {
        "rows": len(index),
        "build s": build_s,
        "postings MB": (matrix.indices.nbytes + matrix.data.nbytes) / 1e6,
        "table MB": index.table.nbytes / 1e6,
        "median ms": float(np.median(times)),
        "p95 ms": float(np.quantile(times, 0.95)),
        "max ms": float(times.max()),
        **parts,
    }


def median_ms(function: Callable[[Any], object], values: Sequence[Any]) -> float:
    """Return the median CPU time of a call, in milliseconds."""
    times = []
    for value in values:
        start = time.process_time()
        function(value)
        times.append(1000 * (time.process_time() - start))
    return float(np.median(times))


def request_ms(index: RetrievalIndex, query: str) -> float:
    """Return the CPU time of finding and reading the examples of a request, in milliseconds."""
    start = time.process_time()
    neighbours = index.nearest(query, k=NUM_EXAMPLES)
    for row in neighbours.rows:
        index.turns(row)
    return 1000 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", help="URI of the folder of a text encoder (file:// or s3://)")
    uri = parser.parse_args().encoder
    texts, codes = icd_rows()
    num_rows = MAX_ROWS + NUM_QUERIES
    codes = codes[:num_rows] + [""] * max(0, num_rows - len(codes))
    figures = {
        "titles and terms": measure(texts[:num_rows], codes[: len(texts[:num_rows])]),
        "paragraphs": measure(paragraphs(texts, num_rows=num_rows), codes),
    }
    bounded = [f"{name}, median ms" for name in figures]
    if uri:
        encoder = PinnedEncoder(uri=uri, sha256=digest(sha256_files(uri)), dtype=dtype_name())
        figures["titles, with an encoder"] = measure(
            texts[:num_rows], codes[: len(texts[:num_rows])], encoder=encoder
        )
    print_table("Retrieval of training rows", figures)
    medians = {f"{name}, median ms": row["median ms"] for name, row in figures.items()}
    finish("retrieval", medians, bounds=dict.fromkeys(bounded, f"<= {BOUND_MS:g}"))


if __name__ == "__main__":
    main()
