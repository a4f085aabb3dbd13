"""The embedded stack: an S3 server and a Ray on this machine."""
