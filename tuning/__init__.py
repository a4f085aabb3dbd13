"""The sweep: Ray Tune samples configurations, and Ray Train worker groups train them."""
