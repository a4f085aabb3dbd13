"""The embedded stack: an S3 server and Ray on this machine."""
