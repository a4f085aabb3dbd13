"""External OpenAI-compatible endpoints: requests, answers and errors. Evaluation and serving share
this."""
