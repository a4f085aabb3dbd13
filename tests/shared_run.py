"""Files of the integration tests that share the run of the small recipe, so one process runs all of
them."""

SHARE_THE_SMALL_RUN = (
    "cluster/test_security.py",
    "pipeline/test_run.py",
    "pipeline/test_resume.py",
)
